"""The client for programs that wait for their answers. `asynchronous.py` is its mirror."""

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

import httpx2

from . import connecting, of_datasets, of_jobs, of_models, of_sweeps
from .call import Answer, Call, Flow, Pause
from .described import like
from .following import Back, Event, Following, Lost, StatusChange
from .policy import Policy

if TYPE_CHECKING:
    from worker.jobs.states import Status

    from service.bodies.jobs import JobBody, JobSummary
    from service.bodies.metrics import MetricsRow
    from service.bodies.sweeps import SweepSummary

P = ParamSpec("P")
T = TypeVar("T")


def _call(describe: Callable[P, Call[T]]) -> "Callable[Concatenate[Client, P], T]":
    def asked(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.send(describe(*args, **kwargs))

    return like(describe, asked)


def _flow(describe: Callable[Concatenate[Policy, P], Flow[T]]) -> "Callable[Concatenate[Client, P], T]":
    def done(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.run(describe(self.policy, *args, **kwargs))

    return like(describe, done, without=1)


def _of_job(describe: Callable[Concatenate[str, P], Call[T]]) -> "Callable[Concatenate[Job, P], T]":
    def asked(self: "Job", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.client.send(describe(self.id, *args, **kwargs))

    return like(describe, asked, without=1)


def _flow_of_job(
    describe: Callable[Concatenate[Policy, str, P], Flow[T]],
) -> "Callable[Concatenate[Job, P], T]":
    def done(self: "Job", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.client.run(describe(self.client.policy, self.id, *args, **kwargs))

    return like(describe, done, without=2)


def _changes_job(describe: "Callable[Concatenate[str, P], Call[JobBody]]") -> "Callable[Concatenate[Job, P], Job]":
    def changed(self: "Job", /, *args: P.args, **kwargs: P.kwargs) -> "Job":
        self.body = self.client.send(describe(self.id, *args, **kwargs))
        return self

    return like(describe, changed, without=1)


class Client:
    """Talks to an epochd.

    `url`: where it is; unset: EPOCHD_URL, else this machine and EPOCHD_PORT. `key`: unset: EPOCHD_API_KEY. `timeout`:
    how many seconds an answer may take. `retries`: how often a request that may be repeated is sent again. `transport`:
    httpx2's, for proxies, certificates or sockets of your own.

    Raises ValueError for an address that is none. Whatever is asked raises ClientError: NoServer, ApiError, NotFound...
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout: float = 30.0,
        retries: int = 4,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        self.url, key = connecting.resolved_url(url), connecting.resolved_key(key)
        self.policy = Policy(self.url, key is not None, retries)
        self.timeout = timeout
        self._http = httpx2.Client(**connecting.options(self.url, key), transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    plan = _call(of_jobs.plan)
    jobs_page = _call(of_jobs.page)
    compare = _call(of_jobs.compare)
    predict = _call(of_models.predict)
    predict_epochs = _call(of_models.predict_epochs)
    models = _call(of_models.aliases)
    set_alias = _call(of_models.set_alias)
    delete_alias = _call(of_models.delete_alias)
    rollback_alias = _call(of_models.rollback_alias)
    datasets = _call(of_datasets.every)
    dataset = _call(of_datasets.show)
    delete_dataset = _call(of_datasets.delete)
    prepare_dataset = _call(of_datasets.prepare)
    add_dataset = _flow(of_datasets.add)
    wait_dataset = _flow(of_datasets.wait)
    sweep = _call(of_sweeps.submit)
    plan_sweep = _call(of_sweeps.plan)
    sweeps_page = _call(of_sweeps.page)
    show_sweep = _call(of_sweeps.show)
    cancel_sweep = _call(of_sweeps.cancel)
    delete_sweep = _call(of_sweeps.delete)

    def submit(self, spec: Any = None, *, idempotency_key: str | None = None, **fields: Any) -> "Job":
        return Job(self, self.send(of_jobs.submit(spec, idempotency_key=idempotency_key, **fields)))

    submit.__doc__ = of_jobs.submit.__doc__

    def job(self, job_id: str) -> "Job":
        """The job with this id."""
        return Job(self, self.send(of_jobs.show(job_id)))

    def jobs(
        self,
        *,
        status: str | None = None,
        labels: dict[str, str] | None = None,
        created_after: datetime | None = None,
        sweep: str | None = None,
    ) -> "Iterator[Job]":
        """All jobs that are so, newest first; pages are asked for as they are needed."""
        cursor: str | None = None
        while True:
            page = self.jobs_page(status=status, labels=labels, created_after=created_after, sweep=sweep, after=cursor)
            for summary in page.data:
                yield Job(self, summary)
            cursor = page.next_cursor
            if cursor is None:
                return

    def sweeps(self) -> "Iterator[SweepSummary]":
        """All sweeps, newest first."""
        cursor: str | None = None
        while True:
            page = self.sweeps_page(after=cursor)
            yield from page.data
            cursor = page.next_cursor
            if cursor is None:
                return

    def send(self, call: Call[T]) -> T:
        """Raises ClientError."""
        return self.run(self.policy.exchange(call))

    def run(self, flow: Flow[T]) -> T:
        """Does what it says, and returns what comes of it. Raises ClientError."""
        answer: Answer | None = None
        lost: httpx2.RequestError | None = None
        while True:
            try:
                step = flow.send(answer) if lost is None else flow.throw(lost)
            except StopIteration as done:
                found: T = done.value
                return found
            answer = lost = None
            if isinstance(step, Pause):
                time.sleep(step.seconds)
                continue
            try:
                answer = self._answer(step)
            except httpx2.RequestError as error:
                lost = error

    def events(self, job_id: str, since: int = 0) -> Iterator[Event]:
        """All that happens to a job, until it has ended: rows of its metrics, changes of its status, and whether the
        connection is there. Raises ClientError.
        """
        following = Following(self.policy, job_id, since)
        while True:
            try:
                with self._http.sse(**following.request(self.timeout)) as source:
                    if source.response.status_code != 200:
                        news = following.refused(_read(source.response))
                    else:
                        for event in source:
                            yield from following.take(event)
                            if following.is_over:
                                return
                        news = following.broken(None)
            except httpx2.RequestError as error:
                news = following.broken(error)
            yield from news
            time.sleep(following.pause)

    def _answer(self, call: Call[Any]) -> Answer:
        with self._http.stream(**call.request(self.timeout)) as response:
            if call.into is None or response.status_code != 200:
                return _read(response)
            with call.into.begun():
                for piece in response.iter_bytes():
                    call.into.feed(piece)
            return Answer(response.status_code, response.headers, b"")


def _read(response: httpx2.Response) -> Answer:
    return Answer(response.status_code, response.headers, response.read())


class Job:
    """A job, as it was when it was last looked at. What changes it returns it, so that more can be asked."""

    def __init__(self, client: Client, body: "JobSummary") -> None:
        self.client, self.body = client, body

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.status}>"

    @property
    def id(self) -> str:
        return self.body.id

    @property
    def name(self) -> str | None:
        return self.body.name

    @property
    def status(self) -> "Status":
        return self.body.status

    cancel = _changes_job(of_jobs.cancel)
    pause = _changes_job(of_jobs.pause)
    resume = _changes_job(of_jobs.resume)
    retry = _changes_job(of_jobs.retry)
    extend = _changes_job(of_jobs.extend)
    delete = _of_job(of_jobs.delete)
    logs_page = _of_job(of_jobs.logs_page)
    checkpoints = _of_job(of_jobs.checkpoints)
    download = _of_job(of_jobs.download)
    report = _of_job(of_jobs.report)
    metrics = _flow_of_job(of_jobs.metrics)
    logs = _flow_of_job(of_jobs.logs)

    def refresh(self) -> "JobBody":
        """The whole of it, as it is now."""
        self.body = found = self.client.send(of_jobs.show(self.id))
        return found

    def wait(self, timeout: float | None = None) -> Self:
        self.body = self.client.run(of_jobs.wait(self.client.policy, self.id, timeout))
        return self

    def clone(self, **changes: Any) -> "Job":
        return Job(self.client, self.client.run(of_jobs.clone(self.client.policy, self.id, **changes)))

    def follow(self, since: int = 0) -> "Iterator[MetricsRow]":
        """Its metrics, a row an epoch, as they come, until it has ended. Whatever happens to the connection, each comes
        once.
        """
        for event in self.events(since):
            if not isinstance(event, StatusChange | Lost | Back):
                yield event

    def events(self, since: int = 0) -> Iterator[Event]:
        """The same with changes of its status, and with the news when the connection is lost and when it is back."""
        return self.client.events(self.id, since)

    wait.__doc__, clone.__doc__ = of_jobs.wait.__doc__, of_jobs.clone.__doc__
