"""How a network is trained: loss, optimizer, schedule, augmentation, and what guards and ends a training."""

from typing import Annotated, Final, Literal

from pydantic import Field, Tag

from .part import Part, by_name, tag

Metric = Literal["train_loss", "test_loss", "test_accuracy", "test_top5_accuracy", "test_f1", "test_mae", "test_r2"]
LOWER_IS_BETTER: Final = ("train_loss", "test_loss", "test_mae")
OF_CLASSES: Final = ("test_accuracy", "test_top5_accuracy", "test_f1")
OF_NUMBERS: Final = ("test_mae", "test_r2")

_LearningRate = Annotated[float, Field(gt=0.0, le=1e6, description="Learning rate, per step")]
_WeightDecay = Annotated[float, Field(ge=0.0, le=1e3, description="How strongly weights are drawn to zero")]
_Share = Annotated[float, Field(ge=0.0, lt=1.0)]
ClassWeights = Annotated[
    list[Annotated[float, Field(gt=0.0, le=1e6)]] | Literal["balanced"] | None,
    Field(
        description="How much a picture of each class counts, in the order of the classes; `balanced` weighs a class "
        "by how rare it is among the training pictures"
    ),
]


class CrossEntropy(Part):
    """Of raw logits against class indices."""

    name: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: float = Field(
        0.0, ge=0.0, lt=1.0, description="Share of the target that is spread evenly over all classes"
    )
    class_weights: ClassWeights = None


class NLL(Part):
    """Negative log likelihood; a log-softmax is added at the end of the model. The same numbers as cross entropy."""

    name: Literal["nll"]
    class_weights: ClassWeights = None


class MSE(Part):
    """The squared error, averaged over all numbers of all pictures: for regression, or for classes as one-hots."""

    name: Literal["mse"]


Loss = Annotated[
    Annotated[CrossEntropy, Tag(tag("cross_entropy"))]
    | Annotated[NLL, Tag(tag("nll"))]
    | Annotated[MSE, Tag(tag("mse"))],
    by_name({name: name for name in ("cross_entropy", "nll", "mse")}, default="cross_entropy"),
]


class SGD(Part):
    """Stochastic gradient descent."""

    name: Literal["sgd"] = "sgd"
    lr: _LearningRate = 1e-3
    momentum: _Share = Field(0.0, description="Share of the last step that is taken again")
    nesterov: bool = Field(False, description="Look ahead along the momentum")
    weight_decay: _WeightDecay = 0.0


class Adam(Part):
    """`adam`, or `adamw`, whose weight decay does not go through the gradient."""

    name: Literal["adam", "adamw"]
    lr: _LearningRate = 1e-3
    betas: tuple[_Share, _Share] = Field(
        (0.9, 0.999), strict=False, description="Decay of the averages of gradient and of its square"
    )
    eps: float = Field(1e-8, gt=0.0, le=1.0, description="Added to the denominator")
    weight_decay: _WeightDecay = 0.0


class RMSprop(Part):
    """Each weight's step is divided by the root of the average of its squared gradient."""

    name: Literal["rmsprop"]
    lr: _LearningRate = 1e-3
    alpha: _Share = Field(0.99, description="Decay of the average of the squared gradient")
    momentum: _Share = Field(0.0, description="Share of the last step that is taken again")
    eps: float = Field(1e-8, gt=0.0, le=1.0, description="Added to the denominator")
    weight_decay: _WeightDecay = 0.0


Optimizer = Annotated[
    Annotated[SGD, Tag(tag("sgd"))] | Annotated[Adam, Tag(tag("adam"))] | Annotated[RMSprop, Tag(tag("rmsprop"))],
    by_name({"sgd": "sgd", "adam": "adam", "adamw": "adam", "rmsprop": "rmsprop"}, default="sgd"),
]

_WarmUp = Annotated[
    int,
    Field(
        ge=0,
        le=10_000,
        description="Epochs in which the learning rate first grows linearly, step by step, from nearly 0",
    ),
]
_Gamma = Annotated[float, Field(gt=0.0, le=1.0, description="What the learning rate is multiplied by")]


class Constant(Part):
    """The learning rate stays as it is."""

    name: Literal["constant"] = "constant"
    warmup_epochs: _WarmUp = 0


class StepDecay(Part):
    """The learning rate falls every so many epochs."""

    name: Literal["step"]
    every: int = Field(10, ge=1, le=100_000, description="Epochs between two falls")
    gamma: _Gamma = 0.1
    warmup_epochs: _WarmUp = 0


