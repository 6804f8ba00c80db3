"""What masking words takes from predictions: those that count most, those that count least, and drawn ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from spanbert_kernels.tasks.attribution import masked, masking_token

DRAWS = 8


def losses(task: Any, model: Any, tokenizer: Any, items: Any, limit: int, share: float) -> dict[str, float]:
    """The mean fall of the predictions' scores where `share` of their words are masked."""
    draw, token, network = np.random.default_rng(0), masking_token(tokenizer), task.network(model)
    found: dict[str, list[float]] = {"most": [], "least": [], "drawn": []}

    def fall(prediction: Any, passed: Any, words: Any) -> float:
        ids = masked(passed.batch["input_ids"], prediction.reading, words, token)
        with torch.no_grad():
            output = network(**{**passed.batch, "input_ids": ids})
        return float(prediction.score(passed.output) - prediction.score(output))

    for explanation, prediction, passed in task.explained(model, tokenizer, items, limit):
        read = np.unique(prediction.reading.word_of[prediction.reading.word_of >= 0])
        order = read[explanation.shares[read].argsort(kind="stable")]
        count = max(1, round(share * len(read)))
        if not explanation.shares.any() or len(read) < 2 * count:
            continue
        found["most"].append(fall(prediction, passed, order[-count:]))
        found["least"].append(fall(prediction, passed, order[:count]))
        found["drawn"] += [fall(prediction, passed, draw.choice(read, count, replace=False)) for _ in range(DRAWS)]
    assert found["most"]
    return {name: float(np.mean(values)) for name, values in found.items()}
