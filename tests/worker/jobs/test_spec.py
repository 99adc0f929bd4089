"""The spec: its defaults are the tutorial's, it guesses nothing, and it explains itself."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from worker.jobs.spec import Spec

DEFAULTS = {
    "name": None,
    "labels": {},
    "dataset": {"name": "fashion-mnist", "version": None},
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
INTEGERS = ["batch_size", "epochs", "seed"]


def nested(path: str, value: object) -> dict[str, Any]:
    """`nested("optimizer.lr", 1)` is `{"optimizer": {"lr": 1}}`."""
    first, _, rest = path.partition(".")
    return {first: nested(rest, value) if rest else value}


def at(spec: Spec, path: str) -> object:
    found: Any = spec.model_dump()
    for part in path.split("."):
        found = found[part]
    return found


def assert_refused(path: str, value: object) -> None:
    """In Python and as JSON, and for this field's sake."""
    body = nested(path, value)
    with pytest.raises(ValidationError) as caught:
        Spec.model_validate(body)
    assert {".".join(map(str, each["loc"][: path.count(".") + 1])) for each in caught.value.errors()} == {path}
    with pytest.raises(ValidationError):
        Spec.model_validate_json(json.dumps(body))


def test_an_empty_spec_means_the_tutorial() -> None:
    assert Spec.model_validate({}).model_dump() == DEFAULTS
    assert Spec.model_validate_json("{}") == Spec()


def test_a_spec_survives_json() -> None:
    body = {
        "name": "shoes ☃ 👟",
        "labels": {"team": "a", "größe": "42"},
        "model": {"name": "mlp", "hidden": [], "dropout": 0.25},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "batch_size": 1,
        "epochs": 100_000,
        "shuffle": False,
        "seed": 2**63 - 1,
        "device": "cuda:7",
    }
    spec = Spec.model_validate(body)
    assert spec.model_dump() == DEFAULTS | body
    assert Spec.model_validate_json(spec.model_dump_json()) == spec
    assert Spec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


@given(
    hidden=st.lists(st.integers(1, 65_536), max_size=32),
    dropout=st.floats(0, 1, exclude_max=True),
    lr=st.floats(0, 1e6, exclude_min=True),
    seed=st.integers(0, 2**63 - 1),
)
@settings(max_examples=30, deadline=None, derandomize=True, database=None)
def test_numbers_come_back_from_json_as_they_were(hidden: list[int], dropout: float, lr: float, seed: int) -> None:
    body = {"model": {"hidden": hidden, "dropout": dropout}, "optimizer": {"lr": lr}, "seed": seed}
    spec = Spec.model_validate(body)
    assert Spec.model_validate(json.loads(spec.model_dump_json())) == spec
    assert (spec.model.hidden, spec.model.dropout, spec.optimizer.lr, spec.seed) == (hidden, dropout, lr, seed)


@pytest.mark.parametrize("path", ["learning_rate", *(f"{part}.extra" for part in PARTS)])
def test_an_unknown_field_is_refused_at_every_level(path: str) -> None:
    assert_refused(path, 1)


@pytest.mark.parametrize("path", [*INTEGERS, "model.hidden.0"])
@pytest.mark.parametrize("value", ["3", 3.0, 1.5, True, False, None, [3], {}])
def test_nothing_but_an_integer_is_an_integer(path: str, value: object) -> None:
    if path == "model.hidden.0":
        with pytest.raises(ValidationError):
            Spec.model_validate({"model": {"hidden": [value]}})
    else:
        assert_refused(path, value)


@pytest.mark.parametrize("path", ["optimizer.lr", "model.dropout"])
@pytest.mark.parametrize("value", ["0.1", True, None, [0.1]])
def test_nothing_but_a_number_is_a_number(path: str, value: object) -> None:
    assert_refused(path, value)


@pytest.mark.parametrize("value", ["true", "yes", 0, 1, None])
def test_nothing_but_true_and_false_is_a_truth_value(value: object) -> None:
    assert_refused("shuffle", value)


