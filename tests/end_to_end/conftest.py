"""Real epochds for tests: one shared by the polite tests, and folders for those that need their own."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.end_to_end.serving import Epochd, epochd
from tests.tiny import prepare_whole


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FashionMNIST, whole, prepared once for all tests."""
    return prepare_whole(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="session")
def fresh_data_dir(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes data folders that have FashionMNIST, by hard links, and nothing else."""

    def make() -> Path:
        data_dir = tmp_path_factory.mktemp("data")
        folder = data_dir / "datasets" / "fashion-mnist-v1"
        folder.mkdir(parents=True)
        for file in prepared.iterdir():
            os.link(file, folder / file.name)
        return data_dir

    return make


@pytest.fixture(scope="session")
def server(fresh_data_dir: Callable[[], Path]) -> Iterator[Epochd]:
    """An epochd for tests that only submit, look and predict."""
    with epochd(fresh_data_dir()) as running:
        yield running


@pytest.fixture(scope="session")
def trained(server: Epochd) -> str:
    """A succeeded job of two epochs."""
    job_id = server.submit(epochs=2, shuffle=False)
    job = server.wait_terminal(job_id)
    assert job["status"] == "succeeded", job["error"]
    return job_id
