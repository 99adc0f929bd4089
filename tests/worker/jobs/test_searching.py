"""Which trials a sweep has: grids in order, draws that are the same everywhere, rungs, and who goes on."""

import os
import re
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from worker.jobs import trials
from worker.jobs.errors import SpecRefused
from worker.jobs.searching import Rung, Score, choices, ranking, rungs
from worker.jobs.spec import Halving, SweepForm

RANDOM: dict[str, Any] = {"name": "random", "trials": 20}
HALVING: dict[str, Any] = {"name": "halving", "trials": 4}
TWO: dict[str, Any] = {"seed": {"values": [0, 1, 2, 3]}}


def form(parameters: dict[str, Any], **more: Any) -> SweepForm:
    return SweepForm.model_validate({"parameters": parameters, **more})


def drawn(parameter: dict[str, Any], count: int = 200, seed: int = 0) -> list[Any]:
    search = {"name": "random", "trials": count, "seed": seed}
    return [each["seed"] for each in choices(form({"seed": parameter}, search=search))]


def refused(parameters: dict[str, Any], **more: Any) -> SpecRefused:
    with pytest.raises(SpecRefused) as caught:
        trials.of(form(parameters, **more))
    return caught.value


def test_a_grid_is_every_combination_in_the_given_order() -> None:
    both = form({"optimizer.lr": {"values": [0.1, 0.01]}, "seed": {"values": [3, 1, 2]}})
    found = [(each["optimizer.lr"], each["seed"]) for each in choices(both)]
    assert found == [(0.1, 3), (0.1, 1), (0.1, 2), (0.01, 3), (0.01, 1), (0.01, 2)]


def test_a_grid_of_more_than_a_thousand_is_refused() -> None:
    most = {"seed": {"values": list(range(500))}, "shuffle": {"values": [True, False]}}
    assert len(choices(form(most))) == 1000
    error = refused(most | {"batch_size": {"values": [1, 2]}})
    assert (error.pointer, "2000 combinations" in error.detail) == ("#/parameters", True)


def test_draws_are_those_of_yesterday() -> None:
    """Who sends a form again wants the same trials: these must not change."""
    parameters = {
        "optimizer.lr": {"min": 1e-4, "max": 0.1, "scale": "log"},
        "batch_size": {"min": 16, "max": 256, "integer": True},
        "optimizer.momentum": {"values": [0.0, 0.5, 0.9]},
    }
    found = choices(form(parameters, search={"name": "random", "trials": 3, "seed": 7}))
    assert [list(each.values()) for each in found] == [[0.0628278, 50, 0.5], [0.0041023, 30, 0.0], [0.0180898, 78, 0.5]]


