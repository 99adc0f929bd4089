"""Patches of a spec: JSON Merge Patch, and which of them leave a training as it is."""

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.jobs.patches import keeps_training, patched
from worker.jobs.spec import Spec

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=12,
)
_OBJECT = st.dictionaries(st.sampled_from("abc"), _JSON, max_size=3)
_PROPERTY = settings(max_examples=300, deadline=None, derandomize=True, database=None)


def merged(target: Any, patch: Any) -> Any:
    """RFC 7396, section 2, line by line."""
    if not isinstance(patch, dict):
        return patch
    if not isinstance(target, dict):
        target = {}
    for name, value in patch.items():
        if value is None:
            if name in target:
                del target[name]
        else:
            target[name] = merged(target.get(name), value)
    return target


@pytest.mark.parametrize(
    ("spec", "patch", "result"),
    [  # of RFC 7396, appendix A: those that patch an object by an object
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        # and two of ours
        ({"a": 1}, {}, {"a": 1}),
        ({"a": 1}, {"a": {"b": 2, "c": None}}, {"a": {"b": 2}}),
    ],
)
def test_a_patch_merges(spec: dict[str, Any], patch: dict[str, Any], result: dict[str, Any]) -> None:
    assert patched(spec, patch) == result


@given(spec=_OBJECT, patch=_OBJECT)
@_PROPERTY
def test_a_patch_does_what_the_standard_says_and_modifies_neither(spec: dict[str, Any], patch: dict[str, Any]) -> None:
    spec_before, patch_before = deepcopy(spec), deepcopy(patch)
    result = patched(spec, patch)
    assert (spec, patch) == (spec_before, patch_before)
    assert result == merged(deepcopy(spec), deepcopy(patch))
    assert patched(result, patch) == result


def test_null_goes_back_to_the_default() -> None:
    spec = Spec.model_validate({"optimizer": {"name": "adam", "lr": 0.5}, "threads": 2}).model_dump(mode="json")
    assert Spec.model_validate(patched(spec, {"optimizer": None, "threads": None})) == Spec()
    again = Spec.model_validate(patched(spec, {"optimizer": {"lr": None}}))
    assert (again.optimizer.name, again.optimizer.lr, again.threads) == ("adam", 1e-3, 2)


@pytest.mark.parametrize(
    ("patch", "keeps"),
    [
        ({"accumulation": 4}, True),
        ({"memory_limit_mb": None}, True),
        ({"checkpoints": {"keep": "last"}}, True),
        ({"device": "auto"}, True),
        ({"device": "auto", "accumulation": 2}, True),
        ({"batch_size": 32}, False),
        ({"optimizer": {"lr": 1e-4}}, False),
        ({"precision": "bf16"}, False),
        ({"device": "auto", "seed": 1}, False),
    ],
)
def test_a_training_is_kept_where_its_result_does_not_change(patch: dict[str, Any], keeps: bool) -> None:
    assert keeps_training(patch) is keeps


def test_no_other_part_of_a_spec_leaves_the_result_as_it_is() -> None:
    harmless = {name for name in Spec.model_fields if keeps_training({name: None})}
    assert harmless == {"accumulation", "memory_limit_mb", "checkpoints", "device"}
