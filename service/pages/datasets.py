"""Datasets: what there is, an upload, and what a look into one shows."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from worker.jobs.form import Form

from service.bodies.datasets import DatasetBody
from service.deps import CallerDep, DatabaseDep
from service.routes import datasets
from service.routes.datasets import NamePath, VersionQuery

from .rendering import fragment, page

router = APIRouter()

_LIVE = ("uploaded", "preparing")


class NowQuery(VersionQuery):
    seen: str = ""


@router.get("/ui/datasets")
def show(request: Request, db: DatabaseDep, caller: CallerDep) -> Response:
    about = {name: field.description for name, field in Form.model_fields.items()}
    return page(request, "datasets.html", seen="", about=about, **_listed(db, caller))


@router.get("/ui/datasets-table")  # no dataset's name comes here
def table(request: Request, db: DatabaseDep, caller: CallerDep) -> Response:
    return fragment(request, "datasets_table.html", **_listed(db, caller))


@router.get("/ui/datasets/{name}")
def look(
    request: Request, name: NamePath, db: DatabaseDep, caller: CallerDep, query: Annotated[VersionQuery, Query()]
) -> Response:
    return page(request, "dataset.html", seen="", **_found(datasets.show(name, db, caller, query), query))


@router.get("/ui/datasets/{name}/now")
def now(
    request: Request, name: NamePath, db: DatabaseDep, caller: CallerDep, query: Annotated[NowQuery, Query()]
) -> Response:
    return fragment(request, "dataset_now.html", **_found(datasets.show(name, db, caller, query), query))


def _listed(db: DatabaseDep, caller: CallerDep) -> dict[str, Any]:
    every = datasets.list_datasets(db, caller).data
    known = [each for each in every if each.version is not None]
    unused = [each for each in every if each.version is None]
    # Of equal names the caller's own is found first, and then that of the first owner: the others have no address.
    found: dict[str, str] = {}
    for each in sorted(known, key=lambda each: (each.owner != caller.owner, each.owner)):
        found.setdefault(each.name, each.owner)
    is_live = any(each.status in _LIVE for each in known)
    return {"known": known, "unused": unused, "is_live": is_live, "found": found}


def _found(dataset: DatasetBody, query: VersionQuery) -> dict[str, Any]:
    card = dataset.card
    counts = list(zip(card.classes, card.train_counts, card.test_counts, strict=False)) if card else []
    return {
        "dataset": dataset,
        "card": card,
        "pinned": query.version,
        "is_live": dataset.status in _LIVE,
        "counts": counts,
        "most": max((max(train, test) for _, train, test in counts), default=0) or 1,
    }
