"""What a job says about how it failed, and the family of errors that it says it with."""

import re
import signal
from collections.abc import Iterator

import pytest

from worker.jobs import errors
from worker.jobs.errors import EpochdError, Internal, NotFound, from_code
from worker.jobs.failures import Failure


def family(error: type[EpochdError] = EpochdError) -> Iterator[type[EpochdError]]:
    for child in error.__subclasses__():
        yield child
        yield from family(child)


def test_every_error_is_a_sentence_and_a_code_of_its_own() -> None:
    found = list(family())
    assert errors.StaleAttempt in found
    codes = [error.code for error in found]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch("[a-z]+(_[a-z]+)*", code) for code in codes)
    for error in found:
        assert re.fullmatch(r"[^\n]+\.", error().detail), error
        assert str(error()) == error().detail


def test_an_error_says_what_it_is_told_to() -> None:
    error = NotFound("There is no job with this id.")
    assert (error.code, error.detail) == ("not_found", "There is no job with this id.")


def test_every_error_survives_the_wire() -> None:
    for error in family():
        again = from_code(error.code, "It broke.")
        assert type(again) is error
        assert again.detail == "It broke."


@pytest.mark.parametrize("code", ["", "no_such_error", "epochd_error"])
def test_an_unknown_code_is_an_internal_error(code: str) -> None:
    again = from_code(code, "")
    assert type(again) is Internal
    assert again.detail == Internal().detail


def test_a_failure_tells_what_the_error_says_and_what_was_being_done() -> None:
    failure = Failure.of(errors.DatasetMissing(), phase="preparing", traceback_tail="tail")
    assert failure.model_dump() == {
        "code": "dataset_missing",
        "message": "The dataset's files were not found.",
        "phase": "preparing",
        "signal": None,
        "traceback_tail": "tail",
        "suggestion": None,
    }


def test_a_failure_suggests_what_the_error_suggests() -> None:
    error = errors.Diverged("The loss became nan.", suggestion="Lower the learning rate.")
    failure = Failure.of(error)
    assert (failure.message, failure.suggestion) == ("The loss became nan.", "Lower the learning rate.")
    assert Failure.of(errors.OutOfMemory(suggestion="Take less.")).message == errors.OutOfMemory().detail


@pytest.mark.parametrize(
    ("exit_code", "code", "name", "words"),
    [
        (0, "crashed", None, "exit code 0"),
        (3, "crashed", None, "exit code 3"),
        (137, "crashed", None, "exit code 137"),
        (-signal.SIGKILL, "killed", "SIGKILL", "out of memory"),
        (-signal.SIGSEGV, "killed", "SIGSEGV", "killed by SIGSEGV."),
        (-signal.SIGTERM, "killed", "SIGTERM", "killed by SIGTERM."),
    ],
)
def test_a_process_that_left_without_a_word_is_described_by_its_exit_code(
    exit_code: int, code: str, name: str | None, words: str
) -> None:
    failure = Failure.of_exit(exit_code, log="its log", phase="training")
    assert (failure.code, failure.signal, failure.phase) == (code, name, "training")
    assert words in failure.message


def test_every_signal_can_end_a_process() -> None:
    for number in signal.valid_signals():
        failure = Failure.of_exit(-number, log="its log")
        assert failure.code == "killed"
        assert failure.signal
        assert failure.signal in failure.message
