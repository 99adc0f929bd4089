"""What was measured, as tables: medians over the rounds."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterator

from rich.table import Table

from .load import Window
from .measuring import Measured, Served
from .servers import EPOCHD
from .verdicts import Verdict, first_answer, is_small, verdicts


def servers(measured: Measured) -> Table:
    windows = next(iter(measured.served.values())).rounds[0]
    at = " / ".join(str(window.concurrency) for window in windows)
    made = _table(
        f"{measured.network}: medians at {at} requests at a time",
        "server", "requests/s", "p50 ms", "p99 ms", "errors", "wrong", "MB alone (peak)", "first answer s", "set up",
    )  # fmt: skip
    misses = wrong(measured)
    for name, served in measured.served.items():
        made.add_row(
            name,
            _medians(served, lambda window: window.per_second, ",.0f"),
            _medians(served, lambda window: window.p50_ms, ",.1f"),
            _medians(served, lambda window: window.p99_ms, ",.1f"),
            str(sum(window.errors for windows in served.rounds for window in windows)),
            f"{misses[name]} of {sum(map(len, served.answers))}",
            f"{served.alone.memory / 1e6:,.0f} ({served.alone.peak_memory / 1e6:,.0f})",
            f"{first_answer(served):.1f}",
            served.alone.setup.told,
        )
    return made


def beside(measured: Measured) -> Table:
    made = _table(
        f"{measured.network}: epochd beside the best of the others, by median",
        "what", "the best", "its", "epochd's", "ratio", "min..max", "aim",
    )  # fmt: skip
    for verdict in verdicts(measured):
        made.add_row(*_cells(verdict))
    return made


def floor(measured: Measured) -> Table:
    batches = sorted({line["batch"] for line in measured.floor})
    made = _table(
        f"{measured.network}: the machine's limit, pictures/s of one process that decodes and computes in a loop",
        "how", "threads", *(f"batches of {batch}" for batch in batches),
    )  # fmt: skip
    for way, threads in dict.fromkeys((line["way"], line["threads"]) for line in measured.floor):
        those = [line for line in measured.floor if (line["way"], line["threads"]) == (way, threads)]
        made.add_row(way, str(threads), *(f"{line['per_second']:,.0f}" for line in those))
    return made


def notes(measured: Measured) -> Iterator[str]:
    """Sentences below the tables."""
    sizes = measured.picture_bytes
    yield f"{measured.network}: {len(sizes)} pictures of {min(sizes):,} to {max(sizes):,} bytes"
    yield f"{measured.network}: under 1 GB resident at its peak: {'yes' if is_small(measured) else 'NO'}"
    yield f"{measured.network}: epochd's memory is that of {_kinds(measured.served[EPOCHD])}"
    yield f"{measured.network}: largest difference in a probability between servers: {_spread(measured):.2g}"


def wrong(measured: Measured) -> dict[str, int]:
    """Answers that failed, or name another class than most servers do for the same picture."""
    given = {
        name: [answer and answer.class_index for answers in served.answers for answer in answers]
        for name, served in measured.served.items()
    }
    most = [Counter(those).most_common(1)[0][0] for those in zip(*given.values(), strict=True)]
    return {
        name: sum(answer is None or answer != wanted for answer, wanted in zip(answers, most, strict=True))
        for name, answers in given.items()
    }


def _kinds(served: Served) -> str:
    memory = served.alone.windows[-1].memory
    return ", ".join(f"{kind} {each / 1e6:,.0f} MB" for kind, each in sorted(memory.items()))


def _spread(measured: Measured) -> float:
    """Over all answers to a picture, in all rounds."""
    rounds = [answers for served in measured.served.values() for answers in served.answers]
    of_pictures = [[answer.probability for answer in those if answer] for those in zip(*rounds, strict=True)]
    return max((max(those) - min(those) for those in of_pictures if those), default=0.0)


def _medians(served: Served, figure: Callable[[Window], float], form: str) -> str:
    of_each = zip(*served.rounds, strict=True)
    return " / ".join(format(statistics.median(map(figure, windows)), form) for windows in of_each)


def _cells(verdict: Verdict) -> tuple[str, ...]:
    ratio, aim = f"{verdict.ratio:.2f}", ""
    if verdict.aim is not None:
        aim = f"{'<=' if verdict.aim.is_most else '>='} {verdict.aim.value:g}"
        ratio = f"[{'green' if verdict.aim.met_by(verdict.ratio) else 'red'}]{ratio}[/]"
    spread = f"{min(verdict.ratios):.2f}..{max(verdict.ratios):.2f}" if len(verdict.ratios) > 1 else ""
    return verdict.name, verdict.best, f"{verdict.theirs:,.1f}", f"{verdict.ours:,.1f}", ratio, spread, aim


def _table(title: str, *heads: str) -> Table:
    made = Table(box=None, header_style="bold", title=title, title_justify="left")
    for head in heads:
        made.add_column(head, no_wrap=head != "set up")
    return made
