"""The weights that a torchvision network begins with, from a file."""

import math
import pickle  # nosec B403  # only the name of an error
import re
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

import structlog
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model_weights

from worker.jobs.errors import WeightsMissing, WeightsUnfit
from worker.jobs.spec import Torchvision

from .torchvision import first_convolution, last_layer, step

State = Mapping[str, Tensor]

_AUXILIARY: Final = ("aux1.", "aux2.", "AuxLogits.")  # classifiers that only helped to train
_OLD_NAMES: Final = (  # in torchvision's own files
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)
_POSITIONS: Final = "encoder.pos_embedding"  # of a vit: one for each patch, and one for the class
_log = structlog.get_logger()


def load_weights(network: nn.Module, model: Torchvision, folder: Path, *, allow_download: bool) -> None:
    """Fills the network that `build` made of `model` with the weights that `model.weights` names.

    What stays new: the last layer where its shape differs, and the small stem. A first convolution for other channels
    gets the file's channels in equal parts, so that a grey picture has the response that it has in colour.
    `folder` is `weights` in the data folder. Raises WeightsMissing and WeightsUnfit, which leave the network as it is.
    """
    assert model.weights is not None
    if model.weights == "imagenet":
        file, found = _imagenet(model.name, folder, allow_download=allow_download)
    else:
        file = f"weights/{model.weights}.safetensors"
        found = _read(folder / f"{model.weights}.safetensors", file)
    own = network.state_dict()
    fitted = _fitted(found, own, network, small_stem=model.small_stem)
    misfits = list(_misfits(fitted, own))
    if misfits:
        more = f" (and {len(misfits) - 1} more)" if misfits[1:] else ""
        detail = f"{file} does not fit {model.name}: {misfits[0]}{more}."
        raise WeightsUnfit(detail, hint=_hint(model.name, fitted, own))
    network.load_state_dict(fitted)


def _imagenet(name: str, folder: Path, *, allow_download: bool) -> tuple[str, State]:
    """What to call the file, and what is in it."""
    url: str = get_model_weights(name).DEFAULT.url
    file = url.rpartition("/")[2]
    shown, cached = f"weights/{file}", Path(torch.hub.get_dir(), "checkpoints", file)
    if not (folder / file).exists() and cached.exists():
        return f"{file} in torch's cache", _read(cached, f"{file} in torch's cache")
    if not (folder / file).exists() and allow_download:
        try:
            return shown, _download(url, folder)
        except (OSError, RuntimeError, HTTPException) as error:
            _log.warning("weights_not_fetched", file=file, error=str(error)[-500:])
            raise WeightsMissing(f"{shown} is not in the data folder, and to download it failed just now.") from error
    return shown, _read(folder / file, shown)


def _download(url: str, folder: Path) -> State:
    state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
        url, str(folder), "cpu", progress=False, check_hash=True, weights_only=True
    )
    return state


def _read(path: Path, shown: str) -> State:
    if not path.exists():
        hint = (
            ""
            if path.suffix == ".safetensors"
            else " Put it there, or allow its download with EPOCHD_ALLOW_DOWNLOAD=true."
        )
        raise WeightsMissing(f"{shown} is not in the data folder.{hint}")
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, EOFError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise WeightsUnfit(f"{shown} is damaged or not a file of weights.") from error
    if not isinstance(state, dict) or not all(isinstance(each, Tensor) for each in state.values()):
        raise WeightsUnfit(f"{shown} does not hold tensors by their names.")
    return state


def _fitted(found: State, own: State, network: nn.Module, *, small_stem: bool) -> State:
    """By the network's names. What is to stay new is as the network has it."""
    state = {_own_name(name): tensor for name, tensor in found.items() if not name.startswith(_AUXILIARY)}
    new = [name for name in own if name.endswith("num_batches_tracked") and name not in state]  # old files lack it
    last, first = last_layer(network), f"{first_convolution(network)}.weight"
    new += [name for name in own if name.startswith(f"{last}.") and _differs(name, state, own)]
    if _differs(first, state, own):
        theirs, ours = state[first].shape, own[first].shape
        if (theirs[0], theirs[2:]) == (ours[0], ours[2:]):
            state[first] = state[first].sum(1, keepdim=True).expand(ours) / ours[1]
        elif small_stem:
            new.append(first)
    return state | {name: own[name] for name in new}


def _own_name(name: str) -> str:
    name = name.removeprefix("0.")  # of a checkpoint that ends with a log-softmax
    for old, now in _OLD_NAMES:
        name = old.sub(now, name)
    return name


def _misfits(state: State, own: State) -> Iterator[str]:
    yield from (f"{name} is missing" for name in own if name not in state)
    yield from (f"{name} is not in the network" for name in state if name not in own)
    for name in own:
        if _differs(name, state, own):
            yield f"{name} has the shape {_shape(state[name])}, not {_shape(own[name])}"


def _differs(name: str, state: State, own: State) -> bool:
    return name in state and state[name].shape != own[name].shape


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "of one number"


def _hint(name: str, state: State, own: State) -> str | None:
    if _POSITIONS not in own or not _differs(_POSITIONS, state, own):
        return None
    patches = state[_POSITIONS].numel() // own[_POSITIONS].shape[-1] - 1
    side = math.isqrt(max(1, patches)) * step(name)
    return f"A vit's weights are for pictures of one size: set the model's image_size to {side}."
