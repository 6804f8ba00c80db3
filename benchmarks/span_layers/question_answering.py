"""transformers' search for the best answers in 384 tokens: spans of up to 15, the best one and the best 20."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from registry import FORWARD
from transformers.pipelines import document_question_answering as theirs

from span_layers import Side, SpanLayerCase
from spanbert_kernels.integrations import question_answering

LENGTH, QUESTION = 384, 14


def build(best: int, ours: bool, dtype: torch.dtype) -> Side:
    start, end = np.random.default_rng(0).standard_normal((2, 1, LENGTH)).astype(np.float32) * 3
    p_mask, attention = (np.arange(LENGTH) < QUESTION)[None].astype(int), np.ones((1, LENGTH), dtype=int)
    select = question_answering.select_starts_ends if ours else theirs.select_starts_ends

    def way() -> torch.Tensor:
        found = select(start, end, p_mask, attention, top_k=best)[:3]
        return torch.stack([torch.from_numpy(np.asarray(each)).to(dtype) for each in found])

    return Side(way, [])


CASES = tuple(
    SpanLayerCase(
        f"the best {best} of the answers in {LENGTH} tokens" if best > 1 else f"the best answer in {LENGTH} tokens",
        "transformers.pipelines.document_question_answering.select_starts_ends",
        partial(build, best, False),
        partial(build, best, True),
        goal=2,
        directions=(FORWARD,),
        quick=best == 1,
    )
    for best in (1, 20)
)
