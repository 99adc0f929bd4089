"""A job's test pictures, once as files through the prediction path and once as arrays through the test loop's."""

import io
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from worker.datasets.opening import open_prepared
from worker.datasets.pictures import unit
from worker.datasets.source import Split
from worker.jobs.parity import Parity
from worker.jobs.wire import ParityRequest
from worker.training import arithmetic
from worker.training.batches import test_batch_size
from worker.training.checkpoints import Metadata

from .answers import MOST_PICTURES, look
from .errands import Place
from .models import Ready, load_plain

_MOST_PICTURES = 10_000
# Of the largest output. Folded batch norm and batches of other sizes round in other places.
TOLERANCES = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 5e-2, "fp16": 1e-2}
_MAY_DIFFER, _MAY_DIFFER_ANYHOW = 1e-3, 2  # share, and number, of pictures whose class may change by that rounding

_ROUNDING = 1e-6  # of a number of pictures that was a share


@dataclass
class _Sums:
    pictures: int = 0
    difference: float = 0.0
    output: float = 0.0
    agree: int = 0
    right: int = 0
    right_in_loop: int = 0
    error: float = 0.0  # of numbers, averaged over targets
    error_in_loop: float = 0.0

    def add(self, answered: Tensor, looped: Tensor, y: Tensor, *, is_classes: bool) -> None:
        self.pictures += len(y)
        self.difference = max(self.difference, _largest_difference(answered, looped))
        self.output = max(self.output, float(looped.abs().nan_to_num(nan=0.0, posinf=0.0).max()))
        if is_classes:
            ours, theirs = answered.argmax(dim=1), looped.argmax(dim=1)
            self.agree += int((ours == theirs).sum())
            self.right += int((ours == y).sum())
            self.right_in_loop += int((theirs == y).sum())
        else:
            self.error += float((answered.double() - y).abs().mean(dim=1).sum())
            self.error_in_loop += float((looped.double() - y).abs().mean(dim=1).sum())


def _largest_difference(answered: Tensor, looped: Tensor) -> float:
    """What only one of the two has not finite is infinitely far away: a plain maximum would pass over NaN."""
    is_same = (answered == looped) | (answered.isnan() & looped.isnan())
    apart = (answered - looped).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    return float(apart.masked_fill(is_same, 0.0).max())


def parity(place: Place, request: ParityRequest) -> Iterator[bytes]:
    """One `Parity`, as JSON. Raises CheckpointCorrupt, DatasetMissing and DatasetChanged."""
    begun = time.perf_counter()
    ready = place.models.get(request.path, request.sha256)
    network, metadata = load_plain(place.data_dir, request.path, request.sha256)
    data = open_prepared(place.data_dir / request.dataset.folder, request.dataset.sha256)
    chosen, pages = _chosen(data.test), data.test.pages
    model, sums = _as_tested(network, metadata, ready.device), _Sums()
    size = test_batch_size(metadata.preprocessing, metadata.spec.batch_size)
    for indices in chosen.split(size):  # type: ignore[no-untyped-call]
        images, y = data.test.images.index_select(0, indices), data.test.labels.index_select(0, indices)
        looped = _looped(model, images, ready.device)
        sums.add(_answered(ready, images, place.settings.max_pixels), looped, y, is_classes=bool(metadata.classes))
        if pages is not None:
            pages.release(int(indices[0]), int(indices[-1]) + 1)
    is_whole = len(chosen) == len(data.test)
    yield _certificate(sums, ready, time.perf_counter() - begun, is_whole=is_whole).model_dump_json().encode()


def _chosen(split: Split) -> Tensor:
    most = min(len(split), _MOST_PICTURES)
    return torch.linspace(0, len(split) - 1, most, dtype=torch.float64).round().long()


def _as_tested(network: nn.Module, metadata: Metadata, device: torch.device) -> nn.Module:
    """As the engine's test loop sees the network."""
    layout = arithmetic.memory_format(network)
    made = arithmetic.in_precision(network.to(device).to(memory_format=layout), metadata.spec.precision, device)
    return arithmetic.FromUnit(made, metadata.preprocessing, layout).eval()


@torch.inference_mode()
def _looped(model: nn.Module, images: Tensor, device: torch.device) -> Tensor:
    pred: Tensor = model(unit(images.to(device)))
    return pred.float().cpu()


def _answered(ready: Ready, images: Tensor, max_pixels: int) -> Tensor:
    """In passes of one and of many, as pictures come when little and when much is asked."""
    seen = torch.stack([look(ready, png(image), max_pixels, auto_fix=False).pixels for image in images])
    alone, together = seen[:MOST_PICTURES], seen[MOST_PICTURES:]
    batches = [*torch.split(alone, 1), *torch.split(together, MOST_PICTURES)]
    return torch.cat([ready.logits(batch) for batch in batches if len(batch)])


def png(image: Tensor) -> bytes:
    """uint8 C x H x W as a client would send it."""
    pixels = image.permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)).save(
        file, "PNG", compress_level=1
    )
    return file.getvalue()


def _certificate(sums: _Sums, ready: Ready, seconds: float, *, is_whole: bool) -> Parity:
    """`is_whole`: whether all test pictures went both ways, as when the training recorded its numbers."""
    metadata, is_classes = ready.metadata, bool(ready.metadata.classes)
    made = Parity(
        pictures=sums.pictures,
        epoch=metadata.epoch,
        sha256=ready.sha256,
        largest_difference=_finite(sums.difference),
        largest_output=sums.output,
        tolerance=TOLERANCES[metadata.spec.precision] * sums.output,
        agree=sums.agree / sums.pictures if is_classes else None,
        accuracy=sums.right / sums.pictures if is_classes else None,
        loop_accuracy=sums.right_in_loop / sums.pictures if is_classes else None,
        recorded_accuracy=metadata.metrics.get("test_accuracy"),
        mae=None if is_classes else _finite(sums.error / sums.pictures),
        loop_mae=None if is_classes else _finite(sums.error_in_loop / sums.pictures),
        recorded_mae=metadata.metrics.get("test_mae"),
        passed=False,
        precision=metadata.spec.precision,
        device=ready.device.type,
        seconds=round(seconds, 3),
        made_at=datetime.now(UTC),
    )
    return made.model_copy(update={"passed": _is_met(made, sums, is_whole=is_whole)})


def _is_met(made: Parity, sums: _Sums, *, is_whole: bool) -> bool:
    most = max(_MAY_DIFFER_ANYHOW, _MAY_DIFFER * sums.pictures)
    if sums.difference > made.tolerance or (made.agree is not None and sums.pictures - sums.agree > most):
        return False
    if not is_whole:
        return True
    if made.accuracy is not None and made.recorded_accuracy is not None:
        return abs(made.accuracy - made.recorded_accuracy) * sums.pictures <= most + _ROUNDING
    if made.mae is not None and made.recorded_mae is not None:
        return abs(made.mae - made.recorded_mae) <= made.tolerance
    return True


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
