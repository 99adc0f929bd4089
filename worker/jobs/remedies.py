"""What to change in the spec of a job that failed, where that may help."""

from .errors import DeviceUnavailable, DiskFull, Diverged, Killed, OutOfMemory
from .failures import Failure
from .patches import Patch
from .spec import Spec


def suggestion(failure: Failure, spec: Spec) -> Patch | None:
    """A patch of the spec; None where nothing can be said that is more likely to help than to hurt."""
    if failure.code == OutOfMemory.code:
        return _less_memory(spec)
    if failure.code == Killed.code and failure.signal == "SIGKILL":  # perhaps the machine was out of memory
        parts = 2 * spec.accumulation
        return {"accumulation": parts} if parts <= spec.batch_size else None
    if failure.code == Diverged.code:
        if spec.precision == "fp16":
            return {"precision": "bf16"}
        return {"optimizer": {"lr": float(f"{spec.optimizer.lr / 10:.6g}")}}
    if failure.code == DiskFull.code and spec.checkpoints.keep != "last":
        return {"checkpoints": {"keep": "last"}}
    return {"device": "auto"} if failure.code == DeviceUnavailable.code else None


def _less_memory(spec: Spec) -> Patch | None:
    if spec.memory_limit_mb is not None:
        return {"memory_limit_mb": 2 * spec.memory_limit_mb}
    return {"batch_size": spec.batch_size // 2} if spec.batch_size > max(1, spec.accumulation) else None
