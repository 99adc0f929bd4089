"""Networks by name."""

from typing import Annotated, Final, Literal, get_args

from pydantic import Field, Tag

from .layers import Layer
from .part import Name, Part, by_name, tag

ActivationName = Literal["relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid"]
Dropout = Annotated[float, Field(ge=0.0, lt=1.0)]
Channels = Annotated[int, Field(ge=1, le=65_536)]


class MLP(Part):
    """A multi-layer perceptron: flatten, then linear and activation for each hidden size, then a linear layer."""

    name: Literal["mlp"] = "mlp"
    hidden: list[Annotated[int, Field(ge=1, le=65_536)]] = Field(
        [512, 512], max_length=32, description="Width of each hidden layer, in units"
    )
    activation: ActivationName = Field("relu", description="After each hidden layer")
    dropout: Dropout = Field(0.0, description="Share of hidden activations zeroed in training, after each activation")
    batch_norm: bool = Field(False, description="Whether each hidden layer is normalised before its activation")


class CNN(Part):
    """A small convolutional network: for each entry of `channels` a 3x3 convolution, batch norm, ReLU and 2x2 max
    pooling; then a hidden linear layer with ReLU, dropout, and a linear layer."""

    name: Literal["cnn"]
    channels: list[Channels] = Field(
        [32, 64], min_length=1, max_length=8, description="Of each convolution; each halves height and width"
    )
    hidden: int = Field(128, ge=1, le=65_536, description="Width of the hidden linear layer, in units")
    dropout: Dropout = Field(0.0, description="Share of the hidden layer's activations zeroed in training")


class Layers(Part):
    """Your own chain of layers, which becomes an `nn.Sequential`. Shapes follow from the layer before; the last one has
    to give one number for each class (or target): a linear layer without `features` does."""

    name: Literal["layers"]
    layers: list[Layer] = Field(min_length=1, max_length=200, description="In order, from the picture to the output")


TorchvisionName = Literal[
    "alexnet",
    "convnext_base",
    "convnext_large",
    "convnext_small",
    "convnext_tiny",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_b4",
    "efficientnet_b5",
    "efficientnet_b6",
    "efficientnet_b7",
    "efficientnet_v2_l",
    "efficientnet_v2_m",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mnasnet0_75",
    "mnasnet1_0",
    "mnasnet1_3",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "regnet_x_16gf",
    "regnet_x_1_6gf",
    "regnet_x_32gf",
    "regnet_x_3_2gf",
    "regnet_x_400mf",
    "regnet_x_800mf",
    "regnet_x_8gf",
    "regnet_y_128gf",
    "regnet_y_16gf",
    "regnet_y_1_6gf",
    "regnet_y_32gf",
    "regnet_y_3_2gf",
    "regnet_y_400mf",
    "regnet_y_800mf",
    "regnet_y_8gf",
    "resnet101",
    "resnet152",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "shufflenet_v2_x1_0",
    "shufflenet_v2_x1_5",
    "shufflenet_v2_x2_0",
    "squeezenet1_0",
    "squeezenet1_1",
    "swin_b",
    "swin_s",
    "swin_t",
    "swin_v2_b",
    "swin_v2_s",
    "swin_v2_t",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "vit_b_16",
    "vit_b_32",
    "vit_h_14",
    "vit_l_16",
    "vit_l_32",
    "wide_resnet101_2",
    "wide_resnet50_2",
]
TORCHVISION: Final[tuple[str, ...]] = get_args(TorchvisionName)
RESNETS: Final = ("resnet", "resnext", "wide_resnet")  # what the names of those begin with that can have a small stem


class Torchvision(Part):
    """A classification network of torchvision, with its last layer and its input adapted to the dataset."""

    name: TorchvisionName
    image_size: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Pictures are scaled to this many pixels a side, on the device. Unset: as they are, or the least "
        "that the network takes",
    )
    small_stem: bool = Field(
        False,
        description="For resnet, resnext and wide_resnet: begin with a 3x3 convolution and no pooling, which suits "
        "pictures of up to 64 pixels",
    )
    weights: Name | None = Field(
        None,
        description="What to begin with: `imagenet` for torchvision's own weights, or `<name>` for the file "
        "`weights/<name>.safetensors` in the data folder. The last layer is new where its size differs. "
        "Unset: random weights",
    )


_KINDS: Final = {"mlp": "mlp", "cnn": "cnn", "layers": "layers"} | dict.fromkeys(TORCHVISION, "torchvision")

Model = Annotated[
    Annotated[MLP, Tag(tag("mlp"))]
    | Annotated[CNN, Tag(tag("cnn"))]
    | Annotated[Layers, Tag(tag("layers"))]
    | Annotated[Torchvision, Tag(tag("torchvision"))],
    by_name(
        _KINDS, default="mlp", shown="mlp, cnn, layers, or a classification network of torchvision such as resnet18"
    ),
]
