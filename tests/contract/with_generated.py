"""Submits, polls and reads a job with the generated package, which is not there before: nothing of ours is imported.

Started by `client.py` with the URL and the key.
"""

import sys
import time
from importlib import import_module
from typing import Any

_SECONDS = 120.0


def main(url: str, key: str) -> None:
    package = import_module("epochd_client")
    models = import_module("epochd_client.models")
    with package.AuthenticatedClient(base_url=url, token=key) as client:
        spec = models.Spec(name="generated", epochs=2, threads=1, labels=models.SpecLabels.from_dict({"by": "client"}))
        job = _call("jobs.submit_job", client, body=spec)
        assert isinstance(job, models.JobBody), job
        deadline = time.monotonic() + _SECONDS
        while job.status not in ("succeeded", "failed", "cancelled"):
            assert time.monotonic() < deadline, job
            time.sleep(0.1)
            job = _call("jobs.show_job", client, job_id=job.id)
        metrics = _call("metrics.read_metrics", client, job_id=job.id)
        checkpoints = _call("checkpoints.list_checkpoints", client, job_id=job.id)
        assert (job.status, job.name, job.labels["by"]) == ("succeeded", "generated", "client"), job
        assert [row.epoch for row in metrics.data] == [1, 2], metrics
        assert [row.epoch for row in checkpoints.data] == [1, 2], checkpoints
        missing = _call("jobs.show_job", client, job_id="nothing")
        assert missing.code == "not_found", missing
    sys.stdout.write(f"A generated client trained job {job.id} to accuracy {metrics.data[-1].test_accuracy:.2f}.\n")


def _call(name: str, client: Any, **arguments: Any) -> Any:
    return import_module(f"epochd_client.api.{name}").sync(client=client, **arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
