"""Many pictures: each is answered as it would be alone, whatever it lies between."""

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import worker.datasets.archive
import worker.inference.batch
from tests.tiny import TEST, prepare_tiny
from tests.worker.inference.making import FOLDER, answers, checkpoint, place, tiny
from tests.worker.jobs import making
from worker.datasets.arrays import Writer
from worker.datasets.opening import CARD, open_prepared
from worker.inference.answers import look
from worker.inference.batch import batch
from worker.inference.parity import png
from worker.jobs.card import Card, Task
from worker.jobs.errors import BadArchive, Conflict
from worker.jobs.files import is_unlocked
from worker.jobs.wire import BatchRequest, OfDataset

MODEL: dict[str, object] = {"model": {"name": "mlp", "hidden": [16]}}
MODELS: list[dict[str, object]] = [
    MODEL,
    {"model": {"name": "cnn", "channels": [4, 8]}, "normalization": "dataset"},
    {"model": {"name": "resnet18", "image_size": 33}},
    {"model": {"name": "cnn", "channels": [4]}, "precision": "bf16"},
]


def zipped(path: Path, files: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w") as made:
        for name, contents in files.items():
            made.writestr(name, contents)
    return path.name


def ndjson(parts: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in b"".join(parts).splitlines()]


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, bytes]:
    card, dataset = tiny(tmp_path)
    images = open_prepared(tmp_path / dataset.folder, card.sha256).test.images
    return {f"set/{number:03}.png": png(image) for number, image in enumerate(images)}


def request(tmp_path: Path, spec: dict[str, object] = MODEL, **changed: Any) -> BatchRequest:
    card = open_prepared(tmp_path / FOLDER, _sha256(tmp_path)).card
    saved = checkpoint(tmp_path, card, **spec)
    fields: dict[str, Any] = {"path": saved.path, "sha256": saved.sha256, "format": "ndjson", "top_k": 2}
    return BatchRequest(**fields | changed)


def _sha256(tmp_path: Path) -> str:
    found: str = json.loads((tmp_path / FOLDER / "card.json").read_text())["sha256"]
    return found


def of_numbers(data_dir: Path) -> tuple[Card, OfDataset]:
    """A dataset of two numbers for each picture: how much ink it has, and the negative of that."""
    images = prepare_tiny(data_dir / "classes").train.images
    folder = data_dir / FOLDER
    folder.mkdir(parents=True)
    ink = (images.float() / 255).mean(dim=(1, 2, 3)).unsqueeze(1)
    with Writer(folder, (1, 28, 28)) as writer:
        for some in (slice(400), slice(400, None)):
            writer.add(images[some].numpy(), torch.cat([ink, -ink], dim=1)[some].numpy())
            writer.end_split()
    card = making.card(
        task=Task.REGRESSION,
        classes=[],
        targets=["ink", "-ink"],
        train_count=400,
        test_count=100,
        sha256=writer.sha256,
    )
    (folder / CARD).write_text(card.model_dump_json())
    return card, OfDataset(folder=FOLDER, sha256=card.sha256)


@pytest.mark.parametrize("spec", MODELS, ids=str)
def test_each_picture_of_an_archive_is_answered_as_alone(
    tmp_path: Path, pictures: dict[str, bytes], spec: dict[str, object]
) -> None:
    files = pictures | {"set/050a.png": b"no picture", "set/notes.txt": b"no line", "__MACOSX/set/._000.png": b"none"}
    asked = request(tmp_path, spec, archive=zipped(tmp_path / "a.zip", files))
    here = place(tmp_path)
    head, *lines, tail = ndjson(list(batch(here, asked)))
    assert head == {"job": "1" * 24, "epoch": 3, "total": TEST + 1}
    assert (tail["done"], tail["failed"]) == (TEST + 1, 1)
    assert [line["number"] for line in lines] == list(range(1, TEST + 2))
    assert {line["of"] for line in lines} == {TEST + 1}
    ready = here.models.get(asked.path, asked.sha256)
    by_name = {line["file"]: line for line in lines}
    assert "not a picture" in by_name["set/050a.png"]["error"]
    for name, file in pictures.items():
        alone = json.loads(answers(ready, [look(ready, file, 10_000, auto_fix=False)], 2)[0])
        assert by_name[name]["probability"] == pytest.approx(alone["probability"], rel=_rounding(spec))
        assert len(by_name[name]["top"]) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"a.zip", "datasets", "jobs"}


def _rounding(spec: dict[str, object]) -> float:
    return 5e-2 if spec.get("precision") == "bf16" else 1e-4


def test_a_table_has_a_row_for_each_picture_and_no_formulas(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    first = next(iter(pictures.values()))
    files = {"=cmd.png": first, 'a "b", c.png': first, "broken.png": b"\x89PNG"}
    asked = request(tmp_path, archive=zipped(tmp_path / "a.zip", files), format="csv")
    text = b"".join(batch(place(tmp_path), asked)).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["file"] for row in rows] == ["'=cmd.png", 'a "b", c.png', "broken.png"]
    assert rows[0]["label"] == rows[1]["label"] != ""
    assert (rows[2]["label"], rows[2]["error"] != "") == ("", True)
    assert 0 < float(rows[0]["probability"]) <= 1


