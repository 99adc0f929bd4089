"""A predictor that answers at once, without a process."""

from worker.jobs.card import Card
from worker.jobs.errors import PredictorUnavailable
from worker.jobs.plan import Memory, Plan
from worker.jobs.spec import Spec
from worker.jobs.wire import ClassPrediction, Guess, Prediction


class FakePredictor:
    """Stands in for `service.predictor.Predictor`: remembers what it was asked, answers or raises what it is told."""

    def __init__(self) -> None:
        self.is_started = False
        self.reset()

    def reset(self) -> None:
        self.ready = True
        self.error: Exception | None = None
        self.asked: list[dict[str, object]] = []
        self.planned: list[tuple[Spec, Card]] = []

    def start(self) -> None:
        self.is_started = True

    async def stop(self) -> None:
        self.is_started = False

    async def plan(self, spec: Spec, card: Card) -> Plan:
        self.planned.append((spec, card))
        if self.error is not None:
            raise self.error
        if not self.ready:
            raise PredictorUnavailable
        numbers = dict.fromkeys(Memory.model_fields, 4)
        return Plan(
            spec=spec,
            parameters=7,
            steps_per_epoch=8,
            steps=8 * spec.epochs,
            micro_batch=64,
            checkpoint_bytes=28,
            memory=Memory(**numbers),
            available_bytes=None,
            fitting_micro_batch=None,
        )

    async def predict(self, *, path: str, sha256: str, top_k: int, image: bytes) -> Prediction:
        self.asked.append({"path": path, "sha256": sha256, "top_k": top_k, "image": image})
        if self.error is not None:
            raise self.error
        if not self.ready:
            raise PredictorUnavailable
        guesses = [Guess(class_index=9 - rank, label=f"class {9 - rank}", probability=0.5) for rank in range(top_k)]
        return ClassPrediction(**guesses[0].model_dump(), top=guesses, warnings=[f"{len(image)} bytes"])
