import subprocess
import sys
from typing import Any

import pytest

from tests.worker.jobs.making import card
from worker.jobs.card import Card
from worker.jobs.errors import SpecRefused
from worker.jobs.plan import Plan
from worker.jobs.spec import Spec
from worker.training import memory
from worker.training.plan import check_single_pictures, plan

GREY = card(classes=list("abcdefghij"), train_count=60_000, test_count=10_000)
MLP_PARAMETERS = 784 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10


def planned(dataset: Card = GREY, **fields: Any) -> Plan:
    return plan(Spec.model_validate(fields), dataset)


def test_the_tutorials_job_is_counted() -> None:
    made = planned()
    assert (made.parameters, made.steps_per_epoch, made.steps) == (MLP_PARAMETERS, 938, 4690)
    assert made.checkpoint_bytes == 4 * MLP_PARAMETERS
    assert made.memory.gradients_bytes == 4 * MLP_PARAMETERS
    assert made.memory.optimizer_bytes == 0
    assert made.micro_batch == made.fitting_micro_batch == 64
    kept = 4 * 64 * (784 + 512 + 512)
    assert made.memory.activations_bytes == kept + 2 * 4 * 64 * 784 + 4 * 64 * 784  # the last: what the network sees
    assert made.spec == Spec()


@pytest.mark.parametrize(
    ("fields", "copies"),
    [
        ({"optimizer": {"momentum": 0.9}}, 1),
        ({"optimizer": {"name": "adamw"}}, 2),
        ({"optimizer": {"name": "rmsprop"}}, 1),
        ({"optimizer": {"name": "rmsprop", "momentum": 0.9}}, 2),
    ],
)
def test_optimizers_remember_so_many_numbers_of_each_weight(fields: dict[str, Any], copies: int) -> None:
    assert planned(**fields).memory.optimizer_bytes == copies * 4 * MLP_PARAMETERS


def test_an_average_of_the_weights_is_a_copy_of_them() -> None:
    assert planned(ema={}).memory.weights_bytes == 2 * planned().memory.weights_bytes


def test_parts_of_a_batch_need_less_and_half_precision_half() -> None:
    cnn = {"name": "cnn"}
    whole = planned(model=cnn, batch_size=512).memory
    parts = planned(model=cnn, batch_size=512, accumulation=8).memory
    assert parts.activations_bytes == pytest.approx(whole.activations_bytes / 8, rel=0.01)
    half = planned(model=cnn, batch_size=512, precision="bf16").memory
    assert half.activations_bytes == pytest.approx(whole.activations_bytes / 2, rel=0.05)


def test_a_limit_says_how_many_pictures_will_fit_at_once() -> None:
    made = planned(model={"name": "cnn"}, batch_size=1024, memory_limit_mb=100)
    assert made.available_bytes == 100 * 2**20
    assert made.fitting_micro_batch is not None
    assert made.memory.peak_bytes > 100 * 2**20
    assert made.fitting_micro_batch in (512, 256, 128, 64)


@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"model": {"name": "resnet18"}, "memory_limit_mb": 16}, "#/memory_limit_mb"),
        ({"model": {"hidden": [65_536] * 8}}, "#/model"),
    ],
)
def test_what_cannot_fit_is_refused(fields: dict[str, Any], pointer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "total_bytes", lambda: 2**34)
    with pytest.raises(SpecRefused) as refused:
        planned(**fields)
    assert refused.value.pointer == pointer


def test_a_batch_of_pictures_that_cannot_fit_is_refused_for_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "total_bytes", lambda: 2**27)
    with pytest.raises(SpecRefused) as refused:
        planned(batch_size=60_000, model={"hidden": []})
    assert refused.value.pointer == "#/batch_size"


def test_activations_beyond_counting_are_refused() -> None:
    wide = [{"name": "conv2d", "channels": 1, "kernel": 1, "padding": 1024}] * 190
    layers = [*wide, {"name": "conv2d", "channels": 65_536}, {"name": "global_avg_pool"}, {"name": "linear"}]
    with pytest.raises(SpecRefused):
        planned(batch_size=65_536, model={"name": "layers", "layers": layers})


def test_what_cannot_be_built_is_refused() -> None:
    layers = [{"name": "linear"}]
    with pytest.raises(SpecRefused) as refused:
        planned(model={"name": "layers", "layers": layers})
    assert refused.value.pointer.startswith("#/model/layers")


@pytest.mark.parametrize(
    ("fields", "train_count", "pointer"),
    [
        ({"model": {"batch_norm": True}}, 129, "#/batch_size"),
        ({"model": {"batch_norm": True}, "batch_size": 1}, 128, "#/batch_size"),
        ({"model": {"batch_norm": True}, "accumulation": 64}, 128, None),  # parts are of two, then
        ({"model": {"name": "resnet18"}}, 129, "#/batch_size"),
        ({"model": {"batch_norm": True}}, 130, None),
        ({}, 129, None),
        ({"model": {"name": "cnn"}}, 129, None),  # its batch norm sees many pixels of the one picture
    ],
)
def test_a_single_picture_is_too_few_for_batch_norm(
    fields: dict[str, Any], train_count: int, pointer: str | None
) -> None:
    spec, dataset = Spec.model_validate(fields), card(train_count=train_count)
    if pointer is None:
        check_single_pictures(spec, dataset)
        return
    with pytest.raises(SpecRefused) as refused:
        check_single_pictures(spec, dataset)
    assert refused.value.pointer == pointer


_MEASURED = """
import sys, torch
from tests.worker.training.test_plan import GREY, Spec, plan
from worker.networks import whole
from worker.training import memory, optim
spec = Spec.model_validate_json(sys.argv[1])
cpu, preprocessing = torch.device("cpu"), whole.preprocessing(spec, GREY)
torch.set_num_threads(1)
height, width = preprocessing.input_size
network = whole.network(spec, preprocessing, 10).to(memory_format=torch.channels_last)
X = torch.rand(spec.batch_size, 1, height, width)
network(X[:2]).sum().backward()  # what libraries set up once
network.zero_grad()
memory.reset_peak(cpu)
before = memory.peak(cpu)
optimizer = optim.optimizer(spec.optimizer, network.parameters())
for _ in range(2):
    torch.nn.functional.cross_entropy(network(X), torch.zeros(len(X), dtype=torch.int64)).backward()
    optimizer.step()
    optimizer.zero_grad()
measured = memory.peak(cpu) - before
parts = plan(spec, GREY).memory
print(measured / (parts.peak_bytes - parts.weights_bytes - parts.batch_bytes))
"""


@pytest.mark.parametrize(
    "fields",
    [
        '{"model": {"hidden": [2048, 2048]}, "batch_size": 2048, "optimizer": {"name": "adam"}}',
        '{"model": {"name": "cnn"}, "batch_size": 512}',
        '{"model": {"name": "resnet18", "small_stem": true}, "batch_size": 32, "optimizer": {"momentum": 0.9}}',
    ],
)
def test_the_predicted_memory_is_near_what_a_training_takes(fields: str) -> None:
    command = [sys.executable, "-c", _MEASURED, fields]
    ratio = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 0.6 < ratio < 1.9
