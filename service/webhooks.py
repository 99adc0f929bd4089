"""Webhooks: whether a job may have them, and the loop that sends what they are to be told.

A name is resolved once, and what is connected to is exactly the address that was found to be public: a name server
that answers something else a moment later changes nothing.
"""

import asyncio
import hashlib
import hmac
import json
import random
import socket
import ssl
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Final

import anyio
import httpx2
import structlog
from starlette.concurrency import run_in_threadpool
from worker.jobs import deliveries
from worker.jobs.db import DATABASE_AWAY, Database
from worker.jobs.deliveries import Due
from worker.jobs.errors import UrlNotAllowed
from worker.jobs.settings import Settings
from worker.jobs.spec import Spec
from worker.jobs.spec.addresses import Address, check_url, is_public

RETRY_SECONDS: Final = (10.0, 60.0, 300.0, 1800.0, 7200.0, 21_600.0, 43_200.0)  # after each try; then it is given up
_JITTER: Final = 0.2  # of those: what failed together does not come back together
_LOOK_SECONDS: Final = 1.0
_AWAY_SECONDS: Final = 10.0
_TRY_SECONDS: Final = 10.0
_CONNECT_SECONDS: Final = 5.0
_HOLD_SECONDS: Final = 60.0  # nobody else tries it meanwhile: longer than a try can take
_AT_ONCE: Final = 16  # receivers that do not answer keep others waiting only when they are so many
_jitter = random.SystemRandom()
_log = structlog.get_logger()

Resolve = Callable[[str, int], list[str]]


def require_allowed(settings: Settings, spec: Spec) -> None:
    """Raises UrlNotAllowed when the spec has webhooks and this service sends none, or not to such an address."""
    if spec.webhooks and not settings.webhooks:
        raise UrlNotAllowed("This service sends no webhooks; who runs it allows them with EPOCHD_WEBHOOKS.")
    for place, hook in enumerate(spec.webhooks):
        try:
            check_url(hook.url)
        except ValueError as error:
            raise UrlNotAllowed(f"#/webhooks/{place}/url: {error}") from error


def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, in the order in which to try them. Raises OSError."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class NotDelivered(Exception):
    """The try failed, for the reason that its sentence says."""


class Sender:
    """Sends deliveries, signed with the secret. What it is given besides is for tests, which have no public network."""

    def __init__(
        self,
        secret: str,
        *,
        resolve: Resolve = resolve,
        is_public: Callable[[str], bool] = is_public,
        context: ssl.SSLContext | None = None,
        try_seconds: float = _TRY_SECONDS,
    ) -> None:
        self._secret = secret.encode()
        self._resolve = resolve
        self._is_public = is_public
        self._context = context or httpx2.create_ssl_context()
        self._seconds = try_seconds
        self._lookups = anyio.CapacityLimiter(_AT_ONCE)  # of its own: a name server that hangs delays no request

    async def send(self, due: Due) -> None:
        """Returns when the receiver has taken it. Raises NotDelivered."""
        if due.url is None:
            raise NotDelivered("The job has no such webhook any more.")
        try:
            address = check_url(due.url)  # again: the rules may be stricter than when it was submitted
        except ValueError as error:
            raise NotDelivered(str(error)) from error
        try:
            async with asyncio.timeout(self._seconds):
                ip = await self._found(address, due.delivery.tries)
                status = await self._post(ip, address, due)
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise NotDelivered(f"The receiver did not answer within {self._seconds:g} seconds.") from error
        except httpx2.HTTPError as error:
            raise NotDelivered(_told(error)) from error
        if 300 <= status < 400:
            raise NotDelivered(f"The receiver answered {status}; redirections are not followed.")
        if not 200 <= status < 300:
            raise NotDelivered(f"The receiver answered {status}.")

    async def _found(self, address: Address, tries: int) -> str:
        """The address to connect to; each try takes the next one. Raises NotDelivered, also when any is not public."""
        try:
            found = await anyio.to_thread.run_sync(
                self._resolve, address.host, address.port, abandon_on_cancel=True, limiter=self._lookups
            )
        except (OSError, UnicodeError) as error:
            raise NotDelivered("The name of the receiver could not be resolved.") from error
        if not found or not all(map(self._is_public, found)):
            raise NotDelivered("The name of the receiver resolves to an address that is not public.")
        return found[max(0, tries - 1) % len(found)]

    async def _post(self, ip: str, address: Address, due: Due) -> int:
        """The status. A client for each: a connection that was checked for one name must not serve another's."""
        body = json.dumps(due.delivery.payload, separators=(",", ":")).encode()
        async with (
            httpx2.AsyncClient(
                verify=self._context,
                trust_env=False,
                follow_redirects=False,
                timeout=httpx2.Timeout(self._seconds, connect=min(_CONNECT_SECONDS, self._seconds)),
            ) as client,
            client.stream(
                "POST",
                _url(ip, address),
                content=body,
                headers={"Host": address.authority, **self._headers(due, body)},
                extensions={"sni_hostname": address.host},
            ) as response,
        ):
            return response.status_code  # and of the body nothing

    def _headers(self, due: Due, body: bytes) -> dict[str, str]:
        return {
            "Content-Type": "application/json",
            "User-Agent": f"epochd/{version('epochd')}",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            "Epochd-Event": due.delivery.event,
            "Epochd-Delivery": due.delivery.id,
            "Epochd-Signature": signature(self._secret, int(time.time()), body),
        }


