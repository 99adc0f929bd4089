"""The yardstick that batches: LitServe, `python -m tests.bench.predicting.batching <port> ...`.

As its documentation advises for throughput: pictures are put together to batches, the fast queue is on (for more than
100 requests a second), there are as many front processes as workers, and no access log.
"""

import argparse
from importlib import import_module
from typing import Any

import torch
from fastapi import Request
from torch import Tensor

from .classifier import from_environment

ls: Any = import_module("litserve")  # untyped, and only in the extra `bench`


class Batched(ls.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        self.classifier = from_environment()

    def decode_request(self, request: Request) -> Tensor:
        form: Any = request  # by now it is
        return self.classifier.prepare(form["image"].file.read())

    def batch(self, inputs: list[Tensor]) -> Tensor:
        return torch.stack(inputs)

    def predict(self, X: Tensor) -> list[dict[str, Any]]:
        return self.classifier.answers(X)

    def unbatch(self, output: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("workers", type=int)
    parser.add_argument("max_batch_size", type=int)
    parser.add_argument("batch_timeout", type=float, help="seconds that a batch is waited for")
    arguments = parser.parse_args()
    api = Batched(max_batch_size=arguments.max_batch_size, batch_timeout=arguments.batch_timeout)
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=arguments.workers, fast_queue=True)
    server.run(host="127.0.0.1", port=arguments.port, log_level="warning", generate_client_file=False, access_log=False)


if __name__ == "__main__":
    main()
