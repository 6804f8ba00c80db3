"""The published pruning, written for the tests alone, and spans to prune."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st


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