class MultiStep(Part):
    """The learning rate falls after given epochs."""

    name: Literal["multistep"]
    milestones: list[Annotated[int, Field(ge=1, le=100_000)]] = Field(
        min_length=1, max_length=100, description="Epochs after which it falls, increasing"
    )
    gamma: _Gamma = 0.1
    warmup_epochs: _WarmUp = 0


class Cosine(Part):
    """The learning rate falls along half a cosine, reaching `min_lr` after the last epoch."""

    name: Literal["cosine"]
    min_lr: float = Field(0.0, ge=0.0, le=1e6, description="What the learning rate never falls below")
    warmup_epochs: _WarmUp = 0


class OneCycle(Part):
    """One rise to the optimizer's `lr`, step by step, and a longer fall to nearly nothing, both along a cosine."""

    name: Literal["one_cycle"]
    warmup_epochs: int | None = Field(None, ge=0, le=10_000, description="Of the rise. Unset: 30 % of the epochs")


class Plateau(Part):
    """The learning rate falls when a metric has stopped getting better."""

    name: Literal["plateau"]
    metric: Metric = Field("test_loss", description="Which metric to watch")
    patience: int = Field(3, ge=0, le=10_000, description="Epochs without improvement that are borne")
    gamma: float = Field(0.1, gt=0.0, lt=1.0, description="What the learning rate is multiplied by")
    min_lr: float = Field(0.0, ge=0.0, le=1e6, description="What the learning rate never falls below")
    warmup_epochs: _WarmUp = 0


Schedule = Annotated[
    Annotated[Constant, Tag(tag("constant"))]
    | Annotated[StepDecay, Tag(tag("step"))]
    | Annotated[MultiStep, Tag(tag("multistep"))]
    | Annotated[Cosine, Tag(tag("cosine"))]
    | Annotated[OneCycle, Tag(tag("one_cycle"))]
    | Annotated[Plateau, Tag(tag("plateau"))],
    by_name(
        {name: name for name in ("constant", "step", "multistep", "cosine", "one_cycle", "plateau")},
        default="constant",
    ),
]


class Augmentation(Part):
    """Random changes of training pictures: each picture its own, in this order, anew in each epoch."""

    flip: Literal["none", "horizontal", "vertical", "both"] = Field("none", description="Mirrors every second picture")
    rotate: float = Field(0.0, ge=0.0, le=180.0, description="By up to so many degrees, either way")
    shift: int = Field(
        0,
        ge=0,
        le=512,
        description="By up to so many pixels a side; what comes in is black (padding, then a random cut)",
    )
    brightness: float = Field(0.0, ge=0.0, le=1.0, description="Times up to 1 plus or minus this")
    contrast: float = Field(0.0, ge=0.0, le=1.0, description="Likewise, about the picture's mean")
    saturation: float = Field(0.0, ge=0.0, le=1.0, description="Likewise, about its grey; for colour pictures")
    cutout: int = Field(0, ge=0, le=512, description="A black square of so many pixels a side at a random place")
    mixup: float = Field(
        0.0, ge=0.0, le=10.0, description="Blends pairs of pictures and their targets; alpha of the Beta distribution"
    )
    cutmix: float = Field(
        0.0,
        ge=0.0,
        le=10.0,
        description="Pastes a piece of another picture, and mixes the targets by area; alpha of the Beta distribution. "
        "With mixup, each batch gets one of the two",
    )


class EMA(Part):
    """An exponential moving average of the weights, which is what is tested, saved and predicts."""

    decay: float = Field(0.999, gt=0.0, lt=1.0, description="Share of the average that each step keeps")


class EarlyStopping(Part):
    """Ends a training whose metric has stopped getting better; the job has succeeded."""

    metric: Metric = Field("test_loss", description="Which metric to watch")
    patience: int = Field(5, ge=1, le=10_000, description="Epochs without improvement until the training ends")
    min_delta: float = Field(0.0, ge=0.0, le=1e6, description="What counts as an improvement: more than this")


class Checkpoints(Part):
    """Which checkpoints stay. The last one always does: a job goes on from it."""

    keep: Literal["all", "best", "last", "every"] = Field(
        "all", description="`best` and `every` (with n) keep the best and the last too"
    )
    every: int = Field(10, ge=1, le=100_000, description="With `keep: every`: the epochs that this divides")
    best_by: Metric | None = Field(
        None, description="What makes a checkpoint the best. Unset: test_accuracy for classes, else test_loss"
    )
