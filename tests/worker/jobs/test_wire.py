"""Frames between the service and the predictor."""

import pytest

from worker.jobs import wire
from worker.jobs.wire import LENGTHS, Answer, ClassPrediction, Guess, NumberPrediction, PredictRequest


def test_a_frame_is_two_lengths_a_head_and_a_body() -> None:
    request = PredictRequest(id=7, path="jobs/x/ü.safetensors", sha256="ab", top_k=5)
    body = bytes(range(256))
    frame = wire.pack(request, body)
    head_bytes, body_bytes = LENGTHS.unpack(frame[: LENGTHS.size])
    head = frame[LENGTHS.size : LENGTHS.size + head_bytes]
    assert PredictRequest.model_validate_json(head) == request
    assert frame.startswith(len(head).to_bytes(4, "big") + (256).to_bytes(4, "big"))
    assert body_bytes == len(body)
    assert frame[LENGTHS.size + head_bytes :] == body


GUESS = Guess(class_index=9, label="Ankle boot", probability=0.1 + 0.2)


@pytest.mark.parametrize(
    "prediction",
    [
        ClassPrediction(**GUESS.model_dump(), top=[GUESS], warnings=["small"]),
        NumberPrediction(value=0.1 + 0.2, values={"ink": 0.1 + 0.2}),
        NumberPrediction(value=None, values={"x": 1.5, "y": None}),
    ],
)
def test_an_answer_without_a_body_ends_with_its_head(prediction: ClassPrediction | NumberPrediction) -> None:
    frame = wire.pack(Answer(id=1, prediction=prediction))
    head_bytes, body_bytes = LENGTHS.unpack(frame[: LENGTHS.size])
    assert (body_bytes, len(frame)) == (0, LENGTHS.size + head_bytes)
    assert Answer.model_validate_json(frame[LENGTHS.size :]).prediction == prediction
