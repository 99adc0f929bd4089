"""The description of every address, to read and to try: Swagger UI, from here and not from elsewhere."""

from fastapi import APIRouter, Request, Response

from .rendering import page

router = APIRouter()


@router.get("/docs")
def docs(request: Request) -> Response:
    return page(request, "docs.html")
