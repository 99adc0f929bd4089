"""Frames between the service and the predictors."""

import pytest

from worker.jobs.wire import ANY_REQUEST, FRAME, FrameKind, PredictRequest, WarmRequest, pack


def test_a_frame_is_its_kind_an_id_two_lengths_a_head_and_a_body() -> None:
    head, body = "{ü}".encode(), bytes(range(256))
    frame = pack(FrameKind.REQUEST, 2**40 + 7, head, body)
    assert FRAME.unpack_from(frame) == (FrameKind.REQUEST, 2**40 + 7, len(head), 256)
    assert frame[FRAME.size :] == head + body


@pytest.mark.parametrize(
    "request_",
    [
        PredictRequest(path="jobs/x/ü.safetensors", sha256="ab", top_k=5, auto_fix=True, threads=2),
        WarmRequest(path="jobs/x/y.safetensors", sha256="ab"),
    ],
)
def test_a_request_is_told_by_its_kind(request_: PredictRequest | WarmRequest) -> None:
    assert ANY_REQUEST.validate_json(request_.model_dump_json()) == request_
