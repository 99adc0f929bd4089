"""The layers of which `"model": {"name": "layers"}` is made. Named as in torch.nn, in small letters."""

from typing import Annotated, Literal

from pydantic import Field, Tag

from .part import Part, by_name, tag

_Kernel = Annotated[int, Field(ge=1, le=1024)]
_Features = Annotated[int, Field(ge=1, le=65_536)]


class Linear(Part):
    """A fully connected layer."""

    name: Literal["linear"]
    features: _Features | None = Field(None, description="Unset: one for each class or target, as the last layer needs")
    bias: bool = Field(True, description="Whether a constant is added to each feature")


class Conv2d(Part):
    """A convolution with a square kernel."""

    name: Literal["conv2d"]
    channels: _Features = Field(description="That come out")
    kernel: _Kernel = Field(3, description="Its side, in pixels")
    stride: _Kernel = Field(1, description="Pixels from one place of the kernel to the next")
    padding: Annotated[int, Field(ge=0, le=1024)] | Literal["same"] = Field(
        0, description="Pixels of zeros around the picture; `same` keeps height and width"
    )
    dilation: _Kernel = Field(1, description="Pixels from one entry of the kernel to the next")
    groups: _Features = Field(1, description="Parts of the channels that do not see each other")
    bias: bool = Field(True, description="Whether a constant is added to each channel")


class BatchNorm(Part):
    """Of features or of channels, whichever come in."""

    name: Literal["batch_norm"]


class Activation(Part):
    """A nonlinear function of each number."""

    name: Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid"]


class Pool(Part):
    """The largest, or the average, of each square of pixels; each channel by itself."""

    name: Literal["max_pool", "avg_pool"]
    kernel: _Kernel = Field(2, description="The square's side, in pixels")
    stride: _Kernel | None = Field(None, description="Unset: the kernel's size")
    padding: int = Field(0, ge=0, le=512, description="Pixels around the picture; at most half the kernel")


class GlobalAvgPool(Part):
    """The average of each channel, flattened."""

    name: Literal["global_avg_pool"]


class Dropout(Part):
    """`dropout` zeroes single numbers, `dropout2d` whole channels."""

    name: Literal["dropout", "dropout2d"]
    p: float = Field(0.5, ge=0.0, lt=1.0, description="Share that is zeroed in training")


class Flatten(Part):
    """All numbers of a picture in one row, as linear layers take them."""

    name: Literal["flatten"]


_KINDS = {
    "linear": "linear",
    "conv2d": "conv2d",
    "batch_norm": "batch_norm",
    **dict.fromkeys(("relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid"), "activation"),
    "max_pool": "pool",
    "avg_pool": "pool",
    "global_avg_pool": "global_avg_pool",
    "dropout": "dropout",
    "dropout2d": "dropout",
    "flatten": "flatten",
}

Layer = Annotated[
    Annotated[Linear, Tag(tag("linear"))]
    | Annotated[Conv2d, Tag(tag("conv2d"))]
    | Annotated[BatchNorm, Tag(tag("batch_norm"))]
    | Annotated[Activation, Tag(tag("activation"))]
    | Annotated[Pool, Tag(tag("pool"))]
    | Annotated[GlobalAvgPool, Tag(tag("global_avg_pool"))]
    | Annotated[Dropout, Tag(tag("dropout"))]
    | Annotated[Flatten, Tag(tag("flatten"))],
    by_name(_KINDS),
]
