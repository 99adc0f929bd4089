import hashlib
import json
from pathlib import Path

import pytest
import safetensors
import torch

from worker.datasets.pictures import Preprocessing
from worker.jobs.errors import CheckpointCorrupt, DiskFull
from worker.jobs.records import SavedCheckpoint
from worker.jobs.spec import Spec
from worker.networks.mlp import mlp
from worker.training import checkpoints
from worker.training.checkpoints import Metadata, Place

METADATA = Metadata(
    job="a" * 24,
    epoch=3,
    spec=Spec(),
    classes=["cat", "dog"],
    preprocessing=Preprocessing(channels=1, height=2, width=2, mean=[0.0], std=[1.0]),
    dataset_sha256="0" * 64,
    metrics={"test_accuracy": 0.5, "train_loss": None},
)


def place(data_dir: Path, attempt: int = 1) -> Place:
    return Place(data_dir, METADATA.job, attempt, spare_bytes=0)


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return mlp(4, [3], 2, 0.0)


@pytest.fixture
def saved(tmp_path: Path, model: torch.nn.Module) -> SavedCheckpoint:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.rand(5, 4)).sum().backward()
    optimizer.step()
    return checkpoints.save(place(tmp_path, 2), METADATA, model.state_dict(), {"optimizer": optimizer.state_dict()})


def test_what_was_saved_is_what_loads(tmp_path: Path, model: torch.nn.Module, saved: SavedCheckpoint) -> None:
    loaded = checkpoints.load(tmp_path / saved.path, saved.sha256)
    assert loaded.metadata == METADATA
    assert loaded.weights.keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.weights[name], tensor) for name, tensor in model.state_dict().items())
    state = checkpoints.load_state(tmp_path / saved.state_path, saved.state_sha256)
    assert state["optimizer"]["param_groups"][0]["momentum"] == 0.9
    assert len(state["optimizer"]["state"]) == len(list(model.parameters()))


def test_a_checkpoint_of_before_looks_were_kept_has_none() -> None:
    header = METADATA.model_dump(mode="json", exclude={"looks"})
    assert Metadata.model_validate(header).looks is None


def test_the_row_describes_the_file(tmp_path: Path, saved: SavedCheckpoint) -> None:
    contents = (tmp_path / saved.path).read_bytes()
    assert saved.bytes == len(contents)
    assert saved.sha256 == hashlib.sha256(contents).hexdigest()


def test_anyone_can_read_what_a_checkpoint_is(tmp_path: Path, saved: SavedCheckpoint) -> None:
    with safetensors.safe_open(tmp_path / saved.path, "pt") as file:
        card = json.loads(file.metadata()["epochd"])
    assert card["classes"] == ["cat", "dog"]
    assert card["spec"]["optimizer"]["lr"] == 0.001
    assert card["metrics"]["train_loss"] is None


def test_no_temporary_file_is_left(tmp_path: Path, saved: SavedCheckpoint) -> None:
    files = {path.name for path in (tmp_path / saved.path).parent.iterdir()}
    assert files == {Path(saved.path).name, Path(saved.state_path).name}


def test_two_attempts_at_an_epoch_never_share_a_file(tmp_path: Path, model: torch.nn.Module) -> None:
    first, second = (checkpoints.save(place(tmp_path, attempt), METADATA, model.state_dict(), {}) for attempt in (1, 2))
    assert first.path != second.path
    assert first.sha256 == second.sha256
    assert first.weights_sha256 == second.weights_sha256


def test_the_digest_of_the_weights_is_theirs_alone(tmp_path: Path, model: torch.nn.Module) -> None:
    other_job = METADATA.model_copy(update={"job": "b" * 24})
    saved = [checkpoints.save(place(tmp_path, 1), card, model.state_dict(), {}) for card in (METADATA, other_job)]
    assert saved[0].sha256 != saved[1].sha256
    assert saved[0].weights_sha256 == saved[1].weights_sha256
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    assert checkpoints.digest(model.state_dict()) != saved[0].weights_sha256


def test_state_of_a_newer_epochd_is_refused_and_of_an_older_one_is_not(tmp_path: Path) -> None:
    states: list[dict[str, object]] = [{"optimizer": {}}, {"optimizer": {}, "format": checkpoints.FORMAT + 1}]
    for state in states:
        torch.save(state, tmp_path / "state.pt")
        digest = hashlib.sha256((tmp_path / "state.pt").read_bytes()).hexdigest()
        if "format" not in state:
            assert checkpoints.load_state(tmp_path / "state.pt", digest) == state
            continue
        with pytest.raises(CheckpointCorrupt):
            checkpoints.load_state(tmp_path / "state.pt", digest)


def test_what_is_saved_inside_an_epoch_is_what_loads(tmp_path: Path, model: torch.nn.Module) -> None:
    saved = checkpoints.save_steps(place(tmp_path, 2), 3, 40, {"weights": model.state_dict(), "batch": 40})
    assert (saved.epoch, saved.batch, saved.bytes) == (3, 40, (tmp_path / saved.path).stat().st_size)
    state = checkpoints.load_state(tmp_path / saved.path, saved.sha256)
    assert state["batch"] == 40
    assert checkpoints.digest(state["weights"]) == checkpoints.digest(model.state_dict())
    with pytest.raises(CheckpointCorrupt):
        checkpoints.load_state(tmp_path / saved.path, "0" * 64)


def test_a_checkpoint_for_which_there_is_no_room_is_not_begun(tmp_path: Path, model: torch.nn.Module) -> None:
    greedy = Place(tmp_path, METADATA.job, 1, spare_bytes=2**62)
    with pytest.raises(DiskFull, match="would leave less free"):
        checkpoints.save(greedy, METADATA, model.state_dict(), {})
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_every_single_bit_flip_is_refused(tmp_path: Path, saved: SavedCheckpoint) -> None:
    for path, sha256, load in (
        (tmp_path / saved.path, saved.sha256, checkpoints.load),
        (tmp_path / saved.state_path, saved.state_sha256, checkpoints.load_state),
    ):
        contents = bytearray(path.read_bytes())
        for position in range(0, len(contents), 97):
            contents[position] ^= 1 << position % 8
            path.write_bytes(contents)
            with pytest.raises(CheckpointCorrupt):
                load(path, sha256)
            contents[position] ^= 1 << position % 8


@pytest.mark.parametrize("keep", [0, 7, 100])
def test_a_truncated_or_absent_file_is_refused(tmp_path: Path, saved: SavedCheckpoint, keep: int) -> None:
    path = tmp_path / saved.path
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointCorrupt):
        checkpoints.load(path, saved.sha256)
    path.unlink()
    with pytest.raises(CheckpointCorrupt):
        checkpoints.load(path, saved.sha256)


def test_a_whole_file_that_is_no_checkpoint_of_ours_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save

    for contents in (save({"w": torch.zeros(2)}), b"\x08" + bytes(15), b"not safetensors at all"):
        path = tmp_path / "x.safetensors"
        path.write_bytes(contents)
        with pytest.raises(CheckpointCorrupt):
            checkpoints.load(path, hashlib.sha256(contents).hexdigest())
