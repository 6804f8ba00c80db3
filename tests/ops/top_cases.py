"""The loop that top_spans is compared with, and both as the shared comparisons call them."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from banded_cases import scores_by_loop
from torch import Tensor

from spanbert_kernels.ops import top_spans


def by_loop(
    *, max_width: int, k: int | Tensor, cu_seqlens: Tensor | None = None, per: str = "document", **tensors: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, spans and the offsets of the groups: all scores of a group, sorted."""
    scores = scores_by_loop(cu_seqlens=cu_seqlens, max_width=max_width, **tensors)
    tokens, values = len(scores), scores.tolist()
    offsets = [0, tokens] if cu_seqlens is None else cu_seqlens.tolist()
    if per == "start":
        groups = [range(t, t + 1) for t in range(tokens)]
    else:
        groups = [range(a, b) for a, b in itertools.pairwise(offsets)]
    budgets = k.tolist() if isinstance(k, Tensor) else [k] * len(groups)
    kept, bounds = [], [0]
    for group, budget in zip(groups, budgets, strict=True):
        end_of = {t: next(b for b in offsets if b > t) for t in group}
        spans = [(t, t + w) for t in group for w in range(min(max_width, end_of[t] - t))]
        kept += sorted(sorted(spans, key=lambda span: (-values[span[0]][span[1] - span[0]], span))[:budget])
        bounds.append(len(kept))
    pairs = torch.tensor(kept, dtype=torch.int64).reshape(-1, 2)
    return scores[pairs[:, 0], pairs[:, 1] - pairs[:, 0]], pairs, torch.tensor(bounds)


def call(
    *, start: Tensor | None = None, end: Tensor | None = None, weight: Tensor | None = None, **options: Any
) -> tuple[Tensor, Tensor, Tensor]:
    spans, scores, offsets = top_spans(start, end, weight, **options)
    return scores, spans, offsets
