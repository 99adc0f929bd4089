"""Bundles: what goes out comes in again, and what was changed on the way does not."""

import hashlib
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.worker.inference.making import checkpoint, place, tiny
from worker.inference import importing
from worker.inference.errands import Place
from worker.inference.exporting import export
from worker.inference.importing import import_
from worker.inference.models import Models
from worker.jobs.bundle import Imported
from worker.jobs.errors import BadBundle, CheckpointCorrupt, DiskFull, NotExportable
from worker.jobs.settings import Settings
from worker.jobs.wire import ExportRequest, ImportRequest

ABOUT = {
    "job": "1" * 24,
    "name": "shoes",
    "labels": {"team": "a"},
    "created_at": "2026-01-02T03:04:05Z",
    "provenance": {"seed": 0},
    "metrics": {"test_accuracy": 0.5, "learning_rate": 0.1},
}
Files = dict[str, bytes]


@pytest.fixture(autouse=True)
def limited(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What an import would limit its process to; not the process of the tests."""
    asked: list[int] = []
    monkeypatch.setattr(importing, "limit_memory", asked.append)
    return asked


def asked(data_dir: Path, *, with_dataset: bool = True) -> ExportRequest:
    """For the bundle of a network."""
    card, dataset = tiny(data_dir)
    saved = checkpoint(data_dir, card, model={"name": "cnn", "channels": [4]}, normalization="dataset")
    return ExportRequest(
        path=saved.path,
        sha256=saved.sha256,
        format="bundle",
        to="bundle.zip",
        about=ABOUT,
        dataset=dataset if with_dataset else None,
    )


def made(data_dir: Path, *, with_dataset: bool = True) -> Path:
    list(export(place(data_dir), asked(data_dir, with_dataset=with_dataset)))
    return data_dir / "bundle.zip"


def imported(data_dir: Path) -> Imported:
    """Raises what the import raises."""
    (told,) = import_(place(data_dir), ImportRequest(archive="in.zip", to="there/w.safetensors"))
    return Imported.model_validate_json(told)


def unzipped(path: Path) -> Files:
    with zipfile.ZipFile(path) as bundle:
        return {name: bundle.read(name) for name in bundle.namelist()}


def zipped(path: Path, files: Files, compression: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", compression) as bundle:
        for name, contents in files.items():
            bundle.writestr(name, contents)


def signed(files: Files) -> Files:
    """With a manifest that is right: as somebody would make it who wants to be believed."""
    manifest = json.loads(files["manifest.json"])
    manifest["files"] = {
        name: {"sha256": hashlib.sha256(contents).hexdigest(), "bytes": len(contents)}
        for name, contents in files.items()
        if name != "manifest.json"
    }
    return files | {"manifest.json": json.dumps(manifest).encode()}


@pytest.mark.parametrize("with_dataset", [True, False])
def test_what_goes_out_comes_in_again(tmp_path: Path, with_dataset: bool, limited: list[int]) -> None:
    bundle = made(tmp_path, with_dataset=with_dataset)
    files = unzipped(bundle)
    assert len([name for name in files if name.startswith("vectors/")]) == 16
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    bundle.rename(elsewhere / "in.zip")
    found = imported(elsewhere)
    assert found.card.model_dump(mode="json", exclude_defaults=True, exclude={"metrics"}) == {
        name: value for name, value in ABOUT.items() if name != "metrics"
    }
    assert (found.card.metrics.test_accuracy, found.epoch) == (0.5, 3)
    assert found.largest_difference < 1e-5
    assert limited == [8 * 2**30]
    assert (elsewhere / "there/w.safetensors").read_bytes() == files["model.safetensors"]
    assert {path.name for path in (elsewhere / "there").iterdir()} == {"w.safetensors"}


def test_a_checkpoint_always_gives_the_same_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = asked(tmp_path)
    found = []
    for now in (1.8e9, 1.9e9):
        monkeypatch.setattr("time.time", lambda now=now: now)  # what zipfile writes beside each name
        list(export(place(tmp_path), request))
        found.append((tmp_path / "bundle.zip").read_bytes())
    assert found[0] == found[1]
    with zipfile.ZipFile(tmp_path / "bundle.zip") as bundle:
        assert {info.external_attr >> 16 for info in bundle.infolist()} == {0o100644}  # readable once unpacked


def test_a_checkpoint_that_is_gone_is_told(tmp_path: Path) -> None:
    request = asked(tmp_path)
    (tmp_path / request.path).unlink()
    with pytest.raises(CheckpointCorrupt):
        export(place(tmp_path), request)
    assert not list(tmp_path.glob("*bundle.zip"))


def test_a_network_whose_outputs_are_not_finite_makes_no_bundle(tmp_path: Path) -> None:
    request, here = asked(tmp_path), place(tmp_path)
    network = here.models.get(request.path, request.sha256).network
    next(network.parameters()).data.fill_(float("inf"))
    with pytest.raises(NotExportable, match="not finite"):
        export(here, request)
    assert not list(tmp_path.glob("*bundle.zip"))


def _flipped(name: str) -> Callable[[Files], Files]:
    def flip(files: Files) -> Files:
        contents = bytearray(files[name])
        contents[-5] ^= 1
        return files | {name: bytes(contents)}

    return flip


def _edited(name: str, change: Callable[[Any], None]) -> Callable[[Files], Files]:
    def edit(files: Files) -> Files:
        contents = json.loads(files[name])
        change(contents)
        return signed(files | {name: json.dumps(contents).encode()})

    return edit


def _with_header(change: Callable[[dict[str, Any]], None]) -> Callable[[Files], Files]:
    def edit(files: Files) -> Files:
        weights = files["model.safetensors"]
        length = int.from_bytes(weights[:8], "little")
        header = json.loads(weights[8 : 8 + length])
        about = json.loads(header["__metadata__"]["epochd"])
        change(about)
        header["__metadata__"]["epochd"] = json.dumps(about)
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        return signed(files | {"model.safetensors": len(text).to_bytes(8, "little") + text + weights[8 + length :]})

    return edit


def _all_outputs(told: dict[str, Any], value: float) -> None:
    for vector in told["vectors"]:
        vector["outputs"] = [value] * len(vector["outputs"])


def _sizes_changed(files: Files) -> Files:
    manifest = json.loads(files["manifest.json"])
    manifest["files"]["model.safetensors"]["bytes"] += 1
    return files | {"manifest.json": json.dumps(manifest).encode()}


TAMPERED: dict[str, Callable[[Files], Files]] = {
    "a bit of the weights": _flipped("model.safetensors"),
    "a bit of the weights, with a manifest that is right": lambda files: signed(_flipped("model.safetensors")(files)),
    "a bit of a vector": _flipped("vectors/003.png"),
    "the outputs of a vector": _edited("vectors.json", lambda told: told["vectors"][2]["outputs"].reverse()),
    "outputs without end": _edited("vectors.json", lambda told: _all_outputs(told, float("inf"))),
    "outputs too large for a float": _edited("vectors.json", lambda told: _all_outputs(told, 1e300)),
    "outputs that are no numbers": _edited("vectors.json", lambda told: _all_outputs(told, float("nan"))),
    "no vectors": _edited("vectors.json", lambda told: told.update(vectors=[])),
    "the card": lambda files: files | {"card.json": files["card.json"].replace(b"shoes", b"boots")},
    "a card that is none": _edited("card.json", lambda card: card.pop("job")),
    "an accuracy of 2": _edited("card.json", lambda card: card["metrics"].update(test_accuracy=2)),
    "a name that PostgreSQL does not take": _edited("card.json", lambda card: card.update(name="a\0b")),
    "a provenance that is no JSON": _edited("card.json", lambda card: card["provenance"].update(seed=float("nan"))),
    "a provenance without end": _edited("card.json", lambda card: card["provenance"].update(seed="1" * 100_000)),
    "a size in the manifest": _sizes_changed,
    "no labels": lambda files: signed({name: file for name, file in files.items() if name != "labels.json"}),
    "other labels": _edited("labels.json", lambda labels: labels["classes"].reverse()),
    "another preprocessing": _edited("preprocessing.json", lambda shape: shape.update(mean=[0.5])),
    "a newer checkpoint": _with_header(lambda about: about.update(format=99)),
    "epoch 0": _with_header(lambda about: about.update(epoch=0)),
    "an epoch that no database takes": _with_header(lambda about: about.update(epoch=10**12)),
    "a newer format": _edited("manifest.json", lambda manifest: manifest.update(format=99)),
    "no weights": lambda files: signed({name: file for name, file in files.items() if name != "model.safetensors"}),
    "a file more": lambda files: signed(files | {"extra.py": b"print('hello')"}),
    "a way out": lambda files: signed(files | {"../../evil.png": b"x"}),
    "a pickle for weights": lambda files: signed(files | {"model.safetensors": pickle.dumps({"weights": [1]})}),
    "another network": _with_header(lambda about: about["spec"]["model"].update(channels=[8])),
    "a huge network": _with_header(lambda about: about["spec"].update(model={"name": "mlp", "hidden": [65536] * 8})),
    "huge pictures": _with_header(lambda about: about["preprocessing"].update(image_size=200_000)),
    "a preprocessing of its own": lambda files: _edited("preprocessing.json", lambda shape: shape.update(mean=[0.9]))(
        _with_header(lambda about: about["preprocessing"].update(mean=[0.9]))(files)
    ),
    "empty": lambda _: {},
}


@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_changed_is_refused(tmp_path: Path, what: str) -> None:
    files = TAMPERED[what](unzipped(made(tmp_path)))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    zipped(elsewhere / "in.zip", files)
    with pytest.raises(BadBundle):
        imported(elsewhere)
    assert not list(elsewhere.glob("there/*"))
    assert not (tmp_path / "evil.png").exists()


def test_a_bundle_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    contents = made(tmp_path).read_bytes()
    for share in (0.3, 0.7, 0.99):
        (tmp_path / "in.zip").write_bytes(contents[: int(share * len(contents))])
        with pytest.raises(BadBundle):
            imported(tmp_path)


def test_a_bundle_that_unpacks_to_more_than_allowed_is_refused(tmp_path: Path) -> None:
    files = signed(unzipped(made(tmp_path)) | {"README.md": b"0" * 200 * 2**20})
    zipped(tmp_path / "in.zip", files)
    assert (tmp_path / "in.zip").stat().st_size < 2**20
    with pytest.raises(BadBundle):
        imported(tmp_path)


def test_weights_that_unpack_to_far_more_than_was_sent_are_refused(tmp_path: Path) -> None:
    zipped(tmp_path / "in.zip", signed(unzipped(made(tmp_path)) | {"model.safetensors": b"\0" * 80 * 2**20}))
    with pytest.raises(BadBundle, match="cannot be read"):
        imported(tmp_path)
    assert not list(tmp_path.glob("there/*"))


def test_a_class_that_differs_is_refused_however_near_the_outputs_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "_TOLERANCE", 10.0)
    files = unzipped(made(tmp_path))
    zipped(tmp_path / "in.zip", TAMPERED["the outputs of a vector"](files))
    with pytest.raises(BadBundle, match=r"vectors/002\.png"):
        imported(tmp_path)
    zipped(tmp_path / "in.zip", files)
    assert imported(tmp_path).epoch == 3


def test_a_full_disk_is_no_fault_of_the_bundles(tmp_path: Path) -> None:
    made(tmp_path).rename(tmp_path / "in.zip")
    full = Place(Models(tmp_path, 0), Settings(data_dir=tmp_path, min_free_bytes=2**60))
    with pytest.raises(DiskFull):
        list(import_(full, ImportRequest(archive="in.zip", to="there/w.safetensors")))
    assert not list(tmp_path.glob("there/*"))
