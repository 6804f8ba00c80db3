"""The loop that banded_span_scores is compared with, and both as the shared checks call them."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from spanbert_kernels.ops import banded_span_scores

RANK_ONE = ("start_scores", "end_scores", "bias")


def scores_by_loop(
    start: Tensor | None = None,
    end: Tensor | None = None,
    weight: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    *,
    max_width: int,
    start_scores: Tensor | None = None,
    end_scores: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Span by span, from the formula."""
    given = [each for each in (start, end, start_scores, end_scores) if each is not None]
    tokens = len(given[0])
    offsets = [0, tokens] if cu_seqlens is None else cu_seqlens.tolist()
    document = [d for d, (a, b) in enumerate(itertools.pairwise(offsets)) for _ in range(a, b)]
    nothing = given[0].new_zeros(()) - torch.inf
    rows = [given[0].new_zeros(0, max_width) + 0 * sum(each.sum() for each in given)]
    for t in range(tokens):
        row = []
        for last in range(t, t + max_width):
            if last >= tokens or document[last] != document[t]:
                row.append(nothing)
                continue
            terms = [] if bias is None else [bias.reshape(())]
            if start is not None and end is not None:
                terms.append(((start[t] if weight is None else start[t] @ weight) * end[last]).sum())
            terms += [] if start_scores is None else [start_scores[t]]
            terms += [] if end_scores is None else [end_scores[last]]
            row.append(sum(terms))
        rows.append(torch.stack(row)[None])
    return torch.cat(rows)


def split(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Numerical differentiation has no use for -inf - -inf."""
    outside = scores == -torch.inf
    return scores.masked_fill(outside, 0), outside


def call(
    *, start: Tensor | None = None, end: Tensor | None = None, weight: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor]:
    return split(banded_span_scores(start, end, weight, **options))


def oracle(**arguments: Any) -> tuple[Tensor, Tensor]:
    return split(scores_by_loop(**arguments))
