"""The client for programs that do something else meanwhile. `sync.py` is its mirror."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
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


def _call(describe: Callable[P, Call[T]]) -> "Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]":
    async def asked(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.send(describe(*args, **kwargs))

    return like(describe, asked)


def _flow(
    describe: Callable[Concatenate[Policy, P], Flow[T]],
) -> "Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]]":
    async def done(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.run(describe(self.policy, *args, **kwargs))

    return like(describe, done, without=1)


def _of_job(
    describe: Callable[Concatenate[str, P], Call[T]],
) -> "Callable[Concatenate[AsyncJob, P], Coroutine[Any, Any, T]]":
    async def asked(self: "AsyncJob", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.client.send(describe(self.id, *args, **kwargs))

    return like(describe, asked, without=1)


def _flow_of_job(
    describe: Callable[Concatenate[Policy, str, P], Flow[T]],
) -> "Callable[Concatenate[AsyncJob, P], Coroutine[Any, Any, T]]":
    async def done(self: "AsyncJob", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.client.run(describe(self.client.policy, self.id, *args, **kwargs))

    return like(describe, done, without=2)


def _changes_job(
    describe: "Callable[Concatenate[str, P], Call[JobBody]]",
) -> "Callable[Concatenate[AsyncJob, P], Coroutine[Any, Any, AsyncJob]]":
    async def changed(self: "AsyncJob", /, *args: P.args, **kwargs: P.kwargs) -> "AsyncJob":
        self.body = await self.client.send(describe(self.id, *args, **kwargs))
        return self

    return like(describe, changed, without=1)


class AsyncClient:
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
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.url, key = connecting.resolved_url(url), connecting.resolved_key(key)
        self.policy = Policy(self.url, key is not None, retries)
        self.timeout = timeout
        self._http = httpx2.AsyncClient(**connecting.options(self.url, key), transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

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

    async def submit(self, spec: Any = None, *, idempotency_key: str | None = None, **fields: Any) -> "AsyncJob":
        return AsyncJob(self, await self.send(of_jobs.submit(spec, idempotency_key=idempotency_key, **fields)))

    submit.__doc__ = of_jobs.submit.__doc__

    async def job(self, job_id: str) -> "AsyncJob":
        """The job with this id."""
        return AsyncJob(self, await self.send(of_jobs.show(job_id)))

    async def jobs(
        self,
        *,
        status: str | None = None,
        labels: dict[str, str] | None = None,
        created_after: datetime | None = None,
        sweep: str | None = None,
    ) -> "AsyncIterator[AsyncJob]":
        """All jobs that are so, newest first; pages are asked for as they are needed."""
        cursor: str | None = None
        while True:
            page = await self.jobs_page(
                status=status, labels=labels, created_after=created_after, sweep=sweep, after=cursor
            )
            for summary in page.data:
                yield AsyncJob(self, summary)
            cursor = page.next_cursor
            if cursor is None:
                return

    async def sweeps(self) -> "AsyncIterator[SweepSummary]":
        """All sweeps, newest first."""
        cursor: str | None = None
        while True:
            page = await self.sweeps_page(after=cursor)
            for summary in page.data:
                yield summary
            cursor = page.next_cursor
            if cursor is None:
                return

    async def send(self, call: Call[T]) -> T:
        """Raises ClientError."""
        return await self.run(self.policy.exchange(call))

    async def run(self, flow: Flow[T]) -> T:
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
                await asyncio.sleep(step.seconds)
                continue
            try:
                answer = await self._answer(step)
            except httpx2.RequestError as error:
                lost = error

    async def events(self, job_id: str, since: int = 0) -> AsyncIterator[Event]:
        """All that happens to a job, until it has ended: rows of its metrics, changes of its status, and whether the
        connection is there. Raises ClientError.
        """
        following = Following(self.policy, job_id, since)
        while True:
            try:
                async with self._http.sse(**following.request(self.timeout)) as source:
                    if source.response.status_code != 200:
                        news = following.refused(await _read(source.response))
                    else:
                        async for event in source:
                            for each in following.take(event):
                                yield each
                            if following.is_over:
                                return
                        news = following.broken(None)
            except httpx2.RequestError as error:
                news = following.broken(error)
            for each in news:
                yield each
            await asyncio.sleep(following.pause)

    async def _answer(self, call: Call[Any]) -> Answer:
        async with self._http.stream(**call.request(self.timeout)) as response:
            if call.into is None or response.status_code != 200:
                return await _read(response)
            with call.into.begun():
                async for piece in response.aiter_bytes():
                    call.into.feed(piece)
            return Answer(response.status_code, response.headers, b"")


async def _read(response: httpx2.Response) -> Answer:
    return Answer(response.status_code, response.headers, await response.aread())


class AsyncJob:
    """A job, as it was when it was last looked at. What changes it returns it, so that more can be asked."""

    def __init__(self, client: AsyncClient, body: "JobSummary") -> None:
        self.client, self.body = client, body

    def __repr__(self) -> str:
        return f"<AsyncJob {self.id} {self.status}>"

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

    async def refresh(self) -> "JobBody":
        """The whole of it, as it is now."""
        self.body = found = await self.client.send(of_jobs.show(self.id))
        return found

    async def wait(self, timeout: float | None = None) -> Self:
        self.body = await self.client.run(of_jobs.wait(self.client.policy, self.id, timeout))
        return self

    async def clone(self, **changes: Any) -> "AsyncJob":
        return AsyncJob(self.client, await self.client.run(of_jobs.clone(self.client.policy, self.id, **changes)))

    async def follow(self, since: int = 0) -> "AsyncIterator[MetricsRow]":
        """Its metrics, a row an epoch, as they come, until it has ended. Whatever happens to the connection, each comes
        once.
        """
        async for event in self.events(since):
            if not isinstance(event, StatusChange | Lost | Back):
                yield event

    def events(self, since: int = 0) -> AsyncIterator[Event]:
        """The same with changes of its status, and with the news when the connection is lost and when it is back."""
        return self.client.events(self.id, since)

    wait.__doc__, clone.__doc__ = of_jobs.wait.__doc__, of_jobs.clone.__doc__
