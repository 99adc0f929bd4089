"""Finding datasets: which versions there are, where their files lie, what they are for. Nothing is changed here."""

import re
from pathlib import PurePosixPath
from typing import Final

from sqlalchemy import ColumnElement, Select, func, select
from sqlalchemy.orm import defer, load_only
from sqlmodel import Session, col

from .built_in import BUILT_IN
from .card import Task
from .db import Database
from .errors import NotFound
from .owners import EVERYBODY, Caller, own_first, visible
from .spec import NAME_PATTERN
from .states import DatasetStatus
from .tables import Dataset
from .wire import OfDataset

SCRATCH: Final = ".preparing-"  # begins the name of a folder that is being made; its own name and a random end follow


def archive_path(dataset_id: str) -> str:
    """Where the archive of an upload lies until it is prepared, relative to the data folder."""
    return f"uploads/{dataset_id}.archive"


def folder(dataset: Dataset) -> str:
    """Where the prepared files lie, relative to the data folder. Never made of what a client said."""
    return f"datasets/{f'{dataset.name}-v{dataset.version}' if dataset.form is None else dataset.id}"


def prepared(dataset: Dataset | None) -> OfDataset | None:
    """Where its arrays lie and what they are; None when it is not ready, or not any more."""
    if dataset is None or dataset.status != DatasetStatus.READY or dataset.card is None:
        return None
    return OfDataset(folder=folder(dataset), sha256=dataset.card["sha256"])


def task(dataset: Dataset) -> Task:
    return Task((dataset.form or {}).get("task", Task.CLASSIFICATION))


def get(db: Database, name: str, version: int | None = None, caller: Caller = EVERYBODY) -> Dataset | None:
    """This version, or the newest; None for a built-in one that nobody asked for yet. Raises NotFound."""
    with db.read() as session:
        found = find(session, name, version, caller) if re.fullmatch(NAME_PATTERN, name) else None
    if found is None and (name not in BUILT_IN or version is not None):
        raise NotFound("There is no dataset of this name and version; GET /datasets lists those that there are.")
    return found


def by_id(db: Database, dataset_id: str) -> Dataset:
    with db.read() as session:
        return session.get_one(Dataset, dataset_id)


def newest(db: Database, caller: Caller = EVERYBODY) -> list[Dataset]:
    """The newest version of each name of each owner, by name; without findings."""
    latest = (
        select(col(Dataset.owner), col(Dataset.name), func.max(Dataset.version).label("version"))
        .where(col(Dataset.status) != DatasetStatus.DELETED, _usable(caller))
        .group_by(col(Dataset.owner), col(Dataset.name))
        .subquery()
    )
    is_it = (col(Dataset.owner) == latest.c.owner) & (col(Dataset.name) == latest.c.name)
    query = (
        select(Dataset)
        .join(latest, is_it & (col(Dataset.version) == latest.c.version))
        .order_by(col(Dataset.name), col(Dataset.owner))
        .options(defer(col(Dataset.findings)))  # type: ignore[arg-type]
    )
    with db.read() as session:
        return list(session.execute(query).scalars())


def numbers(db: Database, dataset: Dataset) -> list[int]:
    """The numbers of all of the owner's of this name that are not deleted, newest first."""
    with db.read() as session:
        return list(session.execute(of_name(dataset).with_only_columns(col(Dataset.version))).scalars())


def is_known(db: Database, dataset_id: str) -> bool:
    with db.read() as session:
        return session.get(Dataset, dataset_id) is not None


def states(db: Database) -> dict[str, DatasetStatus]:
    """Of all that there ever were, by their ids and by the names of their folders."""
    wanted = load_only(*(getattr(Dataset, name) for name in ("id", "name", "version", "form", "status")))
    with db.read() as session:
        rows = list(session.execute(select(Dataset).options(wanted)).scalars())
    return {key: DatasetStatus(row.status) for row in rows for key in (row.id, PurePosixPath(folder(row)).name)}


def of_name(dataset: Dataset, version: int | None = None) -> Select[Dataset]:
    """The owner's versions of the same name that are not deleted, newest first; or the one."""
    query = _named(dataset.name, version).where(col(Dataset.owner) == dataset.owner)
    return query.order_by(col(Dataset.version).desc())


def find(
    session: Session, name: str, version: int | None = None, caller: Caller = EVERYBODY, *, lock: bool = False
) -> Dataset | None:
    """The newest, or this version, among what the caller may use: own datasets first, and built-in ones."""
    query = _named(name, version).where(_usable(caller))
    query = query.order_by(*own_first(Dataset.owner, caller), col(Dataset.version).desc()).limit(1)
    if lock:  # a version that a job is about to use must not be deleted meanwhile
        query = query.with_for_update(read=True)
    found: Dataset | None = session.execute(query).scalar_one_or_none()
    return found


def _named(name: str, version: int | None) -> Select[Dataset]:
    query = select(Dataset).where(col(Dataset.name) == name, col(Dataset.status) != DatasetStatus.DELETED)
    return query if version is None else query.where(col(Dataset.version) == version)


def _usable(caller: Caller) -> ColumnElement[bool]:
    """Built-in datasets are everybody's."""
    return visible(Dataset.owner, caller) | col(Dataset.name).in_(BUILT_IN)
