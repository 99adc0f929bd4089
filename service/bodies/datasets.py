"""Datasets, as they are shown."""

from datetime import datetime
from typing import Any, Literal, Self

from pydantic import BaseModel, Field
from worker.jobs import versions
from worker.jobs.built_in import BUILT_IN
from worker.jobs.card import Card, Task
from worker.jobs.columns import HOUSE
from worker.jobs.failures import Failure
from worker.jobs.tables import Dataset


class PreparingBody(BaseModel):
    step: str = Field(description="fetching, unpacking, decoding or writing")
    done: int = Field(description="Files or pictures done in this step")
    total: int = Field(description="Of how many; 0 when nobody knows yet")


class DatasetSummary(BaseModel):
    name: str
    owner: str = Field("", description="The id of the key whose it is; empty: it is built in, or belongs to no key")
    version: int | None = Field(description="From 1; null for a built-in dataset that nobody has asked for yet")
    built_in: bool
    description: str | None = Field(description="Of a built-in dataset")
    status: Literal["available", "uploaded", "preparing", "ready", "invalid"] = Field(
        description="`available`: built in, and prepared when first asked for"
    )
    progress: PreparingBody | None = Field(description="While it is being prepared")
    task: Task
    classes: list[str] | None = Field(description="Label of each class index; null for regression")
    channels: int | None = Field(description="1 for grey, 3 for colour")
    height: int | None
    width: int | None
    train_count: int | None
    test_count: int | None
    sha256: str | None = Field(description="Digest of the contents")
    error: Failure | None = Field(description="Why it is invalid")
    created_at: datetime | None
    finished_at: datetime | None = Field(description="When it became ready or invalid")
    url: str

    @classmethod
    def of(cls, dataset: Dataset, **more: Any) -> Self:
        card = dataset.card or {}
        is_preparing = dataset.step is not None
        return cls.model_validate(
            {
                "name": dataset.name,
                "owner": dataset.owner,
                "version": dataset.version,
                "built_in": dataset.form is None,
                "description": BUILT_IN.get(dataset.name),
                "status": dataset.status,
                "progress": {name: getattr(dataset, name) for name in PreparingBody.model_fields}
                if is_preparing
                else None,
                "task": versions.task(dataset),
                "classes": card.get("classes") or None,
                **{
                    name: card.get(name)
                    for name in ("channels", "height", "width", "train_count", "test_count", "sha256")
                },
                "error": dataset.error,
                "created_at": dataset.created_at,
                "finished_at": dataset.finished_at,
                "url": f"/datasets/{dataset.name}?version={dataset.version}",
                **more,
            }
        )

    @classmethod
    def of_unused(cls, name: str, **more: Any) -> Self:
        """A built-in dataset that nobody has asked for yet."""
        unknown = dict.fromkeys(cls.model_fields)
        known = {"name": name, "owner": HOUSE, "built_in": True, "description": BUILT_IN[name], "status": "available"}
        return cls.model_validate(unknown | known | {"task": Task.CLASSIFICATION, "url": f"/datasets/{name}"} | more)


class DatasetBody(DatasetSummary):
    form: dict[str, Any] | None = Field(description="What came with the upload, every default filled in")
    card: Card | None = Field(description="What it holds and what was found; also of an invalid one that was read")
    versions: list[int] = Field(description="All of this name that are not deleted, newest first")

    @classmethod
    def whole(cls, dataset: Dataset, versions: list[int]) -> Self:
        card = dataset.card and dataset.card | {"findings": dataset.findings or []}
        return cls.of(dataset, form=dataset.form, card=card, versions=versions)


class DatasetList(BaseModel):
    data: list[DatasetSummary]
