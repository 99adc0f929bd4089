"""Webhooks reach a real TLS server: signed, only where they may go, and again until they have arrived."""

import asyncio
import json
import re
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update
from sqlmodel import col

import service.main
import service.webhooks
from service.webhooks import RETRY_SECONDS, NotDelivered, Sender, deliver, require_allowed, retry_in, signature
from tests.service.conftest import Serve
from tests.service.receiving import Authority, Receiver, answering, receiving
from tests.service.test_errors import assert_problem
from tests.worker.jobs.making import finish, running
from worker.jobs import deliveries
from worker.jobs.db import Database
from worker.jobs.deliveries import Due
from worker.jobs.errors import UrlNotAllowed
from worker.jobs.settings import Settings
from worker.jobs.spec import Spec
from worker.jobs.spec.addresses import check_url
from worker.jobs.states import DeliveryStatus, Outcome
from worker.jobs.tables import Delivery, Job

SECRET = "a secret of sixteen characters or more"
PAYLOAD = {"id": "d" * 24, "event": "job.succeeded", "job": {"id": "j" * 24, "name": "bücher"}}
README = (Path(__file__).parents[2] / "README.md").read_text()

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates: apt-get install openssl")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


class Names:
    """A name server that answers these, one after the other and the last one for ever."""

    def __init__(self, *answers: list[str]) -> None:
        self._answers = list(answers) or [["127.0.0.1"]]
        self.asked: list[tuple[str, int]] = []

    def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def sender_of(authority: Authority, names: Callable[[str, int], list[str]] | None = None, **more: Any) -> Sender:
    """As the service's, but that 127.0.0.1 is the public network. (127.0.0.2 is not.)"""
    is_public = {"127.0.0.1"}.__contains__
    return Sender(SECRET, resolve=names or Names(), is_public=is_public, context=authority.context(), **more)


def due(url: str | None, tries: int = 1) -> Due:
    delivery = Delivery(id="d" * 24, job_id="j" * 24, hook=0, event="job.succeeded", payload=PAYLOAD, tries=tries)
    return Due(delivery, url)


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 30))


def refused(sender: Sender, authority: Authority, **how: Any) -> tuple[str, Receiver]:
    """What the try ended with, and what the receiver saw of it."""
    url, host = how.pop("url", None), how.pop("host", "hooks.example.com")
    ended: list[Any] = []

    async def work() -> None:
        async with receiving(authority, host, **how) as receiver:
            with pytest.raises(NotDelivered, match=r"^[A-Z].*\.$") as error:
                await sender.send(due(url or receiver.url()))
            ended.extend([str(error.value), receiver])

    run(work)
    return ended[0], ended[1]


def test_a_delivery_arrives_signed(authority: Authority) -> None:
    names = Names()

    async def work() -> None:
        async with receiving(authority) as receiver:
            await sender_of(authority, names).send(due(receiver.url()))
            assert names.asked == [("hooks.example.com", receiver.port)]
            assert receiver.names == ["hooks.example.com"]
            (got,) = receiver.received
            assert got.line == "POST /T0/secret-path?x=1 HTTP/1.1"
            assert got.headers["host"] == f"hooks.example.com:{receiver.port}"
            assert got.headers["content-type"] == "application/json"
            assert got.headers["epochd-event"] == "job.succeeded"
            assert got.headers["epochd-delivery"] == "d" * 24
            assert re.fullmatch(r"epochd/\d.*", got.headers["user-agent"])
            assert json.loads(got.body) == PAYLOAD
            at, digest = re.fullmatch(r"t=(\d+),v1=([0-9a-f]{64})", got.headers["epochd-signature"]).groups()  # type: ignore[union-attr]
            assert abs(int(at) - time.time()) < 60
            assert signature(SECRET.encode(), int(at), got.body) == f"t={at},v1={digest}"

    run(work)