@pytest.mark.parametrize("path", [*PARTS, "labels"])
@pytest.mark.parametrize("value", [None, "mlp", 1, []])
def test_nothing_but_an_object_is_a_part(path: str, value: object) -> None:
    assert_refused(path, value)


def test_an_integer_is_a_number() -> None:
    assert Spec.model_validate({"optimizer": {"lr": 1}}).optimizer.lr == 1.0


@pytest.mark.parametrize(
    ("path", "lowest", "highest"),
    [
        ("batch_size", 1, 65_536),
        ("epochs", 1, 100_000),
        ("seed", 0, 2**63 - 1),
    ],
)
def test_integers_have_bounds(path: str, lowest: int, highest: int) -> None:
    for value in (lowest, highest):
        assert at(Spec.model_validate(nested(path, value)), path) == value
    for value in (lowest - 1, highest + 1, -(10**40), 10**40):
        assert_refused(path, value)


@pytest.mark.parametrize(
    ("path", "accepted", "refused"),
    [
        ("optimizer.lr", [5e-324, 1e6], [0.0, -0.001, 1_000_000.1, 1e300]),
        ("model.dropout", [0.0, 0.999], [1.0, 1.5, -0.1]),
        ("model.hidden", [[], [1], [65_536] * 32], [[0], [-1], [65_537], [1] * 33, [[1]]]),
        (
            "device",
            ["auto", "cpu", "cuda", "cuda:0", "cuda:99"],
            ["", "CPU", "cuda:", "cuda:100", "cpu\n", "tpu", "mps"],
        ),
        ("precision", ["fp32"], ["fp16", "FP32", ""]),
        ("name", ["a", "a" * 100, None], ["", "a" * 101, 1]),
        ("labels", [{}, {"a": "b"}, {str(each): "x" for each in range(32)}], [{str(each): "x" for each in range(33)}]),
        ("labels", [{"k" * 100: "v" * 100}], [{"k" * 101: "v"}, {"k": "v" * 101}, {"": "v"}, {"k": ""}, {"k": 1}]),
        (
            "dataset.name",
            ["mnist", "shoes", "0", "a.b_c-d", "a" * 64],
            ["", "../shoes", "a/b", "SHOES", ".a", "-a", "a b", "a\n", "a\0", "a" * 65, "schuhe-größe"],
        ),
        ("dataset.version", [None, 1, 2**31 - 1], [0, -1, 2**31, "1", 1.0]),
        ("loss.name", ["cross_entropy", "mse"], ["", "MSE", "nll", None]),
    ],
)
def test_fields_have_bounds(path: str, accepted: list[object], refused: list[object]) -> None:
    for value in accepted:
        assert at(Spec.model_validate(nested(path, value)), path) == value
    for value in refused:
        assert_refused(path, value)


@pytest.mark.parametrize("path", ["optimizer.lr", "model.dropout"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_are_finite(path: str, value: float) -> None:
    assert_refused(path, value)  # Python's json writes and reads NaN and Infinity


@pytest.mark.parametrize("text", ["\0", "a\0b", "a\nb", "\x1b[31m", "\x7f", "\x85", "\ud800", "a\udfff"])
def test_texts_hold_no_control_characters_and_no_half_pairs(text: str) -> None:
    assert_refused("name", text)
    assert_refused("labels", {"key": text})
    assert_refused("labels", {text: "value"})


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
    one.model.hidden.append(7)
    assert Spec.model_validate({}).model_dump() == DEFAULTS


def test_every_field_says_what_it_is() -> None:
    schema = Spec.model_json_schema()
    parts = {"Spec": schema} | schema["$defs"]
    silent = []
    for name, part in parts.items():
        for field, about in part["properties"].items():
            # A part's own name is explained by the part.
            named = field == "name" and "const" in about and "description" in part
            if not about.get("description") and not (named and part["description"]):
                silent.append(f"{name}.{field}")
    assert silent == []
    assert {"Spec", "MLP", "SGD"} <= set(parts)
