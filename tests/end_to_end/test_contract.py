"""The running product keeps what its OpenAPI description promises. `make contract` asks for much longer."""

from pathlib import Path

import pytest

from tests import postgres
from tests.contract.client import TOOLS, use_a_generated_client
from tests.contract.fuzzing import fuzz
from tests.contract.place import KEY, place

_EXAMPLES = 3


@pytest.mark.parametrize(
    ("database", "key"), [("sqlite", KEY), ("postgresql", None)], ids=["sqlite, key", "postgresql, open"]
)
def test_no_request_gets_an_answer_that_the_description_does_not_name(
    tmp_path: Path, request: pytest.FixtureRequest, database: str, key: str | None
) -> None:
    url = None
    if database == "postgresql":
        server: postgres.Server = request.getfixturevalue("postgres_server")
        url = server.new_database()
    with place(tmp_path / "data", database_url=url, key=key) as there:
        outcome = fuzz(there, tmp_path, examples=_EXAMPLES)
    assert outcome.passed, outcome.said
    assert outcome.server_errors == []


@pytest.mark.skipif(not TOOLS.exists(), reason="the generator is not installed: make .venv/tools/installed")
def test_a_generated_client_submits_polls_and_reads_a_job(tmp_path: Path) -> None:
    assert "A generated client trained job" in use_a_generated_client(tmp_path)
