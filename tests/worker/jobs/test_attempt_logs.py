"""What an attempt logged: its end, and page by page."""

import re
from pathlib import Path

import pytest

from worker.jobs import attempt_logs
from worker.jobs.attempt_logs import Page, read, tail, training_log


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "attempt-1.log"


def pages(path: Path, limit: int = 1000, *, is_whole: bool = True) -> list[Page]:
    """Read to the end."""
    found = [read(path, 0, limit, is_whole=is_whole)]
    while not found[-1].is_end:
        found.append(read(path, found[-1].next_since, limit, is_whole=is_whole))
        assert found[-1].next_since > found[-2].next_since
    return found


def test_each_attempt_has_a_file_of_its_own_in_the_jobs_folder() -> None:
    assert training_log("0a", 12) == "jobs/0a/attempt-12.log"


def test_the_tail_is_the_last_lines(log: Path) -> None:
    log.write_text("".join(f"line {number}\n" for number in range(1, 31)))
    assert tail(log) == "\n".join(f"line {number}" for number in range(21, 31))
    assert tail(log, lines=1) == "line 30"


def test_a_last_line_without_an_end_belongs_to_the_tail(log: Path) -> None:
    log.write_bytes(b"Segmentation fault\nstack: 0x")
    assert tail(log) == "Segmentation fault\nstack: 0x"


@pytest.mark.parametrize("contents", [None, b"", b"\n", b"\n\n\n"])
def test_where_nothing_was_said_there_is_no_tail(log: Path, contents: bytes | None) -> None:
    if contents is not None:
        log.write_bytes(contents)
    assert tail(log) is None


def test_the_tail_of_a_long_log_is_short_and_begins_with_a_whole_line(log: Path) -> None:
    log.write_text("".join(f"{number:0300d}\n" for number in range(1000)))
    found = tail(log)
    assert found is not None
    assert found.split("\n") == [f"{number:0300d}" for number in range(994, 1000)]


def test_the_tail_of_one_endless_line_is_its_end(log: Path) -> None:
    with log.open("wb") as file:
        file.truncate(2**40)  # a hole: to read all of it would take minutes, and more memory than there is
        file.seek(0, 2)
        file.write(b"the end")
    found = tail(log)
    assert found is not None
    assert len(found) <= 2000
    assert found.endswith("the end")


def test_what_is_no_text_is_replaced_in_the_tail(log: Path) -> None:
    log.write_bytes("☃".encode() + b"\xff\n\x00\n")
    assert tail(log) == "☃\ufffd\n\x00"
    log.write_bytes("☃".encode() * 999)
    assert re.fullmatch("\ufffd*☃+", tail(log) or "")


def test_a_folder_has_no_tail_and_no_lines(tmp_path: Path) -> None:
    assert tail(tmp_path) is None
    assert read(tmp_path, 0, 10, is_whole=True) == Page([], 0, is_end=True)


def test_only_whole_lines_are_read_while_the_attempt_writes(log: Path) -> None:
    log.write_bytes(b"one\ntw")
    assert read(log, 0, 10, is_whole=False) == Page(["one"], 4, is_end=False)
    assert read(log, 4, 10, is_whole=False) == Page([], 4, is_end=False)
    log.write_bytes(b"one\ntwo\n")
    assert read(log, 4, 10, is_whole=False) == Page(["two"], 8, is_end=True)


def test_a_last_line_without_an_end_is_read_when_nobody_will_end_it(log: Path) -> None:
    log.write_bytes(b"one\ntw")
    assert read(log, 0, 10, is_whole=True) == Page(["one", "tw"], 6, is_end=True)
    assert read(log, 6, 10, is_whole=True) == Page([], 6, is_end=True)


def test_the_limit_counts_lines_and_the_end_is_said_with_the_last(log: Path) -> None:
    log.write_bytes(b"a\nb\nc\nd")
    assert read(log, 0, 2, is_whole=True) == Page(["a", "b"], 4, is_end=False)
    assert read(log, 4, 1, is_whole=True) == Page(["c"], 6, is_end=False)
    assert read(log, 6, 1, is_whole=True) == Page(["d"], 7, is_end=True)
    log.write_bytes(b"a\nb\n")
    assert read(log, 0, 2, is_whole=True) == Page(["a", "b"], 4, is_end=True)


def test_lines_come_as_they_are(log: Path) -> None:
    lines = ['{"event": "epoch", "loss": 0.1}', "", "\r10%\r20%", "\x1b[31mred\x1b[0m", "\x00\x07", "a\x0bb\u2028c"]
    log.write_bytes("".join(f"{line}\n" for line in lines).encode())
    assert read(log, 0, 100, is_whole=False).lines == lines


def test_behind_the_end_there_is_nothing(log: Path) -> None:
    assert read(log, 5, 10, is_whole=True) == Page([], 5, is_end=True)  # not even a file
    log.write_bytes(b"one\n")
    for since in (4, 5, 2**53 - 1):
        page = read(log, since, 10, is_whole=True)
        assert (page.lines, page.next_since) == ([], since)


def test_an_offset_inside_a_line_or_a_character_reads_what_follows(log: Path) -> None:
    log.write_bytes("a☃b\nc\n".encode())
    assert read(log, 2, 10, is_whole=True).lines == ["\ufffd\ufffdb", "c"]


@pytest.mark.parametrize("letter", ["x", "é", "☃", "𝄞"])
@pytest.mark.parametrize("is_whole", [True, False])
def test_a_line_that_is_too_long_for_a_page_comes_in_pieces_of_whole_characters(
    log: Path, letter: str, is_whole: bool
) -> None:
    line = "." + letter * 200_000
    log.write_text(f"before\n{line}\nafter\n")
    found = pages(log, is_whole=is_whole)
    assert all(sum(len(each.encode()) for each in page.lines) <= attempt_logs._PAGE_BYTES for page in found)
    lines = [each for page in found for each in page.lines]
    assert (lines[0], "".join(lines[1:-1]), lines[-1]) == ("before", line, "after")
    assert found[-1].next_since == log.stat().st_size


def test_of_an_endless_line_only_a_page_is_read(log: Path) -> None:
    with log.open("wb") as file:
        file.truncate(2**40)
    page = read(log, 0, 1000, is_whole=True)
    assert (page.lines, page.is_end) == (["\x00" * attempt_logs._PAGE_BYTES], False)


def test_many_short_lines_are_read_in_pages(log: Path) -> None:
    log.write_bytes(b"\n" * 2500)
    assert [len(page.lines) for page in pages(log)] == [1000, 1000, 500]


def test_a_page_of_bytes_that_are_no_text_still_gets_on(log: Path) -> None:
    log.write_bytes(b"\xf0\x9f\x98" * 200_000)
    found = pages(log)
    assert found[-1].next_since == 600_000
    assert {character for page in found for line in page.lines for character in line} == {"\ufffd"}


STACKS = b"""{"event": "epoch_done"}
Fatal Python error: Segmentation fault

Current thread 0x00007f (most recent call first):
  File "loops.py", line 40 in train_loop

Extension modules: numpy, torch (total: 2)
"""


def test_the_tail_of_one_that_died_begins_with_what_it_died_of(log: Path) -> None:
    log.write_bytes(STACKS)
    assert (tail(log) or "").startswith("Fatal Python error: Segmentation fault\n\nCurrent thread")


def test_the_tail_of_one_that_was_asked_where_it_is_says_that(log: Path) -> None:
    log.write_bytes(STACKS.replace(b"Fatal Python error: Segmentation fault\n\n", b""))
    assert (tail(log) or "").startswith("Current thread 0x00007f (most recent call first):\n  File")
