import csv
import io
import math
import unicodedata
from collections.abc import Sequence
from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.datasets import layout
from worker.datasets.archive import Member, Unpacked
from worker.datasets.layout import Layout
from worker.jobs.card import Task
from worker.jobs.errors import DatasetInvalid


def unpacked(
    *names: str,
    labels: dict[str, str | bytes] | None = None,
    folders: Sequence[str] = (),
    oversized: Sequence[str] = (),
) -> Unpacked:
    members = [Member(PurePosixPath(name), number, 1) for number, name in enumerate(names)]
    tables = {name: table.encode() if isinstance(table, str) else table for name, table in (labels or {}).items()}
    return Unpacked(
        members,
        {PurePosixPath(name) for name in folders},
        {PurePosixPath(name): table for name, table in tables.items()},
        [PurePosixPath(name) for name in oversized],
    )


def read(*names: str, folders: Sequence[str] = (), oversized: Sequence[str] = ()) -> Layout:
    return layout.read(unpacked(*names, folders=folders, oversized=oversized), Task.CLASSIFICATION)


def read_table(table: str | bytes, *names: str, task: Task = Task.CLASSIFICATION) -> Layout:
    return layout.read(unpacked(*names, labels={"labels.csv": table}), task)


def told(found: Layout) -> list[tuple[str, str, str | None]]:
    """File, class and split of each sample."""
    labels = [each.label if isinstance(each.label, int) else -1 for each in found.samples]
    return [
        (str(each.member.path), found.classes[label], each.split)
        for each, label in zip(found.samples, labels, strict=True)
    ]


# Folders


def test_a_folder_is_a_class() -> None:
    found = read("dog/0.png", "cat/1.png", "dog/2.png")
    assert found.classes == ["cat", "dog"]
    assert told(found) == [("dog/0.png", "dog", None), ("cat/1.png", "cat", None), ("dog/2.png", "dog", None)]


def test_samples_come_by_the_pictures_own_names_so_that_classes_are_mixed() -> None:
    found = read("b/2.png", "a/2.png", "b/1.png", "a/x/0.png")
    assert [str(each.member.path) for each in found.samples] == ["a/x/0.png", "b/1.png", "a/2.png", "b/2.png"]


def test_the_outermost_folder_is_the_class_of_all_that_lies_deeper() -> None:
    found = read("animals/cats/0.png", "animals/1.png", "cars/red/old/2.png")
    assert found.classes == ["animals", "cars"]
    assert [label for _, label, _ in told(found)] == ["animals", "animals", "cars"]


@pytest.mark.parametrize(
    ("training", "testing"),
    [("train", "test"), ("train", "val"), ("train", "valid"), ("train", "validation"), ("Train", "TEST")],
)
def test_folders_may_say_what_is_for_testing(training: str, testing: str) -> None:
    found = read(f"{training}/cat/0.png", f"{testing}/cat/1.png", f"{testing}/dog/x/2.png")
    assert [(label, split) for _, label, split in told(found)] == [
        ("cat", "train"),
        ("cat", "test"),
        ("dog", "test"),
    ]


def test_a_class_may_be_called_train() -> None:
    assert read("train/0.png", "bus/1.png").classes == ["bus", "train"]
    assert read("train/0.png", "bus/1.png", "tram/2.png").classes == ["bus", "train", "tram"]
    assert read("train/train/0.png", "train/bus/1.png", "test/train/2.png").classes == ["bus", "train"]


def test_a_class_may_be_called_test() -> None:
    assert read("test/0.png", "drive/1.png").classes == ["drive", "test"]


def test_a_third_folder_beside_train_and_test_is_refused_by_name() -> None:
    with pytest.raises(DatasetInvalid, match="other folders, which say nothing: extra"):
        read("train/a/0.png", "test/a/1.png", "extra/a/2.png")


@pytest.mark.parametrize("name", ["val", "Valid", "validation"])
def test_pictures_to_validate_with_are_left_out_where_there_are_some_to_test_with(name: str) -> None:
    found = read("train/a/0.png", "test/a/1.png", f"{name}/b/2.png")
    assert [split for _, _, split in told(found)] == ["train", "test"]
    assert found.unused == [f"{name}/b/2.png"]
    assert found.classes == ["a"]


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("file,x,x\na.png,1,2\n", "names a column twice"),
        ("file,x,\na.png,1,\n", "must name its columns"),
        ("file,x\n", "has columns but no lines"),
    ],
)
def test_columns_that_say_nothing_are_refused(table: str, reason: str) -> None:
    with pytest.raises(DatasetInvalid, match=reason):
        read_table(table, "a.png", task=Task.REGRESSION)


