"""How a command ends."""

from enum import IntEnum


class Exit(IntEnum):
    """The README and `epochd --help` have the table."""

    REFUSED = 1  # the service refused, or the job that was followed has failed
    USAGE = 2  # what was typed cannot be understood, or a file not be read
    NO_SERVER = 3
    NOT_FOUND = 4
    CANCELLED = 5  # the job that was followed was cancelled
    INTERRUPTED = 130
    READER_LEFT = 141  # of what was followed nobody reads on, as a shell says it of SIGPIPE


class Stop(Exception):
    """The command ends here, with this code, and a sentence that says why."""

    def __init__(self, code: Exit, sentence: str) -> None:
        super().__init__(sentence)
        self.code, self.sentence = code, sentence
