"""The pictures of a dataset, as it is trained on."""

import io
import math
from typing import Annotated, Final, NamedTuple

from fastapi import APIRouter, Depends, Path, Query, Response
from PIL import Image
from pydantic import BaseModel, Field
from worker.jobs import answers, pictures, versions
from worker.jobs.card import Card
from worker.jobs.errors import DatasetChanged, DatasetMissing, NotFound, NotReady
from worker.jobs.pictures import Picture, Split
from worker.jobs.tables import Dataset

from service.bodies.pictures import PictureBody, PicturesPage
from service.deps import CallerDep, DatabaseDep, SettingsDep
from service.errors import responses

from .datasets import NamePath, VersionQuery

router = APIRouter(prefix="/datasets/{name}/pictures", tags=["datasets"])

# A version never changes. Who has another key may have another dataset of the same name.
KEPT: Final = {"Cache-Control": "private, max-age=31536000, immutable", "Vary": "Authorization, Cookie"}
_NOT_KEPT: Final = {"Cache-Control": "private, no-cache"}  # the newest version may be another one next time
IndexPath = Annotated[int, Path(ge=0, lt=2**53, description="Which one, from 0")]


class PngResponse(Response):
    media_type = "image/png"


class PicturesQuery(BaseModel, extra="forbid"):
    split: Split = Field("test", description="Which part of the dataset")
    label: str | None = Field(None, alias="class", description="Only pictures of this class; unset: all")
    version: int | None = Field(None, ge=1, lt=2**31, description="Unset: the newest")
    offset: int = Field(0, ge=0, lt=2**53, description="How many to leave out at the beginning")
    limit: int = Field(50, ge=1, le=200)


class Named(NamedTuple):
    dataset: Dataset | None  # None: built in, and nobody asked for it yet
    is_pinned: bool  # to a version


def _named(name: NamePath, db: DatabaseDep, caller: CallerDep, query: Annotated[VersionQuery, Query()]) -> Named:
    return Named(versions.get(db, name, query.version, caller), query.version is not None)


@router.get(
    "",
    operation_id="list_pictures",
    summary="List a dataset's pictures",
    responses=responses(NotFound, NotReady, DatasetMissing, DatasetChanged),
)
def list_pictures(
    name: NamePath, db: DatabaseDep, settings: SettingsDep, caller: CallerDep, query: Annotated[PicturesQuery, Query()]
) -> PicturesPage:
    """Of one split, in the order of the dataset; with `class`, of one class only."""
    dataset = versions.get(db, name, query.version, caller)
    place, card = pictures.prepared(dataset)
    assert dataset is not None
    folder, start, stop = settings.data_dir / place, query.offset, query.offset + query.limit
    total = card.train_count if query.split == "train" else card.test_count
    if query.label is not None:
        number = answers.class_number(card.classes, query.label, pointer="?class")
        every = pictures.of_class(folder, query.split, number)
        total, found = len(every), [(index, number) for index in every[start:stop]]
    elif card.classes:
        found = list(enumerate(pictures.classes(folder, query.split, start, stop), start))
    else:
        numbers = enumerate(pictures.targets(folder, query.split, start, stop), start)
        data = [_of_numbers(dataset, query.split, index, card, each) for index, each in numbers]
        return PicturesPage(name=name, version=dataset.version, split=query.split, total=total, data=data)
    data = [_of_class(dataset, query.split, index, card.classes[each]) for index, each in found]
    return PicturesPage(name=name, version=dataset.version, split=query.split, total=total, data=data)


@router.get(
    "/{split}/{index}.png",
    operation_id="show_picture",
    summary="See a picture of a dataset",
    response_class=PngResponse,
    responses=responses(NotFound, NotReady, DatasetMissing, DatasetChanged),
)
def show(named: Annotated[Named, Depends(_named)], settings: SettingsDep, split: Split, index: IndexPath) -> Response:
    """As it is trained on: of the size and the colours of the prepared dataset."""
    place, _ = pictures.prepared(named.dataset)
    content = png(pictures.picture(settings.data_dir / place, split, index))
    return PngResponse(content, headers=KEPT if named.is_pinned else _NOT_KEPT)


def png(picture: Picture) -> bytes:
    """The picture as a file."""
    size, plane = (picture.width, picture.height), picture.width * picture.height
    planes = [
        Image.frombytes("L", size, picture.pixels[at : at + plane]) for at in range(0, picture.channels * plane, plane)
    ]
    file = io.BytesIO()
    (planes[0] if len(planes) == 1 else Image.merge("RGB", planes)).save(file, "PNG")
    return file.getvalue()


def _of_class(dataset: Dataset, split: Split, index: int, label: str) -> PictureBody:
    return PictureBody(index=index, label=label, targets=None, url=_url(dataset, split, index))


def _of_numbers(dataset: Dataset, split: Split, index: int, card: Card, numbers: list[float]) -> PictureBody:
    finite = [number if math.isfinite(number) else None for number in numbers]
    targets = dict(zip(card.targets, finite, strict=True))
    return PictureBody(index=index, label=None, targets=targets, url=_url(dataset, split, index))


def _url(dataset: Dataset, split: Split, index: int) -> str:
    return f"/datasets/{dataset.name}/pictures/{split}/{index}.png?version={dataset.version}"
