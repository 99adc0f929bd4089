"""Jobs that end as they would have, had nobody disturbed them."""

from typing import Any

import httpx2

from tests.chaos.workplace import Bits, assert_undisturbed, bits
from tests.end_to_end.serving import Epochd

_PICTURE = b"GIF89a\x01\x00\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x01\x00\x00;"


def undisturbed(server: Epochd, **spec: Any) -> Bits:
    """What this spec gives."""
    job_id = server.submit(**spec)
    job = server.wait_terminal(job_id)
    assert (job["status"], len(job["attempts"])) == ("succeeded", 1), job["error"]
    return bits(server, job_id)


def assert_ends_with(server: Epochd, job_id: str, whole: Bits) -> None:
    server.wait_terminal(job_id)
    assert_undisturbed(server, job_id, whole)


def predict(server: Epochd, job_id: str, checkpoint: str = "last") -> httpx2.Response:
    query = {"job": job_id, "checkpoint": checkpoint}
    return server.http.post("/predict", params=query, content=_PICTURE, headers={"Content-Type": "image/gif"})
