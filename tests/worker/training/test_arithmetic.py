import pytest
import torch
from torch import nn

from worker.networks.mlp import mlp
from worker.networks.whole import LogProbabilities
from worker.training import arithmetic

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("error", "seconds", "chosen"),
    [
        (3.7e-7, 1.0, ["medium", "highest"]),  # exact and twice as fast
        (3.7e-7, 1.9, ["highest", "medium"]),  # hardly faster: not worth other last digits
        (2.9e-3, 0.5, ["highest"]),  # bf16, on a CPU with AMX
    ],
)
def test_the_faster_arithmetic_is_taken_only_if_it_is_exact(
    error: float, seconds: float, chosen: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = {"medium": (error, seconds), "highest": (2.5e-7, 2.0)}
    monkeypatch.setattr(arithmetic, "_measure", lambda setting, *_: measured[setting])
    assert arithmetic.probe() == chosen


def test_what_the_probe_takes_is_exact_here_and_the_setting_is_as_before() -> None:
    before = torch.get_float32_matmul_precision()
    chosen = arithmetic.probe()[0]
    assert torch.get_float32_matmul_precision() == before
    left, right = torch.randn(300, 200), torch.randn(200, 100)
    torch.set_float32_matmul_precision(chosen)
    try:
        error = ((left @ right).double() - left.double() @ right.double()).norm() / (left @ right).norm()
    finally:
        torch.set_float32_matmul_precision(before)
    assert error < arithmetic.EXACT_ERROR


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_rounds_inside_and_gives_fp32(precision: str) -> None:
    torch.manual_seed(0)
    network, X = mlp(16, [8], 3, 0.0), torch.rand(5, 1, 4, 4)
    exact, mixed = network(X), arithmetic.in_precision(network, precision, CPU)(X)
    assert mixed.dtype == torch.float32
    assert torch.allclose(mixed, exact, atol=2e-2)
    assert not torch.equal(mixed, exact)
    mixed.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in network.parameters())


def test_log_probabilities_keep_their_digits_in_mixed_precision() -> None:
    logits = torch.randn(5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = LogProbabilities(dim=1)(logits)
    assert torch.equal(found, logits.log_softmax(1))


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_fp32_is_the_network_itself(precision: str) -> None:
    network = nn.Linear(2, 2)
    assert arithmetic.in_precision(network, precision, CPU) is network


def test_only_fp16_scales_its_loss() -> None:
    scaled = [precision for precision in ("fp32", "tf32", "bf16", "fp16") if arithmetic.scaler(precision, CPU)]
    assert scaled == ["fp16"]


def test_channels_lie_together_where_there_is_a_convolution() -> None:
    assert arithmetic.memory_format(nn.Sequential(nn.Conv2d(1, 2, 3))) == torch.channels_last
    assert arithmetic.memory_format(mlp(4, [2], 2, 0.0)) == torch.contiguous_format
