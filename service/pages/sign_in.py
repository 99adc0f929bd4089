"""Key entry: a browser cannot send a header with a page's address, so it keeps the key in a cookie.

No script can read the cookie, other sites' pages can do nothing with it (a link from one opens a page, and changes
nothing), and it goes when the browser is closed. What it opens is what the key opens, and it ends with the key: nothing
is stored here.
"""

from typing import Annotated
from urllib.parse import parse_qs

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse
from worker.jobs.errors import InvalidRequest, Unauthenticated

from .addresses import SIGN_IN, cookie_name
from .rendering import page

router = APIRouter()
_MOST_BYTES = 4096


@router.get(SIGN_IN)
def ask(request: Request, next: Annotated[str, Query()] = "/") -> Response:  # noqa: A002  # the parameter's name
    return page(request, "key.html", next=_local(next), refused=False)


@router.post(SIGN_IN)
async def sign_in(request: Request) -> Response:
    fields = await _fields(request)
    key, onward = fields.get("key", "").strip(), _local(fields.get("next", "/"))
    try:
        if not key.isascii():
            raise Unauthenticated
        request.app.state.keys.find(key.encode())
    except Unauthenticated:
        return page(request, "key.html", status=401, next=onward, refused=True)
    response = RedirectResponse(onward, 303)
    is_https = request.url.scheme == "https"
    name = cookie_name(request.headers.get("host", ""))
    response.set_cookie(name, key, httponly=True, samesite="lax", secure=is_https, path="/")
    return response


@router.post(f"{SIGN_IN}/forget")
def forget(request: Request) -> Response:
    response = RedirectResponse(SIGN_IN, 303)
    response.delete_cookie(cookie_name(request.headers.get("host", "")), path="/", httponly=True, samesite="lax")
    return response


def _local(address: str) -> str:
    """Where to go on; never to another site, whatever a link said."""
    is_ours = address.startswith("/") and not address.startswith(("//", "/\\")) and address.isprintable()
    return address if is_ours and "\\" not in address else "/"


async def _fields(request: Request) -> dict[str, str]:
    """Of a form as browsers send it. Raises InvalidRequest."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MOST_BYTES:
            raise InvalidRequest("The form is too long for a key.")
    try:
        return {name: values[-1] for name, values in parse_qs(body.decode(), max_num_fields=8).items()}
    except ValueError as error:
        raise InvalidRequest("The form cannot be read.") from error
