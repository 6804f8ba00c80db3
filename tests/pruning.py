"""The published pruning, the definition in plain PyTorch, and spans to prune."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor


def published(starts: Sequence[int], ends: Sequence[int], scores: Sequence[float], k: int) -> list[int]:
    """ExtractSpans (coref_kernels.cc) for ends that are inclusive, without its padding; ties by index."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    start_to_latest_end: dict[int, int] = {}
    end_to_earliest_start: dict[int, int] = {}
    selected: list[int] = []
    for i in order:
        if len(selected) == k:
            break
        start, end = starts[i], ends[i]
        any_crossing = False
        for j in range(start, end + 1):
            if j in start_to_latest_end and j > start and start_to_latest_end[j] > end:
                any_crossing = True
                break
            if j in end_to_earliest_start and j < end and end_to_earliest_start[j] < start:
                any_crossing = True
                break
        if any_crossing:
            continue
        selected.append(i)
        if start not in start_to_latest_end or end > start_to_latest_end[start]:
            start_to_latest_end[start] = end
        if end not in end_to_earliest_start or start < end_to_earliest_start[end]:
            end_to_earliest_start[end] = start
    return sorted(selected, key=lambda i: (starts[i], ends[i], i))


def defined(
    start: Tensor, end: Tensor, scores: Tensor, limits: Sequence[tuple[Tensor, Tensor]], non_crossing: bool
) -> Tensor:
    """What prune_spans means: take the best span left, drop what may not stand beside it, repeat.

    `start`, `end` (half-open), `scores` `[N]`; limits: the group of each span `[N]` and each group's budget `[G]` ->
    indices by (start, end, index).
    """
    limits = [(group, budgets.clone()) for group, budgets in limits]
    rows = torch.argsort(scores, descending=True, stable=True)
    for group, budgets in limits:
        rows = rows[budgets[group[rows]] > 0]
    kept = []
    while len(rows):
        best, rows = rows[0], rows[1:]
        kept.append(best)
        for group, budgets in limits:
            budgets[group[best]] -= 1
            if budgets[group[best]] == 0:
                rows = rows[group[rows] != group[best]]
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


def best(starts: Sequence[int], ends: Sequence[int], scores: Sequence[float], k: int) -> list[int]:
    """The k best, crossing or not."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]
    return sorted(order, key=lambda i: (starts[i], ends[i], i))


@st.composite
def spans_to_prune(draw: st.DrawFn) -> tuple[list[int], list[int], list[float]]:
    """Starts, inclusive ends and scores: many spans over few tokens, some empty, with many ties."""
    tokens = draw(st.integers(1, 40))
    count = draw(st.integers(0, 60))
    starts = draw(st.lists(st.integers(0, tokens - 1), min_size=count, max_size=count))
    widths = draw(st.lists(st.integers(0, draw(st.sampled_from([2, 5, 40]))), min_size=count, max_size=count))
    few = st.sampled_from([-float("inf"), -1.0, -0.0, 0.0, 0.5, 2.0])
    scores = draw(st.lists(few | st.floats(-2, 2, width=32), min_size=count, max_size=count))
    ends = [min(start + width, tokens) - 1 for start, width in zip(starts, widths, strict=True)]
    return starts, ends, scores
