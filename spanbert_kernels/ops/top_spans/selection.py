"""The best of candidates, so many of each group."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from spanbert_kernels import host


class Candidates(NamedTuple):
    """Spans by (start, last), `[N]` each: first and last token, score, and the group whose number they count for."""

    start: Tensor
    last: Tensor
    score: Tensor
    group: Tensor


def joined(parts: list[Candidates]) -> Candidates:
    """One behind the other."""
    return Candidates(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def best(candidates: Candidates, budgets: Tensor, compiled: bool) -> Candidates:
    """Those of each group with the best scores, `budgets [groups]` of them, in the order they had."""
    if compiled and not candidates.score.isnan().any():
        start, last, score, group = (each.numpy() for each in candidates)
        kept = host.prune_spans(start, last + 1, score, budgets.numpy(), False, documents=group, compiled=True)
        row = torch.from_numpy(np.asarray(kept))
    else:
        row = _sorted(candidates, budgets)
    return Candidates(*(each[row] for each in candidates))


def _sorted(candidates: Candidates, budgets: Tensor) -> Tensor:
    """By two stable sorts, in each group the best first and of equal ones the earlier; NaN is the best."""
    order = torch.argsort(candidates.score, descending=True, stable=True)
    order = order[torch.argsort(candidates.group[order], stable=True)]
    group = candidates.group[order]
    counts = torch.bincount(group, minlength=len(budgets))
    rank = torch.arange(len(order), device=order.device) - (counts.cumsum(0) - counts)[group]
    return order[rank < budgets[group]].sort().values
