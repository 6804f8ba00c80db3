"""The batches that the figures are asked for: made, not read, so that everyone measures the same."""

from __future__ import annotations

import numpy
import torch
from torch import Tensor

VOCABULARY = 28996  # of BERT's cased vocabulary


def document_lengths() -> Tensor:
    """16 lengths, log-normal (mu 4.2, sigma 0.7), cut to 8 .. 384: about 39 % of their padded batch is real."""
    drawn = numpy.random.default_rng(0).lognormal(4.2, 0.7, 16).round().astype(int)
    return torch.from_numpy(drawn.clip(8, 384))


def padded_batch(lengths: Tensor) -> dict[str, Tensor]:
    """Random ids and their mask, `[B, L]`."""
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    ids = torch.randint(1000, VOCABULARY, mask.shape, generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


BATCHES = {
    "16 documents": lambda: padded_batch(document_lengths()),
    "one sentence of 24": lambda: padded_batch(torch.tensor([24])),
    "16 x 128": lambda: padded_batch(torch.full((16,), 128)),
}