def test_files_are_found_as_other_systems_write_them() -> None:
    decomposed = unicodedata.normalize("NFD", "gr\u00fcn.png")
    table = "file,label\nimages\\a.png,x\n" + unicodedata.normalize("NFC", "gr\u00fcn.png") + ",y\n"
    found = read_table(table, "images/a.png", f"images/{decomposed}")
    assert (found.missing, found.classes) == ([], ["x", "y"])


@pytest.mark.parametrize("around", ["pets", "pets/2026/final"])
def test_folders_around_everything_are_looked_through(around: str) -> None:
    assert read(f"{around}/cat/0.png", f"{around}/dog/1.png").classes == ["cat", "dog"]
    found = read(f"{around}/train/cat/0.png", f"{around}/test/dog/1.png")
    assert [split for _, _, split in told(found)] == ["train", "test"]


def test_the_only_class_is_not_looked_through() -> None:
    assert read("cat/0.png", "cat/1.png").classes == ["cat"]
    assert read("pets/cat/0.png", "pets/cat/1.png").classes == ["cat"]


def test_a_picture_that_is_too_large_still_shows_where_the_classes_are() -> None:
    assert read("pets/cat/0.png", oversized=["pets/dog/1.png"]).classes == ["cat"]


@pytest.mark.parametrize(
    "names",
    [("0.png", "1.png"), ("cat/0.png", "1.png"), ("train/0.png", "test/cat/1.png"), ("train/0.png", "test/1.png")],
)
def test_a_picture_in_no_class_is_refused_by_name(names: tuple[str, ...]) -> None:
    with pytest.raises(DatasetInvalid, match=r"lies in no class's folder: .*[01]\.png"):
        read(*names)


def test_classes_that_are_numbers_come_by_value() -> None:
    assert read(*(f"{n}/x{n}.png" for n in (10, 9, 0, 100))).classes == ["0", "9", "10", "100"]
    assert read("10/0.png", "9/1.png", "07/2.png").classes == ["07", "9", "10"]
    assert read("10/0.png", "9/1.png", "other/2.png").classes == ["10", "9", "other"]
    assert read("²/0.png", "9/1.png", "10/2.png").classes == ["10", "9", "²"]


def test_folders_without_pictures_are_told() -> None:
    found = read("pets/cat/0.png", "pets/dog/1.png", folders=["pets", "pets/cat", "pets/emu", "pets/dog/old"])
    assert found.without_pictures == ["emu"]
    assert found.classes == ["cat", "dog"]
    split = read("train/cat/0.png", "test/cat/1.png", folders=["train", "test", "train/emu", "train/cat", "test/emu"])
    assert split.without_pictures == ["emu"]


def test_the_name_of_a_class_has_a_limit() -> None:
    assert read(f"{'x' * 100}/0.png", "a/1.png").classes == ["a", "x" * 100]
    with pytest.raises(DatasetInvalid, match="1 to 100 characters"):
        read(f"{'x' * 101}/0.png", "a/1.png")


def test_so_has_their_number() -> None:
    assert len(read(*(f"{n}/0.png" for n in range(10_000))).classes) == 10_000
    with pytest.raises(DatasetInvalid, match="There are 10001 classes"):
        read(*(f"{n}/0.png" for n in range(10_001)))


# Tables

TWO = "file,label\nb.png,dog\na.png,cat\n"


def test_a_table_says_what_the_pictures_show_and_in_which_order() -> None:
    found = read_table(TWO, "a.png", "b.png")
    assert found.classes == ["cat", "dog"]
    assert told(found) == [("b.png", "dog", None), ("a.png", "cat", None)]


@pytest.mark.parametrize(
    "table",
    [
        TWO.replace(",", ";"),
        TWO.replace(",", "\t"),
        TWO.replace("\n", "\r\n"),
        TWO.replace("\n", "\r"),
        TWO.removesuffix("\n"),
        TWO.replace("\n", "\n\n"),
        TWO.replace(",", " , "),
        TWO.encode("utf-8-sig"),
        TWO.replace("file,label", "File , LABEL"),
        TWO.replace("file", "filename"),
        TWO.replace("file", "path"),
        TWO.replace("file", "image"),
        TWO.replace("label", "kind of animal"),
        TWO.replace("b.png", '"b.png"').replace("cat", '"cat"'),
        "label,file\ndog,b.png\ncat,a.png\n",
    ],
)
def test_tables_of_many_programs_are_understood(table: str | bytes) -> None:
    found = read_table(table, "a.png", "b.png")
    assert told(found) == [("b.png", "dog", None), ("a.png", "cat", None)]
    assert (found.missing, found.unused) == ([], [])


