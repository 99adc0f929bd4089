"""The running product keeps what its OpenAPI description promises. `make contract` asks for much longer, on PostgreSQL
and without a key too."""

from pathlib import Path

import pytest

from tests.contract.client import TOOLS, use_a_generated_client
from tests.contract.fuzzing import fuzz
from tests.contract.place import KEY, place

_EXAMPLES = 3


def test_no_request_gets_an_answer_that_the_description_does_not_name(tmp_path: Path) -> None:
    with place(tmp_path / "data", database_url=None, key=KEY) as there:
        outcome = fuzz(there, tmp_path, examples=_EXAMPLES, seed=1)  # `make contract` asks for others each time
    assert outcome.passed, outcome.said
    assert outcome.server_errors == []


@pytest.mark.skipif(not TOOLS.exists(), reason="the generator is not installed: make .venv/tools/installed")
def test_a_generated_client_submits_polls_and_reads_a_job(tmp_path: Path) -> None:
    assert "A generated client trained job" in use_a_generated_client(tmp_path)