def test_what_the_readme_shows_tells_the_genuine_from_the_forged() -> None:
    chapter = README.partition("## Webhooks")[2].partition("\n## ")[0]
    (block,) = re.findall(r"^```python\n(.*?)^```$", chapter, re.MULTILINE | re.DOTALL)
    shown: dict[str, Any] = {}
    exec(block, shown)
    body, now = b'{"id": "x"}', int(time.time())
    header = signature(SECRET.encode(), now, body)
    assert shown["is_genuine"](SECRET, header, body)
    assert not shown["is_genuine"](SECRET, header, body + b" ")
    assert not shown["is_genuine"](SECRET + "x", header, body)
    assert not shown["is_genuine"](SECRET, header.replace(str(now), str(now + 1)), body)
    assert not shown["is_genuine"](SECRET, signature(SECRET.encode(), now - 3600, body), body)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirection_is_not_followed(authority: Authority, status: int) -> None:
    names = Names()
    answers = [answering(status, "Location: https://127.0.0.2/latest/meta-data")]
    error, receiver = refused(sender_of(authority, names), authority, answers=answers)
    assert error == f"The receiver answered {status}; redirections are not followed."
    assert (receiver.connections, len(names.asked)) == (1, 1)


@pytest.mark.parametrize("status", [400, 401, 404, 410, 429, 500, 503])
def test_an_answer_that_is_not_2xx_is_a_failure(authority: Authority, status: int) -> None:
    error, _ = refused(sender_of(authority), authority, answers=[answering(status, "X-Secret: canary")])
    assert error == f"The receiver answered {status}."


@pytest.mark.parametrize("found", [["127.0.0.2"], ["127.0.0.1", "127.0.0.2"], ["::1", "127.0.0.1"], []])
def test_a_name_that_leads_home_is_not_called(authority: Authority, found: list[str]) -> None:
    error, receiver = refused(sender_of(authority, Names(found)), authority)
    assert error == "The name of the receiver resolves to an address that is not public."
    assert receiver.connections == 0


def test_the_real_rules_hold_when_a_name_has_been_resolved(authority: Authority) -> None:
    for private in ("127.0.0.1", "10.0.0.1", "169.254.169.254", "100.64.0.1", "::1", "fe80::1%eth0", "::ffff:10.0.0.1"):
        sender = Sender(SECRET, resolve=Names(["8.8.8.8", private]), context=authority.context())
        error, receiver = refused(sender, authority)
        assert error == "The name of the receiver resolves to an address that is not public."
        assert receiver.connections == 0


def test_a_name_that_changes_its_mind_is_asked_only_once(authority: Authority) -> None:
    """A name server that says the allowed address to who checks, and another to who connects, gains nothing."""
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    sender = sender_of(authority, names)

    async def work() -> None:
        async with receiving(authority) as receiver:
            await sender.send(due(receiver.url()))
            assert (len(receiver.received), len(names.asked)) == (1, 1)
            with pytest.raises(NotDelivered, match="not public"):
                await sender.send(due(receiver.url(), tries=2))
            assert receiver.connections == 1

    run(work)


def test_a_url_that_was_let_in_is_judged_again(authority: Authority) -> None:
    names = Names()
    for url in ("http://hooks.example.com/", "https://localhost/", "https://2130706433/", "https://[::1]/", "file:///"):
        _, receiver = refused(sender_of(authority, names), authority, url=url)
        assert receiver.connections == 0
    assert names.asked == []


def test_a_certificate_of_another_name_is_not_accepted(authority: Authority) -> None:
    error, receiver = refused(sender_of(authority), authority, host="other.example.com")
    assert error.startswith("The receiver's certificate is not accepted: Hostname mismatch")
    assert receiver.received == []


def test_a_certificate_of_an_unknown_authority_is_not_accepted(authority: Authority) -> None:
    sender = Sender(SECRET, resolve=Names(), is_public={"127.0.0.1"}.__contains__)
    error, receiver = refused(sender, authority)
    assert error.startswith("The receiver's certificate is not accepted: ")
    assert receiver.received == []