@pytest.mark.parametrize("prefix", ["", "images/"])
def test_pictures_may_lie_in_a_folder_that_the_table_need_not_name(prefix: str) -> None:
    found = read_table(f"file,label\n{prefix}b.png,dog\n{prefix}a.png,cat\n", "images/a.png", "images/b.png")
    assert told(found) == [("images/b.png", "dog", None), ("images/a.png", "cat", None)]


def test_quoted_fields_may_hold_the_delimiter_and_quotes() -> None:
    found = read_table('file,label\n"a, b.png","say ""cat"""\nc.png,dog\n', "a, b.png", "c.png")
    assert told(found) == [("a, b.png", 'say "cat"', None), ("c.png", "dog", None)]


def test_a_column_may_say_the_split() -> None:
    rows = "a.png,train,x\nb.png,Test,x\nc.png, val ,y\nd.png,validation,y\n"
    found = read_table(f"file,split,label\n{rows}", "a.png", "b.png", "c.png", "d.png")
    assert [split for _, _, split in told(found)] == ["train", "test", "test", "test"]
    assert found.classes == ["x", "y"]


@pytest.mark.parametrize("split", ["", "later", "training"])
def test_another_split_is_refused_with_its_line(split: str) -> None:
    with pytest.raises(DatasetInvalid, match=r"Line 3 of labels.csv: the split must be"):
        read_table(f"file,label,split\na.png,x,train\nb.png,y,{split}\n", "a.png", "b.png")


def test_a_table_lies_in_the_folder_around_everything() -> None:
    tables: dict[str, str | bytes] = {"pets/labels.csv": TWO, "pets/images/old/labels.csv": "not this one"}
    found = layout.read(unpacked("pets/images/a.png", "pets/images/b.png", labels=tables), Task.CLASSIFICATION)
    assert [label for _, label, _ in told(found)] == ["dog", "cat"]
    beside = unpacked("pets/a.png", "pets/b.png", labels={"pets/labels.csv": TWO})
    assert layout.read(beside, Task.CLASSIFICATION).classes == ["cat", "dog"]


def test_a_table_counts_for_more_than_folders() -> None:
    found = read_table("file,label\nx/a.png,cat\ny/b.png,dog\n", "x/a.png", "y/b.png")
    assert found.classes == ["cat", "dog"]


def test_labels_that_are_numbers_come_by_value() -> None:
    assert read_table("file,label\na.png,10\nb.png,9\n", "a.png", "b.png").classes == ["9", "10"]


def test_what_has_no_picture_or_no_row_is_told() -> None:
    table = TWO + "lost.png,dog\n/etc/a.png,dog\n../a.png,cat\na.png,dog\n,dog\n"
    found = read_table(table, "a.png", "b.png", "images/c.png")
    assert found.missing == ["lost.png", "/etc/a.png", "../a.png", "a.png", ""]
    assert found.unused == ["images/c.png"]
    assert [label for _, label, _ in told(found)] == ["dog", "cat"]  # the first row of a picture counts


def test_a_table_of_other_pictures_is_given_up_soon() -> None:
    rows = "".join(f"{n}.png,cat\n" for n in range(1001))
    assert len(read_table(f"file,label\n{rows}", "a.png").missing) == 1001
    with pytest.raises(DatasetInvalid, match=r"far more files than the archive holds; z.png is not in it"):
        read_table(f"file,label\n{rows}z.png,dog\n", "a.png")


def test_numbers_to_predict_may_be_several() -> None:
    found = read_table("file,x,y\na.png,1,-2.5\nb.png, 3e2 ,.5\n", "a.png", "b.png", task=Task.REGRESSION)
    assert found.targets == ["x", "y"]
    assert found.classes == []
    assert [each.label for each in found.samples] == [(1.0, -2.5), (300.0, 0.5)]


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e39", "-3.5e38", "", "one", "1,5", "0x10"])
def test_what_is_no_finite_number_is_refused_with_its_line(number: str) -> None:
    with pytest.raises(DatasetInvalid, match=r"Line 3 of labels.csv holds something that is no finite number"):
        read_table(f"file;y\na.png;1\nb.png;{number}\n", "a.png", "b.png", task=Task.REGRESSION)


