"""Batches are full, and nothing waits for long."""

from __future__ import annotations

import numpy as np
import pytest

from spanbert_kernels.scale.batching import filled

DRAWS = {
    "sentences": lambda rng: rng.lognormal(3, 0.6, 4000).astype(int).clip(3, 256),
    "windows": lambda rng: rng.integers(200, 512, 1500),
    "both": lambda rng: np.where(rng.random(3000) < 0.5, 512, rng.integers(5, 60, 3000)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_under_two_percent_of_a_batch_is_empty(name: str) -> None:
    items = list(enumerate(DRAWS[name](np.random.default_rng(0)).tolist()))
    batches = list(filled(items, lambda item: item[1], 8192))
    sizes = [sum(size for _, size in batch) for batch in batches]
    assert max(sizes) <= 8192
    assert sum(sizes[:-1]) > 0.98 * 8192 * (len(sizes) - 1)
    assert sorted(item for batch in batches for item in batch) == items
    taken: set[int] = set()
    for batch in batches:  # the first that is left is always taken: what is kept for its turn is of few batches
        assert min(set(range(len(items))) - taken) == batch[0][0]
        taken |= {number for number, _ in batch}