def test_draws_do_not_depend_on_how_this_python_hashes() -> None:
    script = (
        "from worker.jobs.searching import choices; from worker.jobs.spec import SweepForm; "
        "print([c for c in choices(SweepForm.model_validate({'parameters': {'seed': {'min': 0, 'max': 1e9, "
        "'integer': True}, 'model': {'values': [{'name': 'mlp'}, {'name': 'cnn'}]}}, "
        "'search': {'name': 'random', 'trials': 9}}))])"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_a_trial_is_the_same_however_many_there_are_and_whatever_else_varies() -> None:
    rate = {"optimizer.lr": {"min": 1e-4, "max": 0.1, "scale": "log"}}
    few = choices(form(rate, search={"name": "random", "trials": 5}))
    assert choices(form(rate, search={"name": "random", "trials": 50}))[:5] == few
    both = choices(form({"shuffle": {"values": [True, False]}} | rate, search={"name": "random", "trials": 5}))
    assert [each["optimizer.lr"] for each in both] == [each["optimizer.lr"] for each in few]
    assert choices(form(rate, search={"name": "random", "trials": 5, "seed": 1})) != few


def test_whole_numbers_reach_both_ends_and_no_further() -> None:
    for scale in ("linear", "log"):
        found = drawn({"min": 3, "max": 40, "integer": True, "scale": scale}, 38)
        assert {type(each) for each in found} == {int}
        assert sorted(found) == list(range(3, 41)), scale  # no combination twice
    assert set(drawn({"min": -2, "max": 1, "integer": True}, 4)) == {-2, -1, 0, 1}


def test_a_log_scale_has_as_many_below_the_geometric_mean_as_above() -> None:
    log = drawn({"min": 1e-4, "max": 1.0, "scale": "log"}, 1000)
    linear = drawn({"min": 1e-4, "max": 1.0}, 1000)
    assert all(1e-4 <= each <= 1 for each in [*log, *linear])
    assert 440 < sum(each < 1e-2 for each in log) < 560
    assert sum(each < 1e-2 for each in linear) < 40
    assert all(float(f"{each:.6g}") == each for each in log)


def test_no_combination_of_finite_lists_is_drawn_twice() -> None:
    parameters = {"seed": {"values": list(range(10))}, "batch_size": {"values": [1, 2, 3, 4, 5]}}
    found = choices(form(parameters, search={"name": "random", "trials": 50}))
    assert len({tuple(each.values()) for each in found}) == 50
    error = refused(parameters, search={"name": "random", "trials": 51})
    assert (error.pointer, "only 50 combinations" in error.detail) == ("#/search/trials", True)


def test_what_draws_hardly_find_is_there_once_all_the_same() -> None:
    found = drawn({"min": 1, "max": 1000, "integer": True, "scale": "log"}, 1000)
    assert sorted(found) == list(range(1, 1001))
    assert found[:900] == drawn({"min": 1, "max": 1000, "integer": True, "scale": "log"}, 900)


@pytest.mark.parametrize(
    ("least", "most", "count"),
    [
        (0.1, 0.1003, 301),
        (-0.1003, -0.1, 301),
        (0.1, 0.1000001, 1),
        (0.12345678, 0.12346, 4),
        (999_999, 1_000_020, 4),
    ],
)
def test_a_range_has_as_many_numbers_as_six_digits_give(least: float, most: float, count: int) -> None:
    parameter = {"min": least, "max": most}
    found = drawn(parameter, count)
    assert len(set(found)) == count
    assert all(least <= each <= most for each in found)
    error = refused({"seed": parameter}, search=RANDOM | {"trials": count + 1})
    assert (error.pointer, f"only {count} combinations" in error.detail) == ("#/search/trials", True)


@pytest.mark.parametrize(("least", "most"), [(0, 1), (-1, 1), (-1e-5, 1e15), (0.1, 0.2)])
def test_a_wide_range_has_numbers_for_all_trials(least: float, most: float) -> None:
    assert len(set(drawn({"min": least, "max": most}, 1000))) == 1000


@pytest.mark.parametrize(
    ("trials", "factor", "least", "epochs", "expected"),
    [
        (27, 3, 1, 27, [(27, 1), (9, 3), (3, 9), (1, 27)]),
        (27, 3, 1, 5, [(27, 1), (9, 3), (3, 5)]),
        (8, 2, 2, 5, [(8, 2), (4, 4), (2, 5)]),
        (4, 2, 1, 32, [(4, 1), (2, 2), (1, 32)]),  # who is alone need not stop on the way
        (2, 3, 1, 2, [(2, 1), (1, 2)]),
    ],
)
def test_rungs_get_shorter_and_longer(
    trials: int, factor: int, least: int, epochs: int, expected: list[tuple[int, int]]
) -> None:
    search = Halving(name="halving", trials=trials, factor=factor, min_epochs=least)
    assert rungs(search, epochs) == [Rung(*each) for each in expected]


def test_the_best_comes_first_and_ties_go_to_the_lower_number() -> None:
    scores = [Score(1, 0.5), Score(2, None), Score(3, 0.9), Score(4, float("nan")), Score(6, 0.9), Score(5, 0.9)]
    assert ranking(scores, "test_accuracy") == [3, 5, 6, 1]
    assert ranking(scores, "test_loss") == [1, 3, 5, 6]
    assert ranking(scores, "test_mae") == ranking(scores, "train_loss") == [1, 3, 5, 6]
    assert ranking(scores, "test_r2") == [3, 5, 6, 1]


def test_a_path_puts_its_value_into_the_spec() -> None:
    parameters = {
        "model.dropout": {"values": [0.25]},
        "model": {"values": [{"name": "mlp", "hidden": [8]}, {"name": "cnn"}]},
        "optimizer.name": {"values": ["adam"]},
        "early_stopping.patience": {"values": [2]},
        "augmentation.flip": {"values": ["both"]},
    }
    first, second = trials.of(form(parameters, spec={"optimizer": {"name": "sgd", "lr": 0.5}, "epochs": 3}))
    assert first.spec.model_dump()["model"] | {"hidden": [8], "dropout": 0.25} == first.spec.model_dump()["model"]
    assert (second.spec.model.name, second.spec.model_dump()["model"]["dropout"]) == ("cnn", 0.25)  # part, then field
    assert (first.spec.optimizer.name, first.spec.optimizer.lr, first.spec.epochs) == ("adam", 0.5, 3)
    assert first.spec.early_stopping is not None
    assert (first.spec.early_stopping.patience, first.spec.augmentation.flip) == (2, "both")


@pytest.mark.parametrize(
    ("parameters", "more", "at", "sentence"),
    [
        ({"optimizer.lr": {"values": [0.1, -1]}}, {}, "optimizer.lr", "Trial 2 .*: input should be greater than 0."),
        ({"optimizer.speed": {"values": [1]}}, {}, "optimizer.speed", "nothing there"),
        ({"seed.low": {"values": [1]}}, {}, "seed.low", "nothing there"),
        ({"model.hidden.0": {"values": [1]}}, {}, "model.hidden.0", "nothing there"),
        ({"model": {"values": [{"name": "mlp", "x": 1}]}}, {}, "model", r"\(model/x\): the spec has nothing there"),
        ({"model.name": {"values": ["x"]}}, {}, "model.name", "name must be one of: mlp"),
        ({"epochs": {"values": [2.5]}}, {}, "epochs", "valid integer"),
        ({"seed": {"min": 0.5, "max": 1.5}}, {"search": RANDOM}, "seed", "valid integer"),
        ({"clip_gradient": {"min": -2, "max": -1}}, {"search": RANDOM}, "clip_gradient", "greater than 0"),
        ({"augmentation.cutmix": {"values": [1.0]}}, {"spec": {"loss": {"name": "nll"}}}, "augmentation.cutmix", "nll"),
        ({"name": {"values": ["a"]}}, {}, "name", "can vary normalization, "),
        ({"labels": {"values": [{}]}}, {}, "labels", "can vary"),
        ({"labels.team": {"values": ["a"]}}, {}, "labels.team", "can vary"),
        ({"webhooks": {"values": [[]]}}, {}, "webhooks", "can vary"),
        ({"dataset.version": {"values": [1]}}, {}, "dataset.version", "can vary"),
        ({"threads": {"values": [1]}}, {}, "threads", "can vary"),
        ({"optimizer..lr": {"values": [1]}}, {}, "optimizer..lr", "can vary"),
        ({"a/b~": {"values": [1]}}, {}, "a~1b~0", "can vary"),
        ({"epochs": {"values": [2, 3, 4, 5]}}, {"search": HALVING}, "epochs", "halving decides"),
        ({"seed": {"min": 0, "max": 9, "integer": True}}, {}, "seed", "A grid is made of `values`"),
        ({"schedule.name": {"values": ["cosine"]}} | TWO, {"search": HALVING}, "schedule.name", "cosine is not made"),
        ({"early_stopping": {"values": [{}]}} | TWO, {"search": HALVING}, "early_stopping", "ends trials early"),
    ],
)
def test_what_a_trial_would_not_be_valid_with_is_refused_at_the_parameter(
    parameters: dict[str, Any], more: dict[str, Any], at: str, sentence: str
) -> None:
    error = refused(parameters, **more)
    assert error.pointer == f"#/parameters/{at}"
    assert re.search(sentence, error.detail), error.detail


@pytest.mark.parametrize(
    ("spec", "parameters", "search", "pointer"),
    [
        ({"optimizer": {"nesterov": True}}, TWO, {}, "#/spec/optimizer/nesterov"),
        (
            {"optimizer": {"nesterov": True, "momentum": 0.9}},
            {"optimizer.momentum": {"values": [0.9, 0.0]}},
            {},
            "#/parameters",
        ),
        ({"schedule": {"name": "cosine"}}, TWO, HALVING, "#/spec/schedule"),
        ({"schedule": {"name": "one_cycle"}}, TWO, HALVING, "#/spec/schedule"),
        ({"early_stopping": {}}, TWO, HALVING, "#/spec/early_stopping"),
        ({"epochs": 1}, TWO, HALVING, "#/search/min_epochs"),
        ({"schedule": {"name": "step", "warmup_epochs": 2}}, TWO, HALVING, "#/search/min_epochs"),
    ],
)
def test_what_no_parameter_alone_is_to_blame_for_is_refused_where_it_is(
    spec: dict[str, Any], parameters: dict[str, Any], search: dict[str, Any], pointer: str
) -> None:
    more = {"search": search} if search else {}
    assert refused(parameters, spec=spec, **more).pointer == pointer


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"parameters": {}},
        {"parameters": {"seed": {}}},
        {"parameters": {"seed": 3}},
        {"parameters": {"seed": [3]}},
        {"parameters": {"seed": {"values": []}}},
        {"parameters": {"seed": {"values": [1, 1]}}},
        {"parameters": {"seed": {"values": [1], "min": 1}}},
        {"parameters": {"seed": {"min": 1}}},
        {"parameters": {"seed": {"min": 1, "max": 1}}},
        {"parameters": {"seed": {"min": 0, "max": 1, "scale": "log"}}},
        {"parameters": {"seed": {"min": 0.5, "max": 2, "integer": True}}},
        {"parameters": {"seed": {"min": 0, "max": float("inf")}}},
        {"parameters": {"seed": {"values": [float("nan")]}}},
        {"parameters": {"seed": {"values": ["epochd_" + 43 * "a"]}}},
        {"parameters": {"seed": {"values": [{"epochd_" + 43 * "a": 1}]}}},
        {"parameters": {"seed": {"values": ["a\0b"]}}},
        {"parameters": {"seed": {"values": [[[[[[[[[[[[[]]]]]]]]]]]]]}}},
        {"parameters": TWO, "search": {"name": "bayes"}},
        {"parameters": TWO, "search": {"name": "grid", "trials": 2}},
        {"parameters": TWO, "search": {"name": "random", "trials": 0}},
        {"parameters": TWO, "search": {"name": "random", "trials": 1001}},
        {"parameters": TWO, "search": HALVING | {"factor": 1}},
        {"parameters": TWO, "metric": "accuracy"},
        {"parameters": TWO, "unknown": 1},
        {"parameters": TWO, "name": ""},
    ],
)
def test_a_form_that_is_none_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SweepForm.model_validate(body)
