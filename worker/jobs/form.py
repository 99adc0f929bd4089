"""The form that comes with an upload: what the archive is to become."""

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from .built_in import BUILT_IN
from .card import Task
from .spec import Name, Part

TEST_FRACTION: Final = 0.2  # where neither the archive nor the form says what is for testing
_MAX_SIDE: Final = 1024

Side = Annotated[int, Field(ge=1, le=_MAX_SIDE)]


def _pair(size: object) -> object:
    return [size, size] if isinstance(size, int) else size


_Sides = Annotated[list[Side], Field(min_length=2, max_length=2)]
Size = Annotated[_Sides, BeforeValidator(_pair, json_schema_input_type=Side | _Sides)]


def _free(name: str) -> str:
    if name in BUILT_IN:
        raise ValueError("is the name of a built-in dataset; take another")
    return name


class Form(Part):
    name: Annotated[Name, AfterValidator(_free)] = Field(
        description="The same name again makes a new version; lower-case letters, digits, `.`, `_` and `-`"
    )
    task: Task = Field(
        Task.CLASSIFICATION,
        strict=False,
        description="`classification`: a picture has one class; `regression`: `labels.csv` has one or more numbers",
    )
    image_size: Size | None = Field(
        None,
        description="Side in pixels, or [height, width]. Unset: the pictures' own size where all have the same of at "
        "most 256, else 64",
    )
    channels: Literal["grey", "colour"] | None = Field(
        None, description="Unset: grey where all pictures are grey, else colour"
    )
    test_fraction: float | None = Field(
        None,
        gt=0.0,
        lt=1.0,
        description="Share of the pictures to test on, chosen by their contents; unset: what the archive says by "
        f"`train/` and `test/` folders or by a column `split`, else {TEST_FRACTION}",
    )
    strict: bool = Field(False, description="Refuse the dataset when anything at all is found; see `findings`")

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width."""
        return (self.image_size[0], self.image_size[1]) if self.image_size else None
