"""The host functions in numpy and Python, for installations without the compiled module: slower, the same results."""

from __future__ import annotations

import numpy as np

from spanbert_kernels.host.checks import Indices, Scores


def prune_spans(
    starts: Indices, ends: Indices, scores: Scores, budgets: Indices, documents: Indices, non_crossing: bool
) -> Indices:
    """Best first, with the latest end of the kept spans that start at a token, the earliest start of those that end."""
    latest_end: dict[int, int] = {}
    earliest_start: dict[int, int] = {}

    def crosses(start: int, end: int) -> bool:
        return any(latest_end.get(t, end) > end or earliest_start.get(t, start) < start for t in range(start + 1, end))

    left = budgets.tolist()
    wanted = sum(left)
    kept: list[int] = []
    order = np.argsort(-scores, kind="stable")
    rows = zip(order.tolist(), starts[order].tolist(), ends[order].tolist(), documents[order].tolist(), strict=True)
    for row, start, end, owner in rows:
        if len(kept) == wanted:
            break
        if left[owner] == 0 or (non_crossing and crosses(start, end)):
            continue
        left[owner] -= 1
        kept.append(row)
        if end > start:
            latest_end[start] = max(end, latest_end.get(start, end))
            earliest_start[end] = min(start, earliest_start.get(end, start))
    rows_kept = np.array(sorted(kept), dtype=np.int64)
    return rows_kept[np.lexsort((ends[rows_kept], starts[rows_kept]))]


def sort_spans(starts: Indices, ends: Indices, num_tokens: int) -> tuple[Indices, Indices, Indices]:
    """A stable sort by (start, end), spans without tokens as (0, 0)."""
    full = ends > starts
    starts, ends = np.where(full, starts, 0), np.where(full, ends, 0)
    rows = np.lexsort((ends, starts)).astype(np.int64)
    return starts[rows], ends[rows], rows


def first_and_reach(starts: Indices, ends: Indices, num_tokens: int) -> tuple[Indices, Indices]:
    """The largest end up to each span ascends: both lists are binary searches."""
    first = np.searchsorted(starts, np.arange(num_tokens + 1), side="left").astype(np.int64)
    reach = np.searchsorted(np.maximum.accumulate(ends), np.arange(num_tokens), side="right").astype(np.int64)
    return first, reach
