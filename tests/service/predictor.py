"""A predictor that answers at once, without a process."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.predictor import Errand
from worker.jobs.card import Card
from worker.jobs.errors import PredictorUnavailable
from worker.jobs.plan import Memory, Plan
from worker.jobs.spec import Spec
from worker.jobs.wire import ClassPrediction, Guess, InferRequest, WarmRequest


class FakePredictor:
    """Stands in for `service.predictor.Predictor`: remembers what it was asked, answers or raises what it is told."""

    def __init__(self) -> None:
        self.is_started = False
        self.pids: list[int] = []
        self.reset()

    def reset(self) -> None:
        self.ready = True
        self.room = 1000  # pictures that may wait
        self.error: Exception | None = None
        self.pictures: list[dict[str, object]] = []  # what predictions were asked for
        self.planned: list[tuple[Spec, Card]] = []
        self.asked: list[tuple[InferRequest | WarmRequest | Errand, bytes]] = []
        self.answer = b""  # of `ask`
        self.parts: list[bytes] = []  # of an errand

    def start(self) -> None:
        self.is_started = True

    async def stop(self) -> None:
        self.is_started = False

    async def plan(self, spec: Spec, card: Card) -> Plan:
        self.planned.append((spec, card))
        self._raise_if_told()
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

    def require_room(self, pictures: int) -> None:
        if pictures > self.room:
            raise PredictorUnavailable

    async def predict(
        self, *, path: str, sha256: str, image: bytes, top_k: int, auto_fix: bool = False, threads: int = 1
    ) -> bytes:
        asked = {"path": path, "sha256": sha256, "top_k": top_k, "image": image, "auto_fix": auto_fix}
        self.pictures.append(asked | {"threads": threads})
        self._raise_if_told()
        guesses = [Guess(class_index=9 - rank, label=f"class {9 - rank}", probability=0.5) for rank in range(top_k)]
        found = ClassPrediction(**guesses[0].model_dump(), top=guesses, warnings=[f"{len(image)} bytes"])
        return found.model_dump_json().encode()

    async def ask(self, request: InferRequest | WarmRequest, body: bytes = b"") -> bytes:
        self.asked.append((request, body))
        self._raise_if_told()
        return self.answer

    @asynccontextmanager
    async def errand(self, request: Errand) -> AsyncIterator[AsyncIterator[bytes]]:
        self.asked.append((request, b""))
        yield self._parts()

    async def _parts(self) -> AsyncIterator[bytes]:
        for part in self.parts:
            yield part
        self._raise_if_told()

    def _raise_if_told(self) -> None:
        if self.error is not None:
            raise self.error
        if not self.ready:
            raise PredictorUnavailable