def test_a_dataset_is_answered_with_the_truth_beside(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    dataset = {"folder": FOLDER, "sha256": _sha256(tmp_path)}
    head, *lines, tail = ndjson(list(batch(place(tmp_path), request(tmp_path, dataset=dataset))))
    assert head["total"] == len(lines) == tail["done"] == TEST
    right = sum(line["truth"] == line["label"] for line in lines)
    assert tail["accuracy"] == right / TEST


def test_numbers_are_answered_with_the_truth_beside(tmp_path: Path) -> None:
    card, dataset = of_numbers(tmp_path)
    saved = checkpoint(tmp_path, card, **MODEL, loss={"name": "mse"})
    asked = BatchRequest(path=saved.path, sha256=saved.sha256, dataset=dataset, format="ndjson", top_k=1)
    head, *lines, tail = ndjson(list(batch(place(tmp_path), asked)))
    assert head["total"] == len(lines) == tail["done"] == card.test_count
    assert "accuracy" not in tail
    for line in lines:
        assert line["truth"] == pytest.approx([line["truth"][0], -line["truth"][0]])
        assert set(line["values"]) == {"ink", "-ink"}
    text = b"".join(batch(place(tmp_path), asked.model_copy(update={"format": "csv"}))).decode()
    header, *rows = csv.reader(io.StringIO(text))
    assert header == ["number", "file", "true ink", "true -ink", "ink", "'-ink", "warnings", "error"]
    for row, line in zip(rows, lines, strict=True):
        assert [float(cell) for cell in row[2:6]] == pytest.approx([*line["truth"], *line["values"].values()])


def test_pictures_too_large_for_a_file_are_told_in_their_place(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    fine, too_large = next(iter(pictures.values())), b"!" * 5000
    files = {
        "a.png": too_large,
        "b.png": fine,
        "c.png": too_large,
        "d.png": too_large,
        "e.png": fine,
        "f.png": too_large,
    }
    asked = request(tmp_path, archive=zipped(tmp_path / "a.zip", files))
    _, *lines, tail = ndjson(list(batch(place(tmp_path, max_image_bytes=4000), asked)))
    assert [(line["number"], line["file"]) for line in lines] == list(enumerate(files, start=1))
    assert ["larger than 4000 bytes" in line.get("error", "") for line in lines] == [
        name not in ("b.png", "e.png") for name in files
    ]
    assert (tail["done"], tail["failed"]) == (6, 4)


def test_lines_of_a_large_network_do_not_wait_for_a_whole_pass_of_a_small_one(
    tmp_path: Path, pictures: dict[str, bytes]
) -> None:
    dataset = {"folder": FOLDER, "sha256": _sha256(tmp_path)}
    here, asked = (
        place(tmp_path),
        request(tmp_path, {"model": {"name": "squeezenet1_1", "image_size": 224}}, dataset=dataset),
    )
    at_once = here.models.get(asked.path, asked.sha256).at_once
    assert at_once < 64
    assert max(part.count(b"\n") for part in batch(here, asked)) == at_once


def test_lines_come_at_least_every_second(
    tmp_path: Path, pictures: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.inference.batch, "_SECONDS", 0.0)  # as if each picture took that long to decode
    asked = request(tmp_path, archive=zipped(tmp_path / "a.zip", pictures))
    assert [part.count(b"\n") for part in batch(place(tmp_path), asked)] == [1] * (TEST + 2)


def test_what_is_unpacked_is_nobodys_to_sweep_and_gone_before_the_first_line(
    tmp_path: Path, pictures: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    unpack, locked = worker.datasets.archive.unpack, list[bool]()

    def watched(archive: Path, blob: Path, *more: Any) -> Any:
        for member in unpack(archive, blob, *more):
            locked.append(not is_unlocked(blob))
            yield member

    monkeypatch.setattr(worker.inference.batch, "unpack", watched)
    asked = request(tmp_path, archive=zipped(tmp_path / "a.zip", pictures))
    next(batch(place(tmp_path), asked))
    assert locked == [True] * TEST
    assert {path.name for path in tmp_path.iterdir()} == {"a.zip", "datasets", "jobs"}


def test_an_archive_without_pictures_is_refused_before_the_first_line(
    tmp_path: Path, pictures: dict[str, bytes]
) -> None:
    asked = request(tmp_path, archive=zipped(tmp_path / "a.zip", {"notes.txt": b"none"}))
    with pytest.raises(BadArchive):
        next(batch(place(tmp_path), asked))


def test_a_dataset_of_other_pictures_is_refused(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    card = open_prepared(tmp_path / FOLDER, _sha256(tmp_path)).card
    saved = checkpoint(tmp_path, card.model_copy(update={"height": 32, "width": 32}), **MODEL)
    asked = BatchRequest.model_validate(
        {
            "path": saved.path,
            "sha256": saved.sha256,
            "format": "csv",
            "top_k": 1,
            "dataset": {"folder": FOLDER, "sha256": card.sha256},
        }
    )
    with pytest.raises(Conflict, match="1 x 32 x 32"):
        next(batch(place(tmp_path), asked))