def test_what_a_proxy_is_set_to_makes_no_difference(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "ALL_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async def work() -> None:
        async with receiving(authority) as receiver:
            await sender_of(authority).send(due(receiver.url()))
            assert len(receiver.received) == 1

    run(work)


def test_a_receiver_that_does_not_answer_is_left(authority: Authority) -> None:
    started = time.monotonic()
    error, receiver = refused(sender_of(authority, try_seconds=0.3), authority, seconds=20.0)
    assert error == "The receiver did not answer within 0.3 seconds."
    assert len(receiver.received) == 1
    assert time.monotonic() - started < 10


def test_a_receiver_that_never_comes_to_an_end_of_its_headers_is_left(authority: Authority) -> None:
    error, _ = refused(
        sender_of(authority, try_seconds=0.5), authority, answers=[b"HTTP/1.1 200 OK\r\nX: "], is_endless=True
    )
    assert error in (
        "The receiver did not answer within 0.5 seconds.",
        "The connection to the receiver broke before it had answered.",  # that many headers are too many
    )


def test_of_a_body_without_end_nothing_is_read(authority: Authority) -> None:
    started = time.monotonic()

    async def work() -> None:
        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
        async with receiving(authority, answers=[head], is_endless=True) as receiver:
            await sender_of(authority).send(due(receiver.url()))

    run(work)
    assert time.monotonic() - started < 5


def test_a_name_server_that_does_not_answer_is_left(authority: Authority) -> None:
    def slow(host: str, port: int) -> list[str]:
        time.sleep(1.0)
        return ["127.0.0.1"]

    error, receiver = refused(sender_of(authority, slow, try_seconds=0.2), authority)
    assert error == "The receiver did not answer within 0.2 seconds."
    assert receiver.connections == 0


def test_a_name_that_there_is_not_is_a_failure(authority: Authority) -> None:
    def unknown(host: str, port: int) -> list[str]:
        raise OSError(-2, "Name or service not known")

    assert refused(sender_of(authority, unknown), authority)[0] == "The name of the receiver could not be resolved."


def test_nobody_there_is_a_failure(authority: Authority) -> None:
    error, _ = refused(sender_of(authority), authority, url="https://hooks.example.com:1025/")
    assert error == "The receiver could not be connected to."


def test_what_is_no_http_is_a_failure(authority: Authority) -> None:
    for answer in (b"SSH-2.0-canary\r\n\r\n", b"", b"HTTP/1.1 99999 canary\r\n\r\n"):
        error, _ = refused(sender_of(authority), authority, answers=[answer])
        assert "canary" not in error


def test_the_addresses_of_a_name_take_turns(authority: Authority) -> None:
    sender = Sender(SECRET, resolve=Names(["127.0.0.1", "127.0.0.3"]), is_public=lambda _: True)
    address = check_url("https://hooks.example.com/")

    async def work() -> None:
        assert [await sender._found(address, tries) for tries in (1, 2, 3)] == ["127.0.0.1", "127.0.0.3", "127.0.0.1"]

    run(work)


def test_tries_get_rarer_and_come_to_an_end() -> None:
    for _ in range(50):
        waits = [retry_in(tries) for tries in range(1, len(RETRY_SECONDS) + 1)]
        assert waits == sorted(waits, key=float)  # type: ignore[arg-type]
        assert all(0.8 * each <= (wait or 0) <= 1.2 * each for each, wait in zip(RETRY_SECONDS, waits, strict=True))
    assert retry_in(len(RETRY_SECONDS) + 1) is None
    assert retry_in(len(RETRY_SECONDS) + 5) is None
    assert len({retry_in(1) for _ in range(20)}) > 1


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.webhooks, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(service.webhooks, "RETRY_SECONDS", (0.02, 0.02, 0.02))


def ended(db: Database, receiver: Receiver, outcome: Outcome = Outcome.SUCCEEDED, hooks: int = 1) -> Job:
    """A job that has just ended, and whose webhooks wait to be told."""
    job = running(db, webhooks=[{"url": receiver.url()}] * hooks)
    finish(db, job, outcome)
    return job


async def until(is_so: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def while_delivering(db: Database, *senders: Sender, until: Awaitable[None]) -> None:
    tasks = [asyncio.create_task(deliver(db, sender)) for sender in senders]
    try:
        await until
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


def settled(db: Database, job: Job) -> bool:
    return all(each.status != DeliveryStatus.PENDING for each in deliveries.of_job(db, job.id))


@pytest.mark.usefixtures("quickly")
def test_what_fails_is_tried_again_until_it_arrives(authority: Authority, db: Database) -> None:
    async def work() -> None:
        async with receiving(authority, answers=[answering(500), answering(302)]) as receiver:
            job = ended(db, receiver)
            await while_delivering(db, sender_of(authority), until=until(lambda: settled(db, job)))
            (delivery,) = deliveries.of_job(db, job.id)
            assert (delivery.status, delivery.tries, delivery.error) == (DeliveryStatus.DELIVERED, 3, None)
            assert receiver.deliveries == [delivery.id] * 3  # the same each time
            assert json.loads(receiver.received[-1].body)["job"]["id"] == job.id
            assert len({each.body for each in receiver.received}) == 1

    run(work)


@pytest.mark.usefixtures("quickly")
def test_what_never_arrives_is_given_up(authority: Authority, db: Database) -> None:
    async def work() -> None:
        async with receiving(authority, answers=[answering(500)] * 9) as receiver:
            job = ended(db, receiver)
            await while_delivering(db, sender_of(authority), until=until(lambda: settled(db, job)))
            (delivery,) = deliveries.of_job(db, job.id)
            assert (delivery.status, delivery.tries) == (DeliveryStatus.GIVEN_UP, 4)
            assert delivery.error == "The receiver answered 500."
            assert len(receiver.received) == 4

    run(work)


@pytest.mark.usefixtures("quickly")
def test_what_has_no_address_any_more_is_given_up_at_once(authority: Authority, db: Database) -> None:
    async def work() -> None:
        job = ended(db, Receiver(port=8443))
        with db.write() as session:
            session.execute(update(Job).where(col(Job.id) == job.id).values(spec={"epochs": 1}))
        await while_delivering(db, sender_of(authority), until=until(lambda: settled(db, job)))
        (delivery,) = deliveries.of_job(db, job.id)
        assert (delivery.status, delivery.tries) == (DeliveryStatus.GIVEN_UP, 1)
        assert delivery.error == "The job has no such webhook any more."

    run(work)


@pytest.mark.usefixtures("quickly")
def test_two_services_never_send_the_same_twice(authority: Authority, db: Database) -> None:
    async def work() -> None:
        async with receiving(authority, seconds=0.02) as receiver:
            jobs = [ended(db, receiver, hooks=5) for _ in range(8)]
            senders = [sender_of(authority) for _ in range(2)]
            await while_delivering(db, *senders, until=until(lambda: all(settled(db, job) for job in jobs)))
            wanted = [each.id for job in jobs for each in deliveries.of_job(db, job.id)]
            assert sorted(receiver.deliveries) == sorted(wanted)
            assert len(wanted) == 40

    run(work)


@pytest.mark.usefixtures("quickly")
def test_what_a_service_was_sending_when_it_stopped_is_sent_by_the_next(
    authority: Authority, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.webhooks, "_HOLD_SECONDS", 0.5)

    async def work() -> None:
        async with receiving(authority, seconds=20.0) as receiver:
            job = ended(db, receiver)
            await while_delivering(db, sender_of(authority), until=until(lambda: len(receiver.received) == 1))
            assert not settled(db, job)
            receiver.seconds = 0.0
            await while_delivering(db, sender_of(authority), until=until(lambda: settled(db, job)))
            (delivery,) = deliveries.of_job(db, job.id)
            assert (delivery.status, delivery.tries) == (DeliveryStatus.DELIVERED, 2)
            assert receiver.deliveries == [delivery.id] * 2

    run(work)


@pytest.mark.usefixtures("quickly")
def test_who_does_not_answer_keeps_nobody_waiting(authority: Authority, db: Database) -> None:
    async def work() -> None:
        async with receiving(authority, seconds=20.0) as slow, receiving(authority) as quick:
            ended(db, slow, hooks=5)
            job = ended(db, quick)
            await while_delivering(db, sender_of(authority), until=until(lambda: settled(db, job), seconds=8.0))
            assert len(quick.received) == 1

    run(work)


@pytest.mark.usefixtures("quickly")
def test_an_unexpected_error_stops_nothing(authority: Authority, db: Database) -> None:
    class Broken(Sender):
        async def send(self, due: Due) -> None:
            if due.delivery.tries == 1:
                raise ZeroDivisionError
            await super().send(due)

    async def work() -> None:
        async with receiving(authority) as receiver:
            job = ended(db, receiver)
            sender = Broken(SECRET, resolve=Names(), is_public={"127.0.0.1"}.__contains__, context=authority.context())
            await while_delivering(db, sender, until=until(lambda: settled(db, job)))
            assert deliveries.of_job(db, job.id)[0].tries == 2

    run(work)


def test_neither_secret_nor_path_is_logged(
    authority: Authority, db: Database, log: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.webhooks, "_LOOK_SECONDS", 0.01)

    async def work() -> None:
        async with receiving(authority, answers=[answering(500, "X: canary")]) as receiver:
            job = ended(db, receiver)
            tried = until(lambda: deliveries.of_job(db, job.id)[0].error is not None)
            await while_delivering(db, sender_of(authority), until=tried)

    run(work)
    assert [each["event"] for each in log if each["event"] == "webhook"] == ["webhook"]
    assert not re.search(f"secret-path|canary|{SECRET}", repr(log))


def test_a_service_sends_only_where_it_is_told_to(serve: Serve, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    class Recording(Sender):
        async def send(self, due: Due) -> None:
            sent.append(due.delivery.id)

    monkeypatch.setattr(service.main, "Sender", Recording)
    monkeypatch.setattr(service.webhooks, "_LOOK_SECONDS", 0.01)
    job = ended(db, Receiver(port=8443))
    serve()
    time.sleep(0.3)
    assert sent == []
    serve(webhooks=True, webhook_secret=SECRET)
    asyncio.run(until(lambda: settled(db, job)))
    assert sent == [each.id for each in deliveries.of_job(db, job.id)]


def test_a_service_that_sends_none_takes_none(client: TestClient) -> None:
    hooks = [{"url": "https://hooks.example.com/"}]
    require_allowed(Settings(), Spec())
    with pytest.raises(UrlNotAllowed, match="EPOCHD_WEBHOOKS"):
        require_allowed(Settings(), Spec.model_validate({"webhooks": hooks}))
    assert_problem(client.post("/jobs", json={"webhooks": hooks}), 422, "url_not_allowed")
    assert_problem(client.post("/jobs?dry_run=true", json={"webhooks": hooks}), 422, "url_not_allowed")
    assert client.get("/jobs").json()["data"] == []


def test_an_address_of_the_house_is_refused_when_the_job_is_submitted(serve: Serve, db: Database) -> None:
    client = serve(webhooks=True, webhook_secret=SECRET)
    settings = Settings.model_validate({"webhooks": True, "webhook_secret": SECRET})
    for url in (
        "http://a.example/",
        "file:///etc/passwd",
        "https://10.0.0.1/",
        "https://0x7f.1/",
        "https://localhost/",
    ):
        hooks = [{"url": "https://hooks.example.com/"}, {"url": url}]
        with pytest.raises(UrlNotAllowed, match=r"^#/webhooks/1/url: "):
            require_allowed(settings, Spec.model_validate({"webhooks": hooks}))
        answer = client.post("/jobs", json={"webhooks": hooks})
        assert_problem(answer, 422, "url_not_allowed")
        assert "#/webhooks/1/url" in answer.json()["detail"]
    answer = client.post("/jobs", json={"webhooks": hooks[:1]})
    assert answer.status_code == 201
    assert answer.json()["spec"]["webhooks"][0]["events"] == ["job.succeeded", "job.failed", "job.cancelled"]


def test_what_became_of_deliveries_is_shown_without_paths(client: TestClient, db: Database) -> None:
    job = ended(db, Receiver(port=8443), hooks=2)
    first, second = deliveries.of_job(db, job.id)
    claimed = deliveries.claim(db, 60.0)
    assert claimed is not None
    deliveries.settle(db, claimed.delivery, delivered=False, error="The receiver answered 500.")
    answer = client.get(f"/jobs/{job.id}/deliveries")
    shown = answer.json()["data"]
    assert [each["id"] for each in shown] == [first.id, second.id]
    assert [each["status"] for each in shown] == ["given_up", "pending"]
    assert [each["tries"] for each in shown] == [1, 0]
    assert shown[0]["error"] == "The receiver answered 500."
    assert (shown[0]["next_at"], shown[1]["settled_at"], shown[1]["hook"]) == (None, None, 1)
    assert shown[0]["origin"] == "https://hooks.example.com:8443"
    assert shown[0]["event"] == "job.succeeded"
    assert "secret" not in answer.text


def test_a_job_without_webhooks_has_no_deliveries(client: TestClient, db: Database) -> None:
    job = running(db)
    finish(db, job, Outcome.SUCCEEDED)
    assert client.get(f"/jobs/{job.id}/deliveries").json() == {"data": []}
    assert_problem(client.get(f"/jobs/{'0' * 24}/deliveries"), 404, "not_found")
