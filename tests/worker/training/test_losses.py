import math

import pytest
import torch
from torch import nn

from worker.jobs.errors import Diverged
from worker.jobs.spec import Spec
from worker.training.losses import AverageLoss, class_weights, loss_function

CPU = torch.device("cpu")
PRED = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, 3.0], [1.0, 1.5, -2.0], [0.1, 0.2, 0.3]])
Y = torch.tensor([0, 2, 1, 1])


def made(**loss: object) -> nn.Module:
    return loss_function(Spec.model_validate({"loss": loss}).loss, [10, 30, 20], CPU)


def test_cross_entropy_is_torchs() -> None:
    assert torch.equal(made()(PRED, Y), nn.CrossEntropyLoss()(PRED, Y))
    smoothed = made(label_smoothing=0.2)(PRED, Y)
    assert torch.equal(smoothed, nn.CrossEntropyLoss(label_smoothing=0.2)(PRED, Y))


def test_nll_of_log_probabilities_is_the_cross_entropy() -> None:
    assert torch.equal(made(name="nll")(PRED.log_softmax(1), Y), nn.CrossEntropyLoss()(PRED, Y))


def test_mse_takes_classes_as_one_hots_and_numbers_as_they_are() -> None:
    hot = torch.eye(3)[Y]
    assert torch.equal(made(name="mse")(PRED, Y), nn.MSELoss()(PRED, hot))
    assert torch.equal(made(name="mse")(PRED, hot * 0.5), nn.MSELoss()(PRED, hot * 0.5))


def test_class_weights_are_torchs() -> None:
    weights = [0.5, 2.0, 1.0]
    for name in ("cross_entropy", "nll"):
        expected = nn.NLLLoss(torch.tensor(weights))(PRED.log_softmax(1), Y)
        found = made(name=name, class_weights=weights)(PRED.log_softmax(1), Y)
        assert torch.allclose(found, expected)


def test_balanced_weights_make_every_class_count_as_much() -> None:
    loss = Spec.model_validate({"loss": {"class_weights": "balanced"}}).loss
    counts = [10, 30, 0, 20]
    weights = class_weights(loss, counts)  # type: ignore[arg-type]
    assert weights is not None
    masses = [weight * count for weight, count in zip(weights, counts, strict=True)]
    assert masses == pytest.approx([20, 20, 0, 20])
    assert weights[2] == 0


def test_the_average_is_over_samples_and_counts_only_what_was_committed() -> None:
    loss_fn = AverageLoss(nn.CrossEntropyLoss(), CPU)
    loss_fn(PRED, Y)
    loss_fn.commit()
    loss_fn(PRED[:1], Y[:1])
    loss_fn.discard()
    loss_fn(PRED[1:2], Y[1:2])
    loss_fn.commit()
    total = nn.functional.cross_entropy(PRED, Y, reduction="sum") + nn.functional.cross_entropy(PRED[1:2], Y[1:2])
    assert loss_fn.average() == pytest.approx(float(total) / 5)
    loss_fn.begin()
    loss_fn(PRED[:1], Y[:1])
    loss_fn.commit()
    assert loss_fn.average() == pytest.approx(float(nn.functional.cross_entropy(PRED[:1], Y[:1])))


def test_a_share_weighs_the_gradient_and_not_the_value() -> None:
    pred = PRED.clone().requires_grad_()
    loss_fn = AverageLoss(nn.CrossEntropyLoss(), CPU)
    loss_fn.share = 0.25
    loss = loss_fn(pred, Y)
    loss.backward()  # type: ignore[no-untyped-call]
    whole = PRED.clone().requires_grad_()
    nn.functional.cross_entropy(whole, Y).backward()  # type: ignore[no-untyped-call]
    assert pred.grad is not None
    assert whole.grad is not None
    assert torch.allclose(pred.grad, whole.grad / 4)
    assert loss.item() == nn.functional.cross_entropy(PRED, Y).item()


@pytest.mark.parametrize("sizes", [[4], [1, 3], [1, 1, 1, 1]])
def test_the_average_with_class_weights_does_not_depend_on_how_samples_are_divided(sizes: list[int]) -> None:
    weighted = nn.CrossEntropyLoss(torch.tensor([0.5, 4.0, 1.0]))
    loss_fn = AverageLoss(weighted, CPU)
    for pred, y in zip(torch.split(PRED, sizes), torch.split(Y, sizes), strict=True):
        loss_fn(pred, y)
    assert loss_fn.average() == pytest.approx(float(weighted(PRED, Y)))


def test_samples_that_do_not_count_have_no_loss_and_no_gradient() -> None:
    loss_fn = AverageLoss(nn.CrossEntropyLoss(torch.tensor([0.0, 1.0, 1.0])), CPU)
    pred = PRED.clone().requires_grad_()
    loss_fn(pred[:1], Y[:1]).backward()  # type: ignore[no-untyped-call]
    assert pred.grad is not None
    assert not pred.grad.any()
    loss_fn(pred[1:], Y[1:])
    assert loss_fn.average() == pytest.approx(float(nn.functional.cross_entropy(PRED[1:], Y[1:])))


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_training_at_that_step(odd: float) -> None:
    loss_fn = AverageLoss(nn.MSELoss(), CPU)
    with pytest.raises(Diverged, match=f"became {odd}"):
        loss_fn(torch.tensor([[odd]]), torch.tensor([[1.0]]))


def test_where_looking_costs_waiting_it_is_found_when_the_epoch_ends() -> None:
    loss_fn = AverageLoss(nn.MSELoss(), torch.device("meta"))  # any that is not the CPU
    loss_fn(torch.tensor([[math.nan]]), torch.tensor([[1.0]]))
    loss_fn.commit()
    with pytest.raises(Diverged):
        loss_fn.average()