def test_regression_needs_a_table() -> None:
    with pytest.raises(DatasetInvalid, match=r"Regression needs a labels.csv"):
        layout.read(unpacked("cat/0.png", "dog/1.png"), Task.REGRESSION)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("", "must name its columns"),
        ("\n", "must name its columns"),
        ("name,label\n", "must name its columns"),
        ("file\na.png\n", "must name its columns"),
        ("file,split\na.png,train\n", "must name its columns"),
        ("file,label,more\na.png,1,2\n", "has 2 columns of labels"),
        ("file,label\na.png\n", "Line 2 of labels.csv has 1 columns; its first has 2"),
        ("file,label\na.png,cat\n\nb.png,cat,dog\n", "Line 4 of labels.csv has 3 columns"),
        ('file,label\na.png,"cat\ndog"\n', "no table"),
        ('file,label\na.png,"cat"dog\n', "no table"),
        ("file,label\na.png,c\tt\n", "no table"),
        ("file,label\na.png,c\x00t\n", "no table"),
        ("file,label\na.png,c\x1ct\n", "no table"),
        ("file,label\na.png,cät\n".encode("latin-1"), "no table"),
        ("file,label\na.png,cat\n".encode("utf-16"), "no table"),
        ("file,label\na.png," + "x" * 65_536, "no table"),
        ("file,label\na.png,\n", "Line 2 of labels.csv has no label"),
        ("file,label\na.png," + "x" * 101, "1 to 100 characters"),
        ("file" + ",x" * 1000, "has 1001 columns; at most 1000"),
    ],
)
def test_a_table_that_is_none_is_refused_with_the_reason(table: str | bytes, problem: str) -> None:
    with pytest.raises(DatasetInvalid, match=problem):
        read_table(table, "a.png", "b.png")


LABELS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20).map(str.strip).filter(bool)


@settings(deadline=None)
@given(st.lists(LABELS, min_size=1, max_size=10), st.sampled_from(",;\t"), st.sampled_from(["\n", "\r\n"]))
def test_any_labels_are_read_as_they_were_written(labels: list[str], delimiter: str, ending: str) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=ending)
    writer.writerow(["file", "label"])
    writer.writerows((f"{number}.png", label) for number, label in enumerate(labels))
    found = read_table(buffer.getvalue(), *(f"{number}.png" for number in range(len(labels))))
    assert [label for _, label, _ in told(found)] == labels


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=10))
def test_any_numbers_are_read_as_they_were_written(numbers: list[float]) -> None:
    rows = "".join(f"{place}.png,{number!r}\n" for place, number in enumerate(numbers))
    names = [f"{place}.png" for place in range(len(numbers))]
    found = read_table(f"file,y\n{rows}", *names, task=Task.REGRESSION)
    assert [each.label for each in found.samples] == [(number,) for number in numbers]


@settings(deadline=None, max_examples=300)
@given(
    st.binary(max_size=200)
    | st.text("file,label;split\n\r\t\"' 01.png\0é", max_size=80).map(str.encode)
    | st.text('a.png,01;\n"', max_size=40).map(lambda rows: f"file,label\n{rows}".encode()),
    st.sampled_from(list(Task)),
)
def test_no_table_does_more_than_be_refused(table: bytes, task: Task) -> None:
    try:
        found = read_table(table, "a.png", "0.png", task=task)
    except DatasetInvalid:
        return
    for sample in found.samples:
        if isinstance(sample.label, int):
            assert found.classes[sample.label]
        else:
            assert len(sample.label) == len(found.targets)
            assert all(map(math.isfinite, sample.label))


FOLDERS = st.sampled_from(["a", "b", "train", "test", "val", "images"])


@settings(deadline=None)
@given(st.lists(st.lists(FOLDERS, max_size=4), min_size=1, max_size=6))
def test_every_picture_is_in_one_class_or_named_as_unused_or_all_are_refused(places: list[list[str]]) -> None:
    names = ["/".join([*place, f"{number}.png"]) for number, place in enumerate(places)]
    try:
        found = read(*names)
    except DatasetInvalid:
        return
    assert sorted([*(file for file, _, _ in told(found)), *found.unused]) == sorted(names)
    assert all("val" in file.split("/") for file in found.unused)
    assert all(label in file.split("/")[:-1] for file, label, _ in told(found))
    assert found.classes == sorted({label for _, label, _ in told(found)})
