"""The spec: its defaults are the tutorial's, it guesses nothing, and it explains itself."""

import inspect
import json
import math
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from worker.jobs.errors import SpecRefused
from worker.jobs.spec import MLP, TORCHVISION, ActivationName, Metric, Part, Spec, fitting

DEFAULTS: dict[str, Any] = {
    "name": None,
    "priority": 0,
    "labels": {},
    "dataset": {"name": "fashion-mnist", "version": None},
    "normalization": "none",
    "augmentation": {
        "flip": "none",
        "rotate": 0.0,
        "shift": 0,
        "brightness": 0.0,
        "contrast": 0.0,
        "saturation": 0.0,
        "cutout": 0,
        "mixup": 0.0,
        "cutmix": 0.0,
    },
    "model": {"name": "mlp", "hidden": [512, 512], "activation": "relu", "dropout": 0.0, "batch_norm": False},
    "loss": {"name": "cross_entropy", "label_smoothing": 0.0, "class_weights": None},
    "optimizer": {"name": "sgd", "lr": 0.001, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
    "schedule": {"name": "constant", "warmup_epochs": 0},
    "batch_size": 64,
    "accumulation": 1,
    "epochs": 5,
    "shuffle": True,
    "seed": 0,
    "clip_gradient": None,
    "ema": None,
    "early_stopping": None,
    "checkpoints": {"keep": "all", "every": 10, "best_by": None},
    "precision": "fp32",
    "device": "auto",
    "threads": None,
    "memory_limit_mb": None,
    "webhooks": [],
}
BEFORE_THE_ENGINE = {
    "name": None,
    "labels": {},
    "dataset": {"name": "fashion-mnist", "version": 1},
    "model": {"name": "mlp", "hidden": [512, 512], "dropout": 0.0},
    "loss": {"name": "cross_entropy"},
    "optimizer": {"name": "sgd", "lr": 0.001},
    "schedule": {"name": "constant"},
    "batch_size": 64,
    "epochs": 5,
    "shuffle": True,
    "seed": 0,
    "precision": "fp32",
    "device": "auto",
}
PARTS = [name for name, value in DEFAULTS.items() if isinstance(value, dict) and name != "labels"]
CHOICES = {
    "model": ["mlp", "cnn", "layers", *TORCHVISION],
    "loss": ["cross_entropy", "nll", "mse"],
    "optimizer": ["sgd", "adam", "adamw", "rmsprop"],
    "schedule": ["constant", "step", "multistep", "cosine", "one_cycle", "plateau"],
}
LAYERS = [
    *("linear", "conv2d", "batch_norm", "flatten", "global_avg_pool", "max_pool", "avg_pool", "dropout", "dropout2d"),
    *("relu", "leaky_relu", "elu", "gelu", "silu", "tanh", "sigmoid"),
]
REQUIRED: dict[str, dict[str, Any]] = {  # of choices that cannot be made by their name alone
    "layers": {"layers": [{"name": "flatten"}]},
    "multistep": {"milestones": [1]},
    "conv2d": {"channels": 8},
}
Body = dict[str, Any]
Values = tuple[list[Any], list[Any]]  # that are accepted, and that are refused


def choice(name: str, **fields: Any) -> Body:
    return {"name": name} | REQUIRED.get(name, {}) | fields


def layers(*parts: Body) -> Body:
    return {"model": {"name": "layers", "layers": list(parts)}}


# Where each part stands, and a body that has it there; its values leave room for those of the fields.
PLACES: dict[str, tuple[str, Body]] = {
    "Spec": ("", {"batch_size": 65_536}),
    "Dataset": ("dataset", {"dataset": {}}),
    "Augmentation": ("augmentation", {"augmentation": {}}),
    "MLP": ("model", {"model": {}}),
    "CNN": ("model", {"model": choice("cnn")}),
    "Layers": ("model", {"model": choice("layers")}),
    "Torchvision": ("model", {"model": choice("resnet18")}),
    "CrossEntropy": ("loss", {"loss": {}}),
    "NLL": ("loss", {"loss": choice("nll")}),
    "MSE": ("loss", {"loss": choice("mse")}),
    "SGD": ("optimizer", {"optimizer": {"momentum": 0.5}}),
    "Adam": ("optimizer", {"optimizer": choice("adamw")}),
    "RMSprop": ("optimizer", {"optimizer": choice("rmsprop")}),
    "Constant": ("schedule", {"epochs": 100_000, "schedule": {}}),
    "StepDecay": ("schedule", {"epochs": 100_000, "schedule": choice("step")}),
    "MultiStep": ("schedule", {"epochs": 100_000, "schedule": choice("multistep")}),
    "Cosine": ("schedule", {"epochs": 100_000, "optimizer": {"lr": 1e6}, "schedule": choice("cosine")}),
    "OneCycle": ("schedule", {"epochs": 100_000, "schedule": choice("one_cycle")}),
    "Plateau": ("schedule", {"epochs": 100_000, "optimizer": {"lr": 1e6}, "schedule": choice("plateau")}),
    "EMA": ("ema", {"ema": {}}),
    "EarlyStopping": ("early_stopping", {"early_stopping": {}}),
    "Checkpoints": ("checkpoints", {"checkpoints": {}}),
    "Webhook": ("webhooks.0", {"webhooks": [{"url": "https://hooks.example.com/"}]}),
    "Threshold": ("webhooks.0.metric", {"webhooks": [{"url": "https://a.b/", "metric": {"name": "test_loss"}}]}),
    "Linear": ("model.layers.0", layers(choice("linear"))),
    "Conv2d": ("model.layers.0", layers(choice("conv2d"))),
    "BatchNorm": ("model.layers.0", layers(choice("batch_norm"))),
    "Activation": ("model.layers.0", layers(choice("gelu"))),
    "Pool": ("model.layers.0", layers(choice("avg_pool"))),
    "GlobalAvgPool": ("model.layers.0", layers(choice("global_avg_pool"))),
    "Dropout": ("model.layers.0", layers(choice("dropout2d"))),
    "Flatten": ("model.layers.0", layers(choice("flatten"))),
}
_FLAT = {"name": "flatten"}


def _none(also: tuple[Any, ...]) -> list[Any]:
    return [] if None in also else [None]


def whole(lowest: int, highest: int, *also: Any) -> Values:
    """Integers from `lowest` to `highest`, and what else is accepted."""
    beyond = [lowest - 1, highest + 1, -(10**40), 10**40]
    return [lowest, highest, *also], [*beyond, *_none(also), "3", 3.0, 1.5, True, False, [3], {}]


def number(accepted: list[float], refused: list[float], *also: Any) -> Values:
    """Finite numbers. An integer is one too."""
    odd = [math.nan, math.inf, -math.inf, 1e300, -1e300]  # Python's json writes and reads NaN and Infinity
    return [*accepted, *also], [*refused, *odd, *_none(also), "0.1", True, [0.1], {}]


def truth() -> Values:
    return [True, False], ["true", "yes", 0, 1, None]


def one_of(*names: str, also: tuple[Any, ...] = ()) -> Values:
    return [*names, *also], ["", names[0].upper(), f"{names[0]} ", [names[0]], *_none(also), 1]


def list_of(accepted: list[Any], refused: list[Any]) -> Values:
    return accepted, [*refused, [None], ["1"], [[1]], "1", 1, {}]


LR = number([5e-324, 0.1, 1, 1e6], [0.0, -0.001, 1_000_000.1])
WEIGHT_DECAY = number([0.0, 1e3], [-1e-9, 1000.1])
SHARE = number([0.0, 0.999], [1.0, 1.5, -0.1])
EPSILON = number([5e-324, 1.0], [0.0, -1e-8, 1.1])
GAMMA = number([5e-324, 1.0], [0.0, -0.1, 1.1])
MIN_LR = number([0.0, 1e6], [-1e-9, 1_000_000.1])
WARM_UP = whole(0, 10_000)
UNIT = number([0.0, 1.0], [-0.1, 1.1])
ALPHA = number([0.0, 10.0], [-0.1, 10.1])
METRIC = one_of(*get_args(Metric))
CLASS_WEIGHTS = list_of(
    [None, "balanced", [1e-9, 1e6], [1] * 10_000], [[0.0], [-1.0], [1_000_000.1], [math.nan], "even"]
)
THRESHOLD = ([-1e9, 0, 0.5, 1e9], [-1.1e9, 1.1e9, math.nan, math.inf, "0.1", True, [0.1], {}])  # null: only one may be
KERNEL = whole(1, 1024)
FIELDS: dict[str, Values] = {
    "Spec.name": (["a", "a" * 100, None], ["", "a" * 101, 1]),
    "Spec.priority": whole(-100, 100),
    "Spec.labels": (
        [{}, {"a": "b"}, {"k" * 100: "v" * 100}, {str(each): "x" for each in range(32)}],
        [{str(each): "x" for each in range(33)}, {"k" * 101: "v"}, {"k": "v" * 101}, {"": "v"}, {"k": ""}, {"k": 1}],
    ),
    "Spec.normalization": one_of("none", "dataset", "imagenet"),
    "Spec.batch_size": whole(1, 65_536),
    "Spec.accumulation": whole(1, 65_536),
    "Spec.epochs": whole(1, 100_000),
    "Spec.shuffle": truth(),
    "Spec.seed": whole(0, 2**63 - 1),
    "Spec.clip_gradient": number([5e-324, 1, 1e6], [0.0, -1.0, 1_000_000.1], None),
    "Spec.precision": one_of("fp32", "tf32", "bf16", "fp16"),
    "Spec.device": (
        ["auto", "cpu", "cuda", "cuda:0", "cuda:99"],
        ["", "CPU", "cuda:", "cuda:100", "cpu\n", "tpu", "mps", None],
    ),
    "Spec.threads": whole(1, 1024, None),
    "Spec.memory_limit_mb": whole(16, 2**24, None),
    "Dataset.name": (
        ["mnist", "shoes", "0", "a.b_c-d", "a" * 64],
        ["", "../shoes", "a/b", "SHOES", ".a", "-a", "a b", "a\n", "a\0", "a" * 65, "schuhe-größe", None],
    ),
    "Dataset.version": whole(1, 2**31 - 1, None),
    "Augmentation.flip": one_of("none", "horizontal", "vertical", "both"),
    "Augmentation.rotate": number([0.0, 180], [-0.1, 180.1]),
    "Augmentation.shift": whole(0, 512),
    "Augmentation.brightness": UNIT,
    "Augmentation.contrast": UNIT,
    "Augmentation.saturation": UNIT,
    "Augmentation.cutout": whole(0, 512),
    "Augmentation.mixup": ALPHA,
    "Augmentation.cutmix": ALPHA,
    "MLP.hidden": list_of([[], [1], [65_536] * 32], [[0], [-1], [65_537], [1] * 33, [1.0], [True], None]),
    "MLP.activation": one_of(*get_args(ActivationName)),
    "MLP.dropout": SHARE,
    "MLP.batch_norm": truth(),
    "CNN.channels": list_of([[1], [65_536] * 8], [[], [0], [65_537], [1] * 9, [1.0], None]),
    "CNN.hidden": whole(1, 65_536),
    "CNN.dropout": SHARE,
    "Layers.layers": list_of([[_FLAT], [_FLAT] * 200], [[], [_FLAT] * 201, [{}], [{"name": "lstm"}], None]),
    "Torchvision.image_size": whole(1, 4096, None),
    "Torchvision.small_stem": truth(),
    "Torchvision.weights": (["imagenet", "mine-2.1", None], ["", "../mine", "a/b", "Mine", "a" * 65, 1]),
    "CrossEntropy.label_smoothing": SHARE,
    "CrossEntropy.class_weights": CLASS_WEIGHTS,
    "NLL.class_weights": CLASS_WEIGHTS,
    "SGD.lr": LR,
    "SGD.momentum": SHARE,
    "SGD.nesterov": truth(),
    "SGD.weight_decay": WEIGHT_DECAY,
    "Adam.lr": LR,
    "Adam.betas": (
        [[0.0, 0.999], [0.5, 0]],
        [[0.9], [0.9] * 3, [1.0, 0.9], [0.9, -0.1], [0.9, "0.9"], [], "ab", 0.9, None, {}],
    ),
    "Adam.eps": EPSILON,
    "Adam.weight_decay": WEIGHT_DECAY,
    "RMSprop.lr": LR,
    "RMSprop.alpha": SHARE,
    "RMSprop.momentum": SHARE,
    "RMSprop.eps": EPSILON,
    "RMSprop.weight_decay": WEIGHT_DECAY,
    "Constant.warmup_epochs": WARM_UP,
    "StepDecay.every": whole(1, 100_000),
    "StepDecay.gamma": GAMMA,
    "StepDecay.warmup_epochs": WARM_UP,
    "MultiStep.milestones": list_of(
        [[1], [3, 100_000], list(range(1, 101))], [[], [0], [100_001], list(range(1, 102)), [1.0], None]
    ),
    "MultiStep.gamma": GAMMA,
    "MultiStep.warmup_epochs": WARM_UP,
    "Cosine.min_lr": MIN_LR,
    "Cosine.warmup_epochs": WARM_UP,
    "OneCycle.warmup_epochs": whole(0, 10_000, None),
    "Plateau.metric": METRIC,
    "Plateau.patience": whole(0, 10_000),
    "Plateau.gamma": number([5e-324, 0.999], [0.0, 1.0, -0.1]),
    "Plateau.min_lr": MIN_LR,
    "Plateau.warmup_epochs": WARM_UP,
    "EMA.decay": number([5e-324, 0.9999], [0.0, 1.0, -0.1]),
    "EarlyStopping.metric": METRIC,
    "EarlyStopping.patience": whole(1, 10_000),
    "EarlyStopping.min_delta": number([0.0, 1e6], [-1e-9, 1_000_000.1]),
    "Checkpoints.keep": one_of("all", "best", "last", "every"),
    "Checkpoints.every": whole(1, 100_000),
    "Checkpoints.best_by": one_of(*get_args(Metric), also=(None,)),
    "Webhook.url": (["https://a.b/", "h" * 2000], ["", "h" * 2001, "https://a.b/\0", "https://a.b/\n", 1, None]),
    "Webhook.events": list_of([["job.failed"], ["job.succeeded"] * 4], [["job.failed"] * 5, ["job.began"], None]),
    "Webhook.metric": ([None], [1, "test_loss", True, []]),
    "Threshold.above": THRESHOLD,
    "Threshold.below": THRESHOLD,
    "Linear.features": whole(1, 65_536, None),
    "Linear.bias": truth(),
    "Conv2d.channels": whole(1, 65_536),
    "Conv2d.kernel": KERNEL,
    "Conv2d.stride": KERNEL,
    "Conv2d.padding": ([0, 1024, "same"], [-1, 1025, 1.0, True, "valid", "1", None, [1], {}]),
    "Conv2d.dilation": KERNEL,
    "Conv2d.groups": whole(1, 65_536),
    "Conv2d.bias": truth(),
    "Pool.kernel": KERNEL,
    "Pool.stride": whole(1, 1024, None),
    "Pool.padding": whole(0, 512),
    "Dropout.p": SHARE,
}

# What cannot work together, by a piece of its sentence, and its neighbour that can.
TOGETHER: dict[str, list[tuple[Body, str, Body]]] = {
    "Nesterov needs": [
        (
            {"optimizer": {"nesterov": True}},
            "#/optimizer/nesterov",
            {"optimizer": {"nesterov": True, "momentum": 0.1}},
        )
    ],
    "milestones must increase": [
        (
            {"schedule": choice("multistep", milestones=milestones)},
            "#/schedule/milestones",
            {"schedule": choice("multistep", milestones=[2, 3])},
        )
        for milestones in ([3, 2], [2, 2])
    ],
    "above the optimizer's": [
        (
            {"optimizer": {"lr": 0.1}, "schedule": choice(name, min_lr=0.2)},
            "#/schedule/min_lr",
            {"optimizer": {"lr": 0.1}, "schedule": choice(name, min_lr=0.1)},
        )
        for name in ("cosine", "plateau")
    ],
    "longer than the training": [
        (
            {"epochs": 3, "schedule": choice(name, warmup_epochs=most + 1)},
            "#/schedule/warmup_epochs",
            {"epochs": 3, "schedule": choice(name, warmup_epochs=most)},
        )
        for name in ("constant", "step", "multistep", "cosine", "plateau", "one_cycle")
        for most in [2 if name == "one_cycle" else 3]
    ],
    "more parts than it has pictures": [
        ({"batch_size": 4, "accumulation": 5}, "#/accumulation", {"batch_size": 4, "accumulation": 4})
    ],
    "Mixed targets are not classes": [
        (
            {"augmentation": mixing, "loss": {"name": "nll"}},
            f"#/augmentation/{which}",
            {"augmentation": mixing, "loss": {"name": loss}},
        )
        for which, mixing in (
            ("mixup", {"mixup": 0.1}),
            ("cutmix", {"cutmix": 1.0}),
            ("mixup", {"mixup": 0.1, "cutmix": 1.0}),
        )
        for loss in ("cross_entropy", "mse")
    ],
    "has no small stem": [
        (
            {"model": choice("vgg11", small_stem=True)},
            "#/model/small_stem",
            {"model": choice(name, small_stem=True)},
        )
        for name in ("resnet18", "resnext50_32x4d", "wide_resnet50_2")
    ],
    "tf32 is arithmetic of a GPU": [
        ({"precision": "tf32", "device": "cpu"}, "#/precision", {"precision": "tf32", "device": device})
        for device in ("auto", "cuda", "cuda:1")
    ],
}


def parts(annotation: Any = Spec) -> Iterator[type[Part]]:
    """All parts that a spec can be made of."""
    if isinstance(annotation, type) and issubclass(annotation, Part):
        yield annotation
        for field in annotation.model_fields.values():
            yield from parts(field.annotation)
    for argument in get_args(annotation):
        yield from parts(argument)


def placed(field: str, value: object) -> tuple[str, Body]:
    """A body in which the field of a part has this value, and the path to it."""
    part, _, name = field.partition(".")
    path, body = PLACES[part]
    body = deepcopy(body)
    (at(body, path) if path else body)[name] = value
    return f"{path}.{name}".removeprefix("."), body


def nested(path: str, value: object) -> Body:
    """`nested("optimizer.lr", 1)` is `{"optimizer": {"lr": 1}}`."""
    first, _, rest = path.partition(".")
    return {first: nested(rest, value) if rest else value}


def at(body: Any, path: str) -> Any:
    for part in path.split("."):
        body = body[int(part) if part.isdecimal() else part]
    return body


def assert_refused(path: str, body: Body) -> None:
    """In Python and as JSON, and for this field's sake."""
    with pytest.raises(ValidationError) as caught:
        Spec.model_validate(body)
    found = [[str(part) for part in each["loc"] if "(" not in str(part)] for each in caught.value.errors()]
    assert {".".join(each[: path.count(".") + 1]) for each in found} == {path}
    with pytest.raises(ValidationError):
        Spec.model_validate_json(json.dumps(body))


def read(body: Body) -> Any:
    """The spec as JSON; the same from Python, from JSON, and from its own JSON."""
    spec = Spec.model_validate(body)
    written = json.loads(json.dumps(spec.model_dump(mode="json")))
    assert Spec.model_validate_json(json.dumps(body)) == Spec.model_validate(written) == spec
    return written


def test_an_empty_spec_means_the_tutorial() -> None:
    assert Spec.model_validate({}).model_dump() == DEFAULTS
    assert Spec.model_validate_json("{}") == Spec()


def test_a_spec_survives_json() -> None:
    body = {
        "name": "shoes ☃ 👟",
        "labels": {"team": "a", "größe": "42"},
        "model": {"name": "mlp", "hidden": [], "activation": "gelu", "dropout": 0.25, "batch_norm": True},
        "optimizer": {"name": "adamw", "lr": 0.1, "betas": [0.8, 0.9], "eps": 1e-6, "weight_decay": 0.05},
        "batch_size": 1,
        "epochs": 100_000,
        "shuffle": False,
        "seed": 2**63 - 1,
        "device": "cuda:7",
    }
    assert read(body) == DEFAULTS | body


def test_a_spec_of_before_it_had_these_fields_means_the_same() -> None:
    assert read(BEFORE_THE_ENGINE) == DEFAULTS | {"dataset": {"name": "fashion-mnist", "version": 1}}


@given(
    hidden=st.lists(st.integers(1, 65_536), max_size=32),
    dropout=st.floats(0, 1, exclude_max=True),
    lr=st.floats(0, 1e6, exclude_min=True),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=30, deadline=None, derandomize=True, database=None)
def test_numbers_come_back_from_json_as_they_were(hidden: list[int], dropout: float, lr: float, seed: int) -> None:
    body = {"model": {"hidden": hidden, "dropout": dropout}, "optimizer": {"lr": lr}, "seed": seed}
    written = read(body)
    assert {name: at(written, name) for name in ("model.hidden", "model.dropout", "optimizer.lr", "seed")} == {
        "model.hidden": hidden,
        "model.dropout": dropout,
        "optimizer.lr": lr,
        "seed": seed,
    }


def test_the_tables_are_whole() -> None:
    found = {part.__name__: part for part in parts()}
    assert found.keys() == PLACES.keys()
    fields = {
        f"{name}.{field}"
        for name, part in found.items()
        for field, about in part.model_fields.items()
        if not (field == "name" and name not in ("Spec", "Dataset"))
        and not (name == "Spec" and any(parts(about.annotation)))
    }
    assert fields == FIELDS.keys()
    assert inspect.getsource(fitting).count("raise SpecRefused") == len(TOGETHER)


@pytest.mark.parametrize("field", FIELDS)
def test_fields_have_bounds(field: str) -> None:
    accepted, refused = FIELDS[field]
    for value in accepted:
        path, body = placed(field, value)
        assert at(read(body), path) == value
    for value in refused:
        assert_refused(*placed(field, value))


@pytest.mark.parametrize("part", PLACES)
def test_an_unknown_field_is_refused_at_every_level(part: str) -> None:
    assert_refused(*placed(f"{part}.extra", 1))


@pytest.mark.parametrize("path", [*PARTS, "labels", "ema", "early_stopping"])
@pytest.mark.parametrize("value", [None, "mlp", 1, []])
def test_nothing_but_an_object_is_a_part(path: str, value: object) -> None:
    if value is None and path in ("ema", "early_stopping"):
        assert read({path: None}) == DEFAULTS
    else:
        assert_refused(path, {path: value})


@pytest.mark.parametrize(("field", "name"), [(field, name) for field in CHOICES for name in CHOICES[field]])
def test_parts_are_chosen_by_their_names(field: str, name: str) -> None:
    assert read({field: choice(name)})[field]["name"] == name


@pytest.mark.parametrize("name", LAYERS)
def test_layers_are_chosen_by_their_names(name: str) -> None:
    assert read(layers(choice(name), _FLAT))["model"]["layers"][0]["name"] == name


@pytest.mark.parametrize("field", [*CHOICES, "layer"])
@pytest.mark.parametrize("name", ["xyzzy", "", "SGD", None, 1, ["sgd"], "(sgd)"])
def test_a_name_that_there_is_not_is_told_the_names_that_there_are(field: str, name: object) -> None:
    body = layers({"name": name}) if field == "layer" else {field: {"name": name}}
    with pytest.raises(ValidationError) as caught:
        Spec.model_validate(body)
    (error,) = caught.value.errors()
    names = ["mlp", "cnn", "layers", "resnet18"] if field == "model" else LAYERS if field == "layer" else CHOICES[field]
    assert all(known in error["msg"] for known in names)
    assert "xyzzy" not in error["msg"]


def test_the_fields_of_one_choice_are_not_those_of_another() -> None:
    assert_refused("optimizer.momentum", {"optimizer": choice("adam", momentum=0.9)})
    assert_refused("optimizer.betas", {"optimizer": {"betas": [0.9, 0.999]}})
    assert_refused("model.channels", {"model": {"channels": [8]}})
    assert_refused("loss.label_smoothing", {"loss": choice("mse", label_smoothing=0.1)})
    assert_refused("schedule.gamma", {"schedule": {"gamma": 0.1}})
    assert_refused("model.layers.0.p", layers(choice("relu", p=0.5)))


@pytest.mark.parametrize(("part", "field"), [("Layers", "layers"), ("MultiStep", "milestones"), ("Conv2d", "channels")])
def test_what_has_no_default_is_required(part: str, field: str) -> None:
    path, body = placed(f"{part}.{field}", None)
    del at(body, PLACES[part][0])[field]
    assert_refused(path, body)


@pytest.mark.parametrize(
    ("sentence", "together", "pointer", "apart"),
    [(sentence, *row) for sentence, rows in TOGETHER.items() for row in rows],
)
def test_what_cannot_work_together_is_refused_where_it_stands(
    sentence: str, together: Body, pointer: str, apart: Body
) -> None:
    with pytest.raises(SpecRefused, match=sentence) as caught:
        Spec.model_validate(together)
    assert caught.value.pointer == pointer
    assert caught.value.detail.endswith(".")
    with pytest.raises(SpecRefused, match=sentence):
        Spec.model_validate_json(json.dumps(together))
    read(apart)


def test_one_cycle_finds_room_for_its_rise_in_any_training() -> None:
    for epochs in (1, 2, 100_000):
        assert read({"epochs": epochs, "schedule": choice("one_cycle")})["schedule"]["warmup_epochs"] is None


@pytest.mark.parametrize("text", ["\0", "a\0b", "a\nb", "\x1b[31m", "\x7f", "\x85", "\ud800", "a\udfff"])
def test_texts_hold_no_control_characters_and_no_half_pairs(text: str) -> None:
    assert_refused("name", {"name": text})
    assert_refused("labels", {"labels": {"key": text}})
    assert_refused("labels", {"labels": {text: "value"}})


@pytest.mark.parametrize("text", ["naïve", "日本語", "👩‍🔬", "a b", "'; DROP TABLE jobs; --", "<b>"])
def test_any_other_text_is_kept_as_it_is(text: str) -> None:
    spec = Spec.model_validate({"name": text, "labels": {text: text}})
    assert (spec.name, spec.labels) == (text, {text: text})


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Spec().epochs = 3  # type: ignore[misc]


def test_no_default_is_shared_between_specs() -> None:
    one = Spec.model_validate({})
    one.labels["team"] = "a"
    assert isinstance(one.model, MLP)
    one.model.hidden.append(7)
    assert Spec.model_validate({}).model_dump() == DEFAULTS


def test_every_part_and_every_field_says_what_it_is() -> None:
    found = {part.__name__: part for part in parts()}
    assert [name for name, part in found.items() if not part.__doc__] == []
    assert [
        f"{name}.{field}"
        for name, part in found.items()
        for field, about in part.model_fields.items()
        # A choice's own name is explained by the part.
        if not about.description and (field != "name" or name in ("Spec", "Dataset"))
    ] == []


def test_what_a_field_says_is_in_the_schema() -> None:
    schema = Spec.model_json_schema()
    assert schema["properties"]["batch_size"]["description"] == "Pictures per step"
    assert {part.__name__ for part in parts()} == {"Spec", *schema["$defs"]}
    assert all(about.get("description") for about in schema["$defs"].values())
