"""What can be asked of checkpoints and the aliases that point at them."""

from typing import TYPE_CHECKING, Any, Literal

from . import answers
from .call import Call, segment
from .pictures import Picture, encoded

if TYPE_CHECKING:
    from service.bodies.models import AliasBody
    from service.bodies.predict import EpochsBody, PredictBody


def predict(
    *pictures: Picture,
    job: str | None = None,
    checkpoint: str | int | None = None,
    model: str | None = None,
    top_k: int = 5,
    auto_fix: bool = False,
) -> Call["PredictBody"]:
    """Asks for the classes (or numbers) of pictures: paths, bytes of files, PIL images, or uint8 arrays.

    Without `job` and `model` the alias `default` answers, else the newest job that succeeded.
    """
    params = {"job": job, "checkpoint": checkpoint, "model": model, "top_k": top_k, "auto_fix": _said(auto_fix)}
    return Call("POST", "/predict", answers.prediction, params, _form(pictures), may_repeat=True)


def predict_epochs(
    *pictures: Picture, job: str | None = None, model: str | None = None, top_k: int = 5, auto_fix: bool = False
) -> Call["EpochsBody"]:
    """The same of every checkpoint that the job kept, oldest first."""
    params = {"job": job, "checkpoint": "all", "model": model, "top_k": top_k, "auto_fix": _said(auto_fix)}
    return Call("POST", "/predict", answers.predictions, params, _form(pictures), may_repeat=True, waits=60)


def aliases() -> Call["list[AliasBody]"]:
    """The names that point at checkpoints."""
    return Call("GET", "/models", answers.aliases)


def set_alias(name: str, job: str, checkpoint: str | int = "best") -> Call["AliasBody"]:
    """Points a name at a checkpoint, as it is now."""
    body = {"job": job, "checkpoint": checkpoint}
    return Call("PUT", _of(name), answers.alias, more={"json": body}, waits=60)


def delete_alias(name: str) -> Call[None]:
    """What it points at stays."""
    return Call("DELETE", _of(name), answers.nothing)


def rollback_alias(name: str) -> Call["AliasBody"]:
    """Points a name at what it pointed at before."""
    return Call("POST", f"{_of(name)}/rollback", answers.alias, waits=60)


def _of(name: str) -> str:
    return f"/models/{segment(name)}"


def _said(flag: bool) -> Literal["true"] | None:
    return "true" if flag else None


def _form(pictures: tuple[Picture, ...]) -> dict[str, Any]:
    if not pictures:
        raise ValueError("Give at least one picture.")
    return {"files": [("image", (f"picture-{number}", encoded(each))) for number, each in enumerate(pictures, start=1)]}
