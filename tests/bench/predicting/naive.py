"""The yardstick that tutorials teach: a FastAPI route with an `UploadFile`, the network called inline."""

from typing import Any

from fastapi import FastAPI, UploadFile

from .classifier import from_environment


def app() -> FastAPI:
    classifier = from_environment()
    made = FastAPI()

    @made.post("/predict")
    async def predict(image: UploadFile) -> dict[str, Any]:
        X = classifier.prepare(await image.read())
        return classifier.answers(X.unsqueeze(0))[0]

    return made
