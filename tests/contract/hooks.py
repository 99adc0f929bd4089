"""What schemathesis cannot know of epochd. It is loaded by schemathesis, not by tests."""

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import schemathesis
from hypothesis import strategies as st
from schemathesis.openapi.checks import RejectedPositiveData

FILES, REFUSALS = (Path(os.environ[name]) for name in ("CONTRACT_FILES", "CONTRACT_REFUSALS"))
_ARCHIVES = [(FILES / name).read_bytes() for name in ("small.zip", "bundle.zip")]
# Refusals of what the description allows, by rules that no JSON Schema can say.
_BEYOND_SCHEMAS: Final = {
    "bad_image": ".*",  # what bytes mean
    "bad_archive": ".*",
    "bad_bundle": ".*",
    "too_large": ".*",
    "url_not_allowed": ".*",  # a setting says
    "idempotency_mismatch": ".*",  # earlier requests say
    # What fields say of each other, or of what is there. Not what pydantic says of one alone: that can be described.
    "validation_error": r"(?!.*(Input|String|List|Value|Dictionary) should|.*no such field|.*is required|"
    r".*must be `best`)",
    # The numbers of a tensor against its shape, the shape against the network's, JSON behind a binary type; a query
    # that says whether there must be a body, and how many answers a body may ask for.
    "invalid_request": "`pixels`|The shape wants|The numbers|The request's JSON is not|There is no output|"
    "Send the file as the body, or in the form field `archive`|The job has .* checkpoints, so that would be more",
}

_A_MOMENT: Final = 0.05  # seconds
_LONGEST_WAIT: Final = 60

# Real files: bytes out of nowhere are no pictures, and no request would get further than that.
for kind in ("application/zip", "application/x-tar", "application/gzip"):
    schemathesis.openapi.media_type(kind, st.sampled_from(_ARCHIVES))
schemathesis.openapi.media_type("image/*", st.just((FILES / "picture.png").read_bytes()))


@schemathesis.hook
def map_query(context: Any, query: dict[str, Any] | None) -> dict[str, Any] | None:
    """No job is trained here, so that waiting for its news takes as long as is asked for: of a minute, a moment."""
    if query and isinstance(query.get("wait"), int | float) and _A_MOMENT < query["wait"] <= _LONGEST_WAIT:
        return query | {"wait": _A_MOMENT}
    return query


@schemathesis.hook
def filter_failure(context: Any, failure: Any, case: Any, response: Any) -> bool:
    """Such a refusal is no failure; each is counted."""
    if not isinstance(failure, RejectedPositiveData):
        return True
    problem = response.json()
    if not (_is_beyond_schemas(problem, case.body) or _has_a_text_for_an_object(case)):
        return True
    with REFUSALS.open("a") as file:
        file.write(f"{case.operation.label}: {response.status_code} {problem['code']}\n")
    return False


def _is_beyond_schemas(problem: dict[str, Any], body: Any) -> bool:
    said, fields = re.compile(_BEYOND_SCHEMAS.get(problem["code"], "(?!)")), problem["errors"]
    return all(said.match(each["detail"]) or _is_whole(body, each) for each in fields or [problem])


def _is_whole(body: Any, field: dict[str, str]) -> bool:
    """To JSON Schema 5.0 is an integer. A spec guesses no types: who writes 5.0 epochs may mean something else."""
    if not re.fullmatch(r"Input should be (a valid (integer|string)|'\w+')\.", field["detail"]):
        return False
    with suppress(KeyError, IndexError, ValueError, TypeError):
        for part in field["pointer"].split("/")[1:]:
            body = body[int(part) if isinstance(body, list) else part]
    return isinstance(body, float) and body.is_integer()


def _has_a_text_for_an_object(case: Any) -> bool:
    """In its coverage phase schemathesis takes each part of a form for a text, whatever its schema says."""
    return case.operation.label == "POST /datasets" and isinstance(case.body, dict) and case.body.get("dataset") == ""
