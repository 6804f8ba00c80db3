"""What prune_spans means, in plain PyTorch: take the best span left, drop what may not stand beside it, repeat."""

from __future__ import annotations

import torch
from torch import Tensor


def prune_spans(
    start: Tensor, end: Tensor, scores: Tensor, budgets: Tensor, document: Tensor, non_crossing: bool
) -> Tensor:
    """`start`, `end` (half-open), `scores`, `document` `[N]`, `budgets [D]` -> indices by (start, end, index)."""
    budgets = budgets.clone()
    rows = torch.argsort(scores, descending=True, stable=True)
    rows = rows[budgets[document[rows]] > 0]
    kept = []
    while len(rows):
        best, rows = rows[0], rows[1:]
        kept.append(best)
        budgets[document[best]] -= 1
        if budgets[document[best]] == 0:
            rows = rows[document[rows] != document[best]]
        if non_crossing:
            rows = rows[~crosses(start[rows], end[rows], start[best], end[best])]
    result = torch.stack(kept).sort().values if kept else rows
    for key in (end, start):
        result = result[torch.argsort(key[result], stable=True)]
    return result


def crosses(start: Tensor, end: Tensor, other_start: Tensor, other_end: Tensor) -> Tensor:
    """Whether two half-open spans overlap in part: one starts inside the other and ends behind it."""
    before = (start < other_start) & (other_start < end) & (end < other_end)
    behind = (other_start < start) & (start < other_end) & (other_end < end)
    return before | behind
