"""Many pictures: each is answered as it would be alone, whatever it lies between."""

import csv
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import TEST
from tests.worker.inference.making import checkpoint, place, tiny
from worker.datasets.opening import open_prepared
from worker.inference.answers import answers, look
from worker.inference.batch import batch
from worker.inference.parity import png
from worker.jobs.errors import BadArchive, Conflict
from worker.jobs.wire import BatchRequest

MODEL = {"model": {"name": "mlp", "hidden": [16]}}


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


def request(tmp_path: Path, **changed: Any) -> BatchRequest:
    card = open_prepared(tmp_path / "datasets/fashion-mnist-v1", _sha256(tmp_path)).card
    saved = checkpoint(tmp_path, card, **MODEL)
    fields: dict[str, Any] = {"path": saved.path, "sha256": saved.sha256, "format": "ndjson", "top_k": 2}
    return BatchRequest(**fields | changed)


def _sha256(tmp_path: Path) -> str:
    found: str = json.loads((tmp_path / "datasets/fashion-mnist-v1/card.json").read_text())["sha256"]
    return found


def test_each_picture_of_an_archive_is_answered_as_alone(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    files = pictures | {"set/050a.png": b"no picture", "set/notes.txt": b"no line"}
    asked = request(tmp_path, archive=zipped(tmp_path / "a.zip", files))
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
        assert by_name[name]["class_index"] == alone["class_index"]
        assert by_name[name]["probability"] == pytest.approx(alone["probability"], rel=1e-4)
        assert len(by_name[name]["top"]) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"a.zip", "datasets", "jobs"}


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
    dataset = {"folder": "datasets/fashion-mnist-v1", "sha256": _sha256(tmp_path)}
    head, *lines, tail = ndjson(list(batch(place(tmp_path), request(tmp_path, dataset=dataset))))
    assert head["total"] == len(lines) == tail["done"] == TEST
    right = sum(line["truth"] == line["label"] for line in lines)
    assert tail["accuracy"] == right / TEST


def test_pictures_too_large_for_a_file_are_told(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    files = {"a.png": next(iter(pictures.values())), "b.png": b"!" * 5000}
    asked = request(tmp_path, archive=zipped(tmp_path / "a.zip", files))
    _, *lines, tail = ndjson(list(batch(place(tmp_path, max_image_bytes=4000), asked)))
    assert [line["number"] for line in lines] == [1, 2]
    assert "larger than 4000 bytes" in lines[1]["error"]
    assert (tail["done"], tail["failed"]) == (2, 1)


def test_an_archive_without_pictures_is_refused_before_the_first_line(
    tmp_path: Path, pictures: dict[str, bytes]
) -> None:
    asked = request(tmp_path, archive=zipped(tmp_path / "a.zip", {"notes.txt": b"none"}))
    with pytest.raises(BadArchive):
        next(batch(place(tmp_path), asked))


def test_a_dataset_of_other_pictures_is_refused(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    card = open_prepared(tmp_path / "datasets/fashion-mnist-v1", _sha256(tmp_path)).card
    saved = checkpoint(tmp_path, card.model_copy(update={"height": 32, "width": 32}), **MODEL)
    asked = BatchRequest.model_validate(
        {
            "path": saved.path,
            "sha256": saved.sha256,
            "format": "csv",
            "top_k": 1,
            "dataset": {"folder": "datasets/fashion-mnist-v1", "sha256": card.sha256},
        }
    )
    with pytest.raises(Conflict, match="1 x 32 x 32"):
        next(batch(place(tmp_path), asked))
