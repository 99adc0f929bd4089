"""Datasets: list, look, upload, prepare a built-in one, delete."""

import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from worker.jobs import datasets, errors, versions
from worker.jobs.built_in import BUILT_IN
from worker.jobs.db import Database
from worker.jobs.files import fsync
from worker.jobs.form import Form
from worker.jobs.ids import new_id
from worker.jobs.settings import Settings
from worker.jobs.spec import Name, Part
from worker.jobs.states import DatasetStatus
from worker.jobs.tables import Dataset

from service.bodies.datasets import DatasetBody, DatasetList, DatasetSummary
from service.deps import CallerDep, DatabaseDep, SettingsDep
from service.errors import responses
from service.uploads import ARCHIVE, FORM, FORM_BYTES, received

router = APIRouter(prefix="/datasets", tags=["datasets"])

P = TypeVar("P", bound=Part)
NamePath = Annotated[str, PathParameter(max_length=64, description="The dataset's name")]


class BuiltIn(Part):
    name: Name = Field(description="Of a built-in dataset", examples=["mnist"])


class VersionQuery(BaseModel, extra="forbid"):
    version: int | None = Field(None, ge=1, lt=2**31, description="Unset: the newest")


class DeleteQuery(BaseModel, extra="forbid"):
    version: int | None = Field(None, ge=1, lt=2**31, description="Unset: all of them")


_REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    ARCHIVE: {"type": "string", "format": "binary", "description": "A zip, tar or tar.gz"},
                    FORM: {"$ref": "#/components/schemas/Form"},
                },
                "required": [ARCHIVE, FORM],
                "additionalProperties": False,
            },
            "encoding": {ARCHIVE: {"contentType": "application/zip"}, FORM: {"contentType": "application/json"}},
        },
        "application/json": {"schema": {"$ref": "#/components/schemas/BuiltIn"}},
    },
}


@router.get("", summary="List datasets, built-in ones included")
def list_datasets(db: DatabaseDep, caller: CallerDep) -> DatasetList:
    """The newest version of each name."""
    known = [DatasetSummary.of(dataset) for dataset in versions.newest(db, caller)]
    names = {each.name for each in known}
    unused = [DatasetSummary.of_unused(name) for name in BUILT_IN if name not in names]
    return DatasetList(data=sorted(known + unused, key=lambda each: each.name))


@router.post(
    "",
    operation_id="add_dataset",
    status_code=202,
    summary="Upload a dataset, or prepare a built-in one",
    openapi_extra={"requestBody": _REQUEST_BODY},
    responses=responses(
        errors.InvalidRequest,
        errors.CrossSite,
        errors.NotFound,
        errors.UnsupportedMediaType,
        errors.BadArchive,
        errors.DiskFull,
    )
    | {200: {"model": DatasetBody, "description": "The built-in dataset is ready already"}},
)
async def add(
    request: Request, response: Response, db: DatabaseDep, settings: SettingsDep, caller: CallerDep
) -> DatasetBody:
    """An upload is a form with the file `archive` and the JSON text `dataset`. Three layouts are understood: a folder
    a class; `train/` and `test/` with a folder a class in each; and pictures with a table `labels.csv` (`file`,
    `label` or columns of numbers, and if you like `split`).

    The same name again makes a new version. Preparing begins at once: poll `Location` until `status` is `ready`, or
    `invalid` with an `error`. JSON `{"name": "mnist"}` prepares a built-in dataset ahead of the first job that needs
    it.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        dataset = await _upload(request, db, settings, caller.owner)
    elif kind == "application/json":
        dataset = await _built_in(request, db)
    else:
        raise errors.UnsupportedMediaType("Send a form with an archive, or JSON with the name of a built-in dataset.")
    response.status_code = 200 if dataset.status == DatasetStatus.READY else 202
    response.headers["Location"] = f"/datasets/{dataset.name}?version={dataset.version}"
    return await run_in_threadpool(_whole, db, dataset)


@router.get("/{name}", operation_id="show_dataset", summary="Look at a dataset", responses=responses(errors.NotFound))
def show(name: NamePath, db: DatabaseDep, caller: CallerDep, query: Annotated[VersionQuery, Query()]) -> DatasetBody:
    """With its card: what it holds, its statistics, and what was found when it was prepared."""
    dataset = versions.get(db, name, query.version, caller)
    if dataset is None:
        return DatasetBody.of_unused(name, versions=[])
    return _whole(db, dataset)


@router.delete(
    "/{name}",
    operation_id="delete_dataset",
    status_code=204,
    summary="Delete a dataset",
    responses=responses(errors.CrossSite, errors.NotFound, errors.Conflict, errors.DiskFull),
)
def delete(
    name: NamePath,
    db: DatabaseDep,
    settings: SettingsDep,
    caller: CallerDep,
    query: Annotated[DeleteQuery, Query()],
) -> None:
    """All versions or one, and their files. Not while a job that has not ended uses it."""
    for dataset in datasets.delete(db, name, query.version, caller):
        (settings.data_dir / versions.archive_path(dataset.id)).unlink(missing_ok=True)
        folder = settings.data_dir / versions.folder(dataset)
        shutil.rmtree(folder, ignore_errors=True)
        for log in folder.parent.glob(f"{dataset.id}.attempt-*.log"):
            log.unlink(missing_ok=True)


async def _upload(request: Request, db: Database, settings: Settings, owner: str) -> Dataset:
    dataset_id = new_id()
    archive = settings.data_dir / versions.archive_path(dataset_id)
    receiving, spare = archive.with_suffix(".receiving"), settings.min_free_bytes
    async with received(request, receiving, partial(_validated, Form), spare_bytes=spare) as form:
        return await run_in_threadpool(_accept, db, archive, dataset_id, form, owner)


def _accept(db: Database, archive: Path, dataset_id: str, form: Form, owner: str) -> Dataset:
    """Row after file: one that is accepted has its archive, whatever happens."""
    archive.with_suffix(".receiving").rename(archive)
    fsync(archive.parent)
    try:
        return datasets.add_upload(db, dataset_id, form, owner)
    except Exception:  # the answer may have got lost, not the row; what is unsure is left to the sweep
        with suppress(Exception):
            if not versions.is_known(db, dataset_id):
                archive.unlink()
        raise


async def _built_in(request: Request, db: Database) -> Dataset:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_BYTES:
            raise errors.InvalidRequest("The body is too long for the name of a dataset.")
    wanted = _validated(BuiltIn, bytes(body))
    return await run_in_threadpool(datasets.prepare_built_in, db, wanted.name)


def _validated(kind: type[P], text: bytes) -> P:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        found = [
            each | {"loc": ("body", *each["loc"])} for each in error.errors(include_url=False, include_input=False)
        ]
        raise RequestValidationError(found) from error


def _whole(db: Database, dataset: Dataset) -> DatasetBody:
    return DatasetBody.whole(dataset, versions.numbers(db, dataset))
