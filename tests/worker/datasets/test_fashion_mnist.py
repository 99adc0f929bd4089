import gzip
import shutil
import stat
from pathlib import Path

import pytest
import torch

from worker.datasets import fashion_mnist
from worker.jobs.errors import DatasetMissing
from worker.jobs.settings import Settings


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four genuine files, decompressed."""
    folder = tmp_path_factory.mktemp("raw")
    fashion_mnist.gather(Settings(data_dir=folder / "none"), folder, folder / "download")
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default data folder is relative: fetching must not depend on where its helpers run."""
    monkeypatch.chdir(tmp_path)


def nowhere(tmp_path: Path, *, allow_download: bool = False) -> Settings:
    """Settings of a machine that has the dataset in no place of its own."""
    return Settings(data_dir=Path("data"), system_datasets_dir=tmp_path / "none", allow_download=allow_download)


def put(raw: Path, folder: Path, *, compressed: bool) -> None:
    folder.mkdir(parents=True)
    for name in fashion_mnist.SHA256:
        contents = (raw / name).read_bytes()
        if compressed:  # quickly: what counts is the contents, not the archive's own sum
            (folder / f"{name}.gz").write_bytes(gzip.compress(contents, 1))
        else:
            (folder / name).write_bytes(contents)


@pytest.mark.parametrize("compressed", [True, False])
def test_files_in_the_data_folder_are_found(raw: Path, tmp_path: Path, compressed: bool) -> None:
    settings = nowhere(tmp_path)
    put(raw, settings.data_dir / "sources" / "fashion-mnist", compressed=compressed)
    source = fashion_mnist.read(settings, tmp_path)
    assert source.train.images.shape == (60_000, 1, 28, 28)
    assert source.train.images.dtype == torch.uint8
    assert source.test.labels.shape == (10_000,)
    assert source.test.labels.bincount().tolist() == [1000] * 10
    assert source.classes[9] == "Ankle boot"


def test_files_of_debians_package_are_found(raw: Path, tmp_path: Path) -> None:
    settings = nowhere(tmp_path)
    put(raw, settings.system_datasets_dir / "fashion-mnist", compressed=False)
    assert len(fashion_mnist.read(settings, tmp_path).test) == 10_000


def test_wrong_contents_are_not_taken_for_the_dataset(raw: Path, tmp_path: Path) -> None:
    settings = nowhere(tmp_path)
    own = settings.data_dir / "sources" / "fashion-mnist"
    put(raw, own, compressed=False)
    labels = own / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x00")
    with pytest.raises(DatasetMissing):
        fashion_mnist.read(settings, tmp_path)


def test_when_all_ways_fail_one_sentence_names_them(tmp_path: Path) -> None:
    with pytest.raises(DatasetMissing) as caught:
        fashion_mnist.read(nowhere(tmp_path), tmp_path)
    for way in ("sources/fashion-mnist", "dataset-fashion-mnist", "EPOCHD_ALLOW_DOWNLOAD"):
        assert way in caught.value.detail


def test_debians_package_is_fetched_without_root_when_nothing_is_at_hand(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for apt-get that, like a fresh machine's, has no package lists until they were fetched."""
    put(raw, tmp_path / "archive", compressed=True)
    tools = tmp_path / "bin"
    tools.mkdir()
    script(
        tools / "apt-get",
        'case "$*" in'
        ' *" update") touch updated;;'
        ' *"Dir::State="*" download dataset-fashion-mnist") [ -e updated ] && touch dataset-fashion-mnist_1_all.deb;;'
        " *) exit 100;; esac",
    )
    script(
        tools / "dpkg-deb",
        f'mkdir -p "$3/usr/share/datasets"; cp -r {tmp_path}/archive "$3/usr/share/datasets/fashion-mnist"',
    )
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    assert len(fashion_mnist.read(nowhere(tmp_path, allow_download=True), tmp_path).train) == 60_000


def test_torchvisions_download_is_the_last_way(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(folder: Path) -> Path:
        asked.append("torchvision")
        return Path(shutil.copytree(raw, folder / "raw"))

    def no_package(_: Path) -> Path:
        asked.append("debian")
        raise FileNotFoundError

    monkeypatch.setattr(fashion_mnist, "FETCHERS", [no_package, download])
    assert len(fashion_mnist.read(nowhere(tmp_path, allow_download=True), tmp_path).train) == 60_000
    assert asked == ["debian", "torchvision"]


def script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
