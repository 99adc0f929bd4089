"""What the OpenAPI description says beyond what FastAPI finds out by itself."""

import json
from collections.abc import Iterator
from typing import Any, Final

from fastapi import FastAPI
from worker.jobs.form import Form

from . import errors
from .auth import PUBLIC
from .bodies.examples import BODIES, OPERATIONS
from .bodies.v2 import InferBody, InferRequestBody
from .errors import PROBLEM, Problem
from .routes.datasets import BuiltIn

_BODIES: Final = (Problem, Form, BuiltIn, InferRequestBody, InferBody)  # that routes refer to, but FastAPI never sees
_LIMITS: Final = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_LOCATION: Final = "Where to look at it from now on"
_ETAG: Final = "Names these contents"
_DIGEST: Final = "b1ed103ad34126c55f208b32d6544e250af11807cdcd9534d6e3ed1cc17737b2"
_HEADERS: Final = {
    "X-Request-Id": {
        "description": "Names this request in the service's log",
        "schema": {"type": "string"},
        "example": "5f1c0b7a9d3e2c48",
    }
}
# What an answer leads to: operation and status, where its `Location` goes, and by which of the body's fields.
_LEADS_TO: Final = {
    ("submit_job", "201"): ("show_job", {"job_id": "id"}, "/jobs/18eb6e79fb8ad69c6c8a2500"),
    ("import_bundle", "201"): ("show_job", {"job_id": "id"}, "/jobs/18eb6e79fb8ad69c6c8a2500"),
    ("add_dataset", "200"): ("show_dataset", {"name": "name"}, "/datasets/mnist?version=1"),
    ("add_dataset", "202"): ("show_dataset", {"name": "name"}, "/datasets/shoes?version=2"),
    ("put_alias", "201"): ("show_alias", {"name": "name"}, "/models/default"),
}
_ANSWER_HEADERS: Final = {
    ("download_checkpoint", "200"): {"ETag": (_ETAG, f'"{_DIGEST}"')},
    ("predict", "200"): {
        "Server-Timing": ("Milliseconds of each step", "read;dur=0.21, find;dur=0.04, predict;dur=1.87")
    },
    ("predict_batch", "200"): {
        "Epochd-Job": ("Which job answers", "18eb6e79fb8ad69c6c8a2500"),
        "Epochd-Epoch": ("Which epoch's checkpoint", "5"),
        "Epochd-Checkpoint-Sha256": ("Of its file", _DIGEST),
    },
}


def describe(app: FastAPI) -> None:
    """Has the app's description completed when it is first asked for."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(plain())
        return plain()

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation does it


def _complete(document: dict[str, Any]) -> None:
    components = document["components"]
    for body in _BODIES:
        schema = body.model_json_schema(ref_template=PROBLEM.replace("Problem", "{model}"))
        components["schemas"] |= schema.pop("$defs", {}) | {body.__name__: schema}
    components |= {"headers": _HEADERS, "examples": errors.examples()}
    for name, example in BODIES.items():
        if name in components["schemas"]:
            components["schemas"][name]["examples"] = [example]
    for path, operation in _operations(document):
        _add_problems(operation, is_public=path in PUBLIC)
        if path in PUBLIC:
            operation["security"] = []
        for status, response in operation["responses"].items():
            _add_example(operation, status, response)
            _add_headers(operation, status, response)
    _write_plainly(document)


def _write_plainly(part: Any) -> None:
    """FastAPI writes all limits as floats: 9.223372036854776e+18 is read as all kinds of numbers. And generators of
    clients refuse a default that is an object: it is said in words.
    """
    if isinstance(part, dict):
        for name in _LIMITS & part.keys():
            if isinstance(part[name], float) and part[name].is_integer():
                part[name] = int(part[name])
        if isinstance(part.get("default"), dict) and "description" in part:
            part["description"] += f". Unset: `{json.dumps(part.pop('default'))}`"
    if isinstance(part, dict | list):
        for each in part.values() if isinstance(part, dict) else part:
            _write_plainly(each)


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for operation in methods.values():
            yield path, operation


def _add_problems(operation: dict[str, Any], *, is_public: bool) -> None:
    """A route's own problems of a status hide those that are possible everywhere: both are there."""
    own = operation["responses"]
    for number, general in errors.everywhere().items():
        status = str(number)
        if is_public and status in ("401", "403"):
            own.pop(status, None)
            continue
        response = own.setdefault(status, general)
        kinds = response.setdefault("content", {}).setdefault("application/problem+json", {"schema": {"$ref": PROBLEM}})
        kinds["examples"] = general["content"]["application/problem+json"]["examples"] | kinds.get("examples", {})
        response["headers"] = general["headers"] | response.get("headers", {})
        if general["description"] not in response["description"]:
            response["description"] += f" {general['description']}"
    operation["responses"] = dict(sorted(own.items()))


def _add_example(operation: dict[str, Any], status: str, response: dict[str, Any]) -> None:
    for kind, example in OPERATIONS.get(operation["operationId"], {}).items():
        if status.startswith("2") and kind in response.get("content", {}):
            response["content"][kind]["example"] = example


def _add_headers(operation: dict[str, Any], status: str, response: dict[str, Any]) -> None:
    headers = response.setdefault("headers", {})
    headers["X-Request-Id"] = {"$ref": "#/components/headers/X-Request-Id"}
    key = (operation["operationId"], status)
    for name, (description, example) in _ANSWER_HEADERS.get(key, {}).items():
        headers[name] = {"description": description, "schema": {"type": "string"}, "example": example}
    if key in _LEADS_TO:
        leads_to, fields, example = _LEADS_TO[key]
        headers["Location"] = {"description": _LOCATION, "schema": {"type": "string"}, "example": example}
        parameters = {name: f"$response.body#/{field}" for name, field in fields.items()}
        response["links"] = {leads_to: {"operationId": leads_to, "parameters": parameters}}
