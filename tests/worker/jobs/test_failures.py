"""What a job says about how it failed, and the family of errors that it says it with."""

import re
import signal
from collections.abc import Iterator

import pytest

from worker.jobs import errors
from worker.jobs.errors import EpochdError, Internal, NotFound, from_code
from worker.jobs.failures import JOB_CODES, Failure, traceback_tail


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
    failure = Failure.of(errors.DatasetMissing(), phase="preparing", traceback_tail="tail", log_tail="log")
    assert failure.model_dump() == {
        "code": "dataset_missing",
        "message": "The dataset's files were not found.",
        "phase": "preparing",
        "signal": None,
        "traceback_tail": "tail",
        "log_tail": "log",
        "hint": None,
        "suggestion": None,
    }


def test_a_failure_says_what_the_error_says_may_help() -> None:
    error = errors.Diverged("The loss became nan.", hint="Lower the learning rate.")
    failure = Failure.of(error)
    assert (failure.message, failure.hint, failure.suggestion) == (
        "The loss became nan.",
        "Lower the learning rate.",
        None,
    )
    assert Failure.of(errors.OutOfMemory(hint="Take less.")).message == errors.OutOfMemory().detail


def test_what_is_wrong_with_a_spec_is_said_with_its_place() -> None:
    failure = Failure.of(errors.SpecRefused("A kernel is larger than its picture.", pointer="#/model/layers/3"))
    assert failure.message == "#/model/layers/3: A kernel is larger than its picture."


def test_a_traceback_is_cut_to_its_end() -> None:
    assert traceback_tail(ZeroDivisionError("é" * 5000)) == "é" * 3999 + "\n"


def test_the_codes_of_jobs_are_codes_of_the_family_and_each_is_documented() -> None:
    known = {error.code for error in family()}
    assert known >= JOB_CODES
    told = Failure.model_json_schema()["properties"]["code"]["description"]
    assert all(code in told for code in JOB_CODES)
    promised = (
        "out_of_memory diverged dataset_missing dataset_changed disk_full killed crashed stalled worker_lost "
        "checkpoint_corrupt internal"
    )
    assert set(promised.split()) <= JOB_CODES


@pytest.mark.parametrize(
    ("exit_code", "code", "name", "words"),
    [
        (0, "crashed", None, "exit code 0"),
        (3, "crashed", None, "exit code 3"),
        (137, "crashed", None, "exit code 137"),
        (255, "crashed", None, "together with the preloaded process"),
        (-signal.SIGKILL, "killed", "SIGKILL", "out of memory"),
        (-signal.SIGSEGV, "killed", "SIGSEGV", "killed by SIGSEGV."),
        (-signal.SIGTERM, "killed", "SIGTERM", "killed by SIGTERM."),
    ],
)
@pytest.mark.parametrize("what", ["training", "preparing"])
def test_a_process_that_left_without_a_word_is_described_by_its_exit_code(
    exit_code: int, code: str, name: str | None, words: str, what: str
) -> None:
    failure = Failure.of_exit(exit_code, hint="Read its log.", phase="training", log_tail="the end", what=what)
    assert (failure.code, failure.signal, failure.phase) == (code, name, "training")
    assert (failure.hint, failure.log_tail) == ("Read its log.", "the end")
    assert words in failure.message
    assert failure.message.startswith(f"The {what} process ")
    assert failure.code in JOB_CODES


def test_every_signal_can_end_a_process() -> None:
    for number in signal.valid_signals():
        failure = Failure.of_exit(-number, hint="Read its log.")
        assert failure.code == "killed"
        assert failure.signal
        assert failure.signal in failure.message
