"""What a checkpoint is called and looks like to clients of the Open Inference Protocol."""

import json
import struct
from pathlib import Path
from typing import Any, Final

from .errors import CheckpointCorrupt

INPUT: Final = "pixels"  # N x channels x height x width
LOGITS, PROBABILITIES, VALUES = "logits", "probabilities", "values"
_LENGTH: Final = struct.Struct("<Q")
_MOST_BYTES: Final = 100 * 2**20  # as safetensors itself


def tensors(path: Path) -> dict[str, Any]:
    """`inputs` and `outputs` of a checkpoint's metadata in the protocol, from the header of its file.

    Raises CheckpointCorrupt.
    """
    try:
        with path.open("rb") as file:
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            if length > _MOST_BYTES:
                raise CheckpointCorrupt
            about = json.loads(json.loads(file.read(length))["__metadata__"]["epochd"])
        shape = about["preprocessing"]
        pictures = [-1, shape["channels"], shape["height"], shape["width"]]
        names = [LOGITS, PROBABILITIES] if about["classes"] else [VALUES]
        outputs = [-1, len(about["classes"]) or len(about["targets"])]
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise CheckpointCorrupt from error
    return {
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": pictures}],
        "outputs": [{"name": name, "datatype": "FP32", "shape": outputs} for name in names],
    }
