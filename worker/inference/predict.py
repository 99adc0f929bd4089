"""From a picture's bytes to a class: the checkpoint's own preprocessing, `eval()`, softmax."""

import torch

from worker.jobs.wire import Guess, Prediction

from .models import Ready


@torch.inference_mode()
def predict(ready: Ready, image: bytes, top_k: int, *, max_pixels: int) -> Prediction:
    """Raises BadImage and ImageTooLarge."""
    metadata = ready.metadata
    picture = metadata.preprocessing.picture(image, max_pixels=max_pixels)
    logits = ready.model(metadata.preprocessing.normalise(picture.unsqueeze(0)))
    probabilities, indices = logits.softmax(dim=1)[0].topk(min(top_k, len(metadata.classes)))
    top = [
        Guess(class_index=index, label=metadata.classes[index], probability=probability)
        for index, probability in zip(indices.tolist(), probabilities.tolist(), strict=True)
    ]
    return Prediction(**top[0].model_dump(), top=top)
