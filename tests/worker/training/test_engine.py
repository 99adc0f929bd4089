"""An epoch as an attempt runs it: equal to hand-written loops, the same twice, and resumed to the same bits."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from tests.tiny import TEST, TRAIN, prepare_tiny
from tests.worker.training.making import Silent, engine, trained
from worker.datasets.opening import Prepared
from worker.jobs.errors import Diverged
from worker.training.checkpoints import digest
from worker.training.order import derived_seed

BATCH = 64


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare_tiny(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def tinier(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare_tiny(tmp_path_factory.mktemp("data"), train=40, test=10)


# Parity: what the tutorial teaches, written by hand with stock torch


def stack(*more: nn.Module, dropout: float = 0.0, norm: bool = False) -> nn.Sequential:
    def block(inputs: int) -> list[nn.Module]:
        return [
            nn.Linear(inputs, 32),
            *([nn.BatchNorm1d(32)] if norm else []),
            nn.ReLU(),
            *([nn.Dropout(dropout)] if dropout else []),
        ]

    return nn.Sequential(nn.Flatten(), *block(784), *block(32), nn.Linear(32, 10), *more)


def one_hot_mse(pred: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(pred, nn.functional.one_hot(y, 10).float())


Variant = tuple[dict[str, Any], Callable[[], nn.Module], Callable[[Tensor, Tensor], Tensor]]
VARIANTS: dict[str, Variant] = {
    "plain": ({}, stack, nn.functional.cross_entropy),
    "dropout": ({"model": {"dropout": 0.3}}, lambda: stack(dropout=0.3), nn.functional.cross_entropy),
    "batch norm": ({"model": {"batch_norm": True}}, lambda: stack(norm=True), nn.functional.cross_entropy),
    "nll": ({"loss": {"name": "nll"}}, lambda: stack(nn.LogSoftmax(dim=1)), nn.functional.nll_loss),
    "mse": ({"loss": {"name": "mse"}}, stack, one_hot_mse),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_engine_gives_the_weights_and_losses_of_a_hand_written_loop_to_the_bit(name: str, tiny: Prepared) -> None:
    fields, build, loss_fn = VARIANTS[name]
    fields = fields | {"model": {"hidden": [32, 32], **fields.get("model", {})}, "optimizer": {"lr": 0.1}}
    made, results = trained(tiny, epochs=2, shuffle=False, seed=3, **fields)

    torch.manual_seed(3)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    X, y = tiny.train.images.float() / 255, tiny.train.labels
    for epoch in (1, 2):
        torch.manual_seed(derived_seed(3, epoch, "step"))  # the masks of dropout
        model.train()
        total = 0.0
        for start in range(0, TRAIN, BATCH):
            batch, targets = X[start : start + BATCH], y[start : start + BATCH]
            loss = loss_fn(model(batch), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item() * len(batch)
        model.eval()
        with torch.no_grad():
            pred = model(tiny.test.images.float() / 255)
        assert results[epoch - 1].train_loss == pytest.approx(total / TRAIN, abs=1e-12)
        assert results[epoch - 1].test_accuracy == (pred.argmax(1) == tiny.test.labels).sum().item() / 100
        assert results[epoch - 1].test_loss == pytest.approx(float(loss_fn(pred, tiny.test.labels)), abs=1e-6)
    theirs, ours = list(model.state_dict().values()), list(made.served.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))


# Determinism: the same spec twice is the same bits, another seed is not

FAMILIES: dict[str, dict[str, Any]] = {
    "mlp": {"model": {"hidden": [16], "dropout": 0.2, "batch_norm": True}},
    "cnn": {"model": {"name": "cnn", "channels": [4, 8], "hidden": 16, "dropout": 0.2}},
    "layers": {
        "model": {
            "name": "layers",
            "layers": [{"name": "conv2d", "channels": 4}, {"name": "relu"}, {"name": "flatten"}, {"name": "linear"}],
        }
    },
    "resnet18": {"model": {"name": "resnet18", "small_stem": True}},
    "mobilenet": {"model": {"name": "mobilenet_v3_small", "image_size": 32}},
    "vit-like": {"model": {"name": "shufflenet_v2_x0_5", "image_size": 32}},
}
SMALL: dict[str, Any] = {"model": {"hidden": [16]}}
PARTS: dict[str, dict[str, Any]] = {
    **{f"{name} of precision": {"precision": name} for name in ("bf16", "fp16", "tf32")},
    "momentum": {"optimizer": {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}},
    **{name: {"optimizer": {"name": name}} for name in ("adam", "adamw", "rmsprop")},
    "step": {"schedule": {"name": "step", "every": 1}},
    "multistep": {"schedule": {"name": "multistep", "milestones": [1]}},
    "cosine": {"schedule": {"name": "cosine", "warmup_epochs": 1}},
    "one_cycle": {"schedule": {"name": "one_cycle"}},
    "plateau": {"schedule": {"name": "plateau", "patience": 0}},
    "flip": {"augmentation": {"flip": "both"}},
    "rotate": {"augmentation": {"rotate": 20.0}},
    "shift": {"augmentation": {"shift": 2}},
    "jitter": {"augmentation": {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3}},
    "cutout": {"augmentation": {"cutout": 8}},
    "mixup": {"augmentation": {"mixup": 0.2}},
    "cutmix": {"augmentation": {"cutmix": 1.0, "mixup": 1.0}},
    "clipped": {"clip_gradient": 0.5},
    "averaged": {"ema": {"decay": 0.9}},
    "in parts": {"accumulation": 3},
    "as they lie": {"shuffle": False},
    "balanced": {"loss": {"class_weights": "balanced", "label_smoothing": 0.1}},
    "nll": {"loss": {"name": "nll"}},
    "one-hot": {"loss": {"name": "mse"}},
    "normalized": {"normalization": "dataset"},
}
MATRIX = FAMILIES | {name: SMALL | {"optimizer": {"lr": 0.05}} | fields for name, fields in PARTS.items()}


@pytest.mark.parametrize("name", MATRIX)
def test_the_same_spec_twice_gives_the_same_weights_and_another_seed_others(name: str, tinier: Prepared) -> None:
    fields = {"batch_size": 16} | MATRIX[name]
    digests = [digest(trained(tinier, seed=seed, **fields)[0].served.state_dict()) for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("name", PARTS)
def test_a_training_that_goes_on_from_a_checkpoint_gives_the_same_bits(
    name: str, tinier: Prepared, tmp_path: Path
) -> None:
    fields = {"batch_size": 16, "epochs": 4} | MATRIX[name]
    uninterrupted = engine(tinier, **fields)
    curve = [uninterrupted.run_epoch(epoch, Silent()).result for epoch in (1, 2, 3, 4)]
    before = engine(tinier, **fields)
    for epoch in (1, 2):
        before.run_epoch(epoch, Silent())
    torch.save([before.served.state_dict(), before.state_dict()], tmp_path / "state.pt")
    after = engine(tinier, **fields)
    after.load_state_dict(*torch.load(tmp_path / "state.pt", weights_only=True))
    resumed = [after.run_epoch(epoch, Silent()).result for epoch in (3, 4)]
    assert digest(after.served.state_dict()) == digest(uninterrupted.served.state_dict())
    for again, once in zip(resumed, curve[2:], strict=True):
        assert (again.train_loss, again.test_loss, again.learning_rate) == (
            once.train_loss,
            once.test_loss,
            once.learning_rate,
        )


# What is measured, and what ends a training


def test_an_epoch_is_measured(tiny: Prepared) -> None:
    _, (result, _) = trained(tiny, model={"hidden": [16]})
    assert result.gradient_norm is not None
    assert result.gradient_norm > 0
    assert result.peak_memory_bytes is not None
    assert result.peak_memory_bytes > 2**20
    assert result.test_top5_accuracy is not None
    assert result.test_accuracy is not None
    assert result.test_accuracy <= result.test_top5_accuracy <= 1
    assert result.test_f1 is not None


def test_what_was_answered_for_each_picture_is_kept_and_changes_no_bit(
    tiny: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for most in (TEST, TEST - 1):  # are kept
        monkeypatch.setattr("worker.training.engine.MOST_PICTURES", most)
        made = engine(tiny, model={"hidden": [16], "dropout": 0.25}, optimizer={"lr": 0.1})
        epochs = [made.run_epoch(epoch, Silent()) for epoch in (1, 2)]
        numbers = [(each.result.train_loss, each.result.test_loss, each.report) for each in epochs]
        found.append((digest(made.served.state_dict()), numbers, [each.answers for each in epochs]))
    (kept_digest, kept_numbers, answers), (plain_digest, plain_numbers, none) = found
    assert (kept_digest, kept_numbers) == (plain_digest, plain_numbers)
    assert none == [None, None]
    for (_, _, report), answered in zip(kept_numbers, answers, strict=True):
        assert report is not None
        assert answered is not None
        assert answered.labels == tiny.test.labels.tolist()
        assert sum(answered.right()) / TEST == report.accuracy


def test_a_loss_that_explodes_ends_the_training_where_it_did(tiny: Prepared) -> None:
    with pytest.raises(Diverged, match=r"^The loss became (nan|inf) in batch \d of epoch 1\.$") as diverged:
        trained(tiny, model={"hidden": [16]}, loss={"name": "mse"}, optimizer={"lr": 1e5})
    assert diverged.value.hint is not None
    assert "learning rate (now 100000)" in diverged.value.hint


def test_augmentation_changes_training_and_leaves_the_test_alone(tinier: Prepared) -> None:
    fields: dict[str, Any] = {"optimizer": {"lr": 1e-30}, "model": {"hidden": [16]}, "epochs": 1}  # learns nothing
    _, (plain,) = trained(tinier, **fields)
    _, (augmented,) = trained(tinier, augmentation={"rotate": 180.0}, **fields)
    assert augmented.train_loss != plain.train_loss
    assert augmented.test_loss == plain.test_loss


def test_pictures_are_scaled_to_what_the_network_takes(tinier: Prepared) -> None:
    made = engine(tinier, model={"name": "resnet18", "image_size": 48}, batch_size=8, epochs=1)
    seen: list[torch.Size] = []
    made.network.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0].shape))
    made.run_epoch(1, Silent())
    assert {tuple(shape)[1:] for shape in seen} == {(1, 48, 48)}


def test_a_resnet_is_torchvisions_own_to_the_bit(tinier: Prepared) -> None:
    made = engine(tinier, model={"name": "resnet18"}, seed=5)
    torch.manual_seed(5)
    theirs = resnet18(num_classes=10).state_dict()
    ours = made.network.state_dict()
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours["layer4.1.conv2.weight"], theirs["layer4.1.conv2.weight"])
    assert ours["conv1.weight"].shape == (64, 1, 7, 7)


def test_the_weights_that_are_served_are_the_average(tiny: Prepared) -> None:
    made, _ = trained(tiny, model={"hidden": [16]}, optimizer={"lr": 0.1}, ema={"decay": 0.99})
    assert digest(made.served.state_dict()) != digest(made.network.state_dict())
    assert made.served.state_dict().keys() == made.network.state_dict().keys()


def test_the_learning_rate_of_an_epoch_is_the_one_it_began_with(tinier: Prepared) -> None:
    schedule = {"name": "step", "every": 1, "gamma": 0.5}
    _, results = trained(tinier, epochs=3, model={"hidden": [8]}, optimizer={"lr": 0.1}, schedule=schedule)
    assert [result.learning_rate for result in results] == pytest.approx([0.1, 0.05, 0.025])
    assert all(math.isfinite(result.train_loss) for result in results)
