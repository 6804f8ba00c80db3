"""The loop that banded_span_scores is compared with, and both as the shared checks call them."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from spanbert_kernels.ops import banded_span_scores


def scores_by_loop(
    start: Tensor, end: Tensor, weight: Tensor | None = None, cu_seqlens: Tensor | None = None, *, max_width: int
) -> Tensor:
    """Span by span, from the formula."""
    tokens = len(start)
    offsets = [0, tokens] if cu_seqlens is None else cu_seqlens.tolist()
    document = [d for d, (a, b) in enumerate(itertools.pairwise(offsets)) for _ in range(a, b)]
    nothing = start.new_zeros(()) - torch.inf
    rows = [start.new_zeros(0, max_width) + 0 * (start.sum() + end.sum())]
    for t in range(tokens):
        row = []
        for last in range(t, t + max_width):
            if last >= tokens or document[last] != document[t]:
                row.append(nothing)
                continue
            projected = start[t] if weight is None else start[t] @ weight
            row.append((projected * end[last]).sum())
        rows.append(torch.stack(row)[None])
    return torch.cat(rows)


def split(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Numerical differentiation has no use for -inf - -inf."""
    outside = scores == -torch.inf
    return scores.masked_fill(outside, 0), outside


def call(*, start: Tensor, end: Tensor, weight: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    return split(banded_span_scores(start, end, weight, **options))


def oracle(**arguments: Any) -> tuple[Tensor, Tensor]:
    return split(scores_by_loop(**arguments))
