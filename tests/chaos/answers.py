"""How requests were answered, and how soon, while something was wrong or much was asked."""

import statistics
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx2

from tests.end_to_end.serving import Epochd


@dataclass
class Answers:
    """How requests were answered, and how soon. Each thread of a test keeps its own."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)  # what no client should see

    def note(self, answer: httpx2.Response) -> httpx2.Response:
        """507 and a 503 that says when to come again are answers; any other failure of the server is not."""
        self.statuses[answer.status_code] += 1
        self.seconds.append(answer.elapsed.total_seconds())
        is_patient = answer.status_code == 503 and int(answer.headers.get("Retry-After", "0")) >= 1
        if answer.status_code >= 500 and answer.status_code != 507 and not is_patient:
            self.wrong.append(f"{answer.request.method} {answer.request.url.path}: {answer.status_code} {answer.text}")
        return answer

    def add(self, other: "Answers") -> None:
        self.statuses += other.statuses
        self.seconds += other.seconds
        self.wrong += other.wrong

    def figures(self, seconds: float) -> str:
        p99 = statistics.quantiles(self.seconds, n=100)[98] if len(self.seconds) > 1 else 0.0
        rate, median, slowest = len(self.seconds) / seconds, statistics.median(self.seconds), max(self.seconds)
        statuses = ", ".join(f"{number} x {status}" for status, number in sorted(self.statuses.items()))
        times = f"median {median * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms, slowest {slowest * 1000:.0f} ms"
        return f"{len(self.seconds)} requests ({statuses}), {rate:.0f} a second, {times}"


Ask = Callable[[httpx2.Client, Answers], None]


@contextmanager
def asking(server: Epochd, asks: list[Ask]) -> Iterator[Answers]:
    """Each of them is done again and again, in a thread of its own, while the block lasts."""
    over, all_answers = threading.Event(), Answers()
    each_answers = [Answers() for _ in asks]

    def ask_on(ask: Ask, answers: Answers) -> None:
        with httpx2.Client(base_url=server.url, timeout=60) as http:
            while not over.is_set():
                ask(http, answers)

    threads = [threading.Thread(target=ask_on, args=pair) for pair in zip(asks, each_answers, strict=True)]
    for thread in threads:
        thread.start()
    try:
        yield all_answers
    finally:
        over.set()
        for thread, answers in zip(threads, each_answers, strict=True):
            thread.join()
            all_answers.add(answers)
