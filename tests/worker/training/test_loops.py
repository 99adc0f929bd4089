import inspect

import pytest
import torch
from torch import nn

from worker.networks.mlp import mlp
from worker.training.loops import Batch, test_loop, train_loop
from worker.training.losses import AverageLoss
from worker.training.scores import Answers, Distances


def make_batches(*sizes: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(n, 1, 4, 4, generator=generator), torch.randint(3, (n,), generator=generator)) for n in sizes]


def averaged(loss_fn: nn.Module) -> AverageLoss:
    return AverageLoss(loss_fn, torch.device("cpu"))


def make_model(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return mlp(16, [8], 3, dropout)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_train_loop_gives_the_weights_of_a_hand_written_loop_to_the_bit(dropout: float) -> None:
    batches, ours, theirs = make_batches(5, 5, 3), make_model(dropout), make_model(dropout)
    torch.manual_seed(7)
    train_loop(batches, ours, averaged(nn.CrossEntropyLoss()), torch.optim.SGD(ours.parameters(), lr=0.1))

    torch.manual_seed(7)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    theirs.train()
    for X, y in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(theirs(X), y)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_train_loss_is_the_average_over_samples_however_short_the_last_batch() -> None:
    model = make_model()
    batches = make_batches(8, 1)
    expected = sum(nn.functional.cross_entropy(model(X), y, reduction="sum").item() for X, y in batches) / 9
    frozen = torch.optim.SGD(model.parameters(), lr=0.0)
    assert train_loop(batches, model, averaged(nn.CrossEntropyLoss()), frozen) == pytest.approx(expected, rel=1e-6)


def test_test_loop_shows_all_answers_to_the_scores_and_averages_over_samples() -> None:
    model = make_model()
    X = torch.cat([X for X, _ in make_batches(8, 1)])
    y = model(X).argmax(1)
    y[0] = (y[0] + 1) % 3
    scores = Answers(3)
    loss = test_loop([(X[:8], y[:8]), (X[8:], y[8:])], model, averaged(nn.CrossEntropyLoss()), scores)
    assert scores.compute()["test_accuracy"] == 8 / 9
    assert loss == pytest.approx(nn.functional.cross_entropy(model(X), y).item(), rel=1e-6)


def test_both_loops_take_numbers_to_predict() -> None:
    model = make_model()
    batches = [(X, torch.rand(len(X), 3)) for X, _ in make_batches(8, 1)]
    X, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    scores = Distances()
    loss = test_loop(batches, model, averaged(nn.MSELoss()), scores)
    pred = model(X).detach()
    assert loss == pytest.approx(float((pred - y).square().mean()), rel=1e-6)
    assert scores.compute()["test_mae"] == pytest.approx(float((pred - y).abs().mean()), rel=1e-6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trained = train_loop(batches, model, averaged(nn.MSELoss()), optimizer)
    assert trained > test_loop(batches, model, averaged(nn.MSELoss()), Distances())


def test_the_loops_set_the_mode_that_dropout_needs() -> None:
    model = make_model(dropout=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    test_loop(make_batches(2), model, averaged(nn.CrossEntropyLoss()), Answers(3))
    assert not model.training
    train_loop(make_batches(2), model, averaged(nn.CrossEntropyLoss()), optimizer)
    assert model.training


def test_test_loop_keeps_no_gradients() -> None:
    model = make_model()
    test_loop(make_batches(2), model, averaged(nn.CrossEntropyLoss()), Answers(3))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("loop", [train_loop, test_loop])
def test_each_loop_is_under_twenty_lines(loop: object) -> None:
    assert len(inspect.getsource(loop).splitlines()) < 20  # type: ignore[arg-type]


# Named like tests only because the tutorial calls it so.
test_loop.__test__ = False  # type: ignore[attr-defined]
