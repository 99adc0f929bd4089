"""The spec: the request body of a job. `{}` is valid and means the tutorial's values."""

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from .texts import printable

Text = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(printable)]
NAME_PATTERN: Final = r"^[a-z0-9][a-z0-9._-]*$"
Name = Annotated[str, Field(max_length=64, pattern=NAME_PATTERN)]


class Part(BaseModel):
    """What every part of a spec has in common: no unknown fields, no guessing of types, finite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Dataset(Part):
    name: Name = Field("fashion-mnist", description="Which pictures to train and test on; `GET /datasets` lists them")
    version: int | None = Field(None, ge=1, lt=2**31, description="Unset: the newest; the job keeps which one that was")


class MLP(Part):
    """A multi-layer perceptron: flatten, then linear and ReLU for each hidden size, then a linear layer."""

    name: Literal["mlp"] = "mlp"
    hidden: list[Annotated[int, Field(ge=1, le=65_536)]] = Field(
        [512, 512], max_length=32, description="Width of each hidden layer, in units"
    )
    dropout: float = Field(
        0.0, ge=0.0, lt=1.0, description="Share of hidden activations zeroed in training, after each ReLU"
    )


class Loss(Part):
    """`cross_entropy` of raw logits against class indices, for classification; `mse`, the squared error averaged over
    all numbers of all pictures, for regression."""

    name: Literal["cross_entropy", "mse"] = Field("cross_entropy", description="Which of the two")


class SGD(Part):
    """Plain stochastic gradient descent."""

    name: Literal["sgd"] = "sgd"
    lr: float = Field(1e-3, gt=0.0, le=1e6, description="Learning rate, per step")


class Constant(Part):
    """The learning rate stays as it is."""

    name: Literal["constant"] = "constant"


class Spec(Part):
    name: Text | None = Field(None, description="A name for people; need not be unique")
    labels: dict[Text, Text] = Field(
        default_factory=dict, max_length=32, description="Your own key-value pairs, kept with the job"
    )
    dataset: Dataset = Field(Dataset(), description="What to train on")
    model: MLP = Field(MLP(), description="The network")
    loss: Loss = Field(Loss(), description="What training minimises")
    optimizer: SGD = Field(SGD(), description="How a gradient becomes a step")
    schedule: Constant = Field(Constant(), description="How the learning rate changes over epochs")
    batch_size: int = Field(64, ge=1, le=65_536, description="Pictures per step")
    epochs: int = Field(5, ge=1, le=100_000, description="Passes over the training pictures")
    shuffle: bool = Field(True, description="Whether each epoch has an order of its own, derived from the seed")
    seed: int = Field(0, ge=0, lt=2**63, description="Where all randomness of the job comes from")
    precision: Literal["fp32"] = Field("fp32", description="Number format of the arithmetic")
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|cuda(:[0-9]{1,2})?)$",
        description="`auto` takes a GPU when there is one; `cpu`, `cuda` or `cuda:<n>` insist",
    )