def signature(secret: bytes, at: int, body: bytes) -> str:
    """The time is signed too, so that what was overheard cannot be sent again much later."""
    digest = hmac.new(secret, f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at},v1={digest}"


def retry_in(tries: int) -> float | None:
    """Seconds until the next try, after so many; None when it is to be given up."""
    if tries > len(RETRY_SECONDS):
        return None
    return RETRY_SECONDS[tries - 1] * _jitter.uniform(1 - _JITTER, 1 + _JITTER)


async def deliver(db: Database, sender: Sender) -> None:
    """Sends what is due, some at once. Until cancelled: what is under way then is sent anew later."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def attempt(due: Due) -> None:
        try:
            await _attempt(db, sender, due)
        finally:
            room.release()

    async with asyncio.TaskGroup() as under_way:
        while True:
            await room.acquire()
            pause = _LOOK_SECONDS
            try:
                due = await run_in_threadpool(deliveries.claim, db, _HOLD_SECONDS)
            except DATABASE_AWAY:
                due, pause = None, _AWAY_SECONDS
            except Exception:
                _log.exception("deliveries_not_read")
                due, pause = None, _AWAY_SECONDS
            if due is not None:
                under_way.create_task(attempt(due))
            else:
                room.release()
                await asyncio.sleep(pause)


async def _attempt(db: Database, sender: Sender, due: Due) -> None:
    """One try, and what became of it. If that cannot be written, it is tried again: nothing is lost."""
    delivery = due.delivery
    ended: dict[str, Any] = {"delivered": True}
    try:
        await sender.send(due)
    except NotDelivered as error:
        ended = {"delivered": False, "error": str(error), "again_in": retry_in(delivery.tries) if due.url else None}
    except Exception:
        _log.exception("delivery_failed", delivery=delivery.id)
        ended = {"delivered": False, "error": "It could not be sent.", "again_in": retry_in(delivery.tries)}
    _log.info("webhook", delivery=delivery.id, job=delivery.job_id, tries=delivery.tries, **ended)
    try:
        await run_in_threadpool(deliveries.settle, db, delivery, **ended)
    except DATABASE_AWAY:
        _log.warning("delivery_not_settled", delivery=delivery.id)
    except Exception:
        _log.exception("delivery_not_settled", delivery=delivery.id)


def _url(ip: str, address: Address) -> str:
    return f"https://{f'[{ip}]' if ':' in ip else ip}:{address.port}{address.target}"


def _told(error: httpx2.HTTPError) -> str:
    """Without what the receiver said: it need not be what it pretends to be."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"The receiver's certificate is not accepted: {cause.verify_message}."
        if isinstance(cause, ssl.SSLError):
            return "The receiver does not speak TLS as it should."
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx2.ConnectError):
        return "The receiver could not be connected to."
    return "The connection to the receiver broke before it had answered."
