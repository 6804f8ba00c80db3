"""The host functions in numpy and Python, for installations without the compiled module: slower, the same results."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spanbert_kernels.host.checks import PARTS, Flags, Indices, Reals, Scores

_GOLDEN, _WORD = 0x9E3779B97F4A7C15, 2**64 - 1


def prune_spans(
    starts: NDArray[Any],
    ends: NDArray[Any],
    scores: NDArray[Any],
    budgets: Indices,
    documents: Indices | None,
    non_crossing: bool,
    most_tokens: int,
    further: Sequence[tuple[Indices, Indices]] = (),
) -> Indices | None:
    """As csrc/host/prune_spans.cpp: None for what has no rank, and where the tokens lie too far apart for lists."""
    full = ends > starts
    first, last = int(starts.min(initial=0, where=full)), int(ends.max(initial=0, where=full))
    if first < 0 or last > most_tokens or np.isnan(scores).any():
        return None
    # Of the spans kept, the latest end of those that start at a token, the earliest start of those that end there.
    latest_end, earliest_start = [-1] * (last + 1), [last + 1] * (last + 1)
    groups = [np.zeros(len(starts), dtype=np.int64) if documents is None else documents, *(each for each, _ in further)]
    left = [np.minimum(each, len(starts)).tolist() for each in (budgets, *(of_each for _, of_each in further))]
    wanted = min(len(starts), *map(sum, left))
    kept: list[int] = []
    for rows in _best_first(scores, 2 * wanted + 256):
        owners = zip(*(each[rows].tolist() for each in groups), strict=True)
        for row, start, end, own in zip(rows.tolist(), starts[rows].tolist(), ends[rows].tolist(), owners, strict=True):
            if len(kept) == wanted:
                break
            if not all(budget[group] for budget, group in zip(left, own, strict=True)):
                continue
            if non_crossing and end > start:
                crosses = False
                for token in range(start + 1, end):
                    if latest_end[token] > end or earliest_start[token] < start:
                        crosses = True
                        break
                if crosses:
                    continue
                latest_end[start] = max(end, latest_end[start])
                earliest_start[end] = min(start, earliest_start[end])
            for budget, group in zip(left, own, strict=True):
                budget[group] -= 1
            kept.append(row)
        if len(kept) == wanted:
            break
    rows_kept = np.array(sorted(kept), dtype=np.int64)
    return rows_kept[np.lexsort((ends[rows_kept], starts[rows_kept]))]


def _best_first(scores: NDArray[Any], needed: int) -> Iterator[Indices]:
    """All rows, the best first and of equal ones the earlier, in rounds: most are not looked at, so not sorted."""
    worst, left = -scores, np.arange(len(scores))
    while len(left):
        chosen = np.ones(len(left), dtype=np.bool_)
        if needed < len(left):
            chosen = worst[left] <= np.partition(worst[left], needed)[needed]
        rows = left[chosen]
        yield rows[np.argsort(worst[rows], kind="stable")]
        left, needed = left[~chosen], 2 * needed


def pool_spans(hidden: Reals, starts: Indices, ends: Indices, parts: Sequence[int], threads: int) -> Reals:
    """As csrc/host/pool_spans.cpp, of all spans of a width at once; `threads` is for that alone."""
    size = hidden.shape[1]
    output = np.zeros((len(starts), len(parts) * size), dtype=hidden.dtype)
    for rows, first, width in _by_width(starts, ends):
        for column, part in enumerate(PARTS[code] for code in parts):
            if part in ("start", "end"):
                values = hidden[first if part == "start" else first + width - 1]
            elif part == "max":
                values = np.take_along_axis(hidden, first[:, None] + _largest(hidden, first, width), axis=0)
            else:
                values = _total(hidden, first, width) / (width if part == "mean" else 1)
            output[rows, column * size : (column + 1) * size] = values
    return output


def pool_spans_backward(
    grad_output: Reals, hidden: Reals, starts: Indices, ends: Indices, parts: Sequence[int], threads: int
) -> Reals:
    """As csrc/host/pool_spans.cpp: the gradient of `hidden`."""
    size = hidden.shape[1]
    grad_hidden = np.zeros_like(hidden)
    columns = np.arange(size)
    for rows, first, width in _by_width(starts, ends):
        for column, part in enumerate(PARTS[code] for code in parts):
            grad = grad_output[rows, column * size : (column + 1) * size]
            if part in ("start", "end"):
                np.add.at(grad_hidden, first if part == "start" else first + width - 1, grad)
            elif part == "max":
                np.add.at(grad_hidden, (first[:, None] + _largest(hidden, first, width), columns), grad)
            else:
                share = grad / (width if part == "mean" else 1)
                for place in range(width):
                    np.add.at(grad_hidden, first + place, share)
    return grad_hidden


def add_spans(tokens: Reals, starts: Indices, ends: Indices, parts: Sequence[int], threads: int, output: Reals) -> None:
    """As csrc/host/add_spans.cpp: adds each part of a token's projections, side by side, to the spans' rows."""
    size = output.shape[1]
    for column, part in enumerate(parts):
        output += pool_spans(tokens[:, column * size : (column + 1) * size], starts, ends, [part], threads)


def add_spans_backward(
    grad_output: Reals, num_tokens: int, starts: Indices, ends: Indices, parts: Sequence[int], threads: int
) -> Reals:
    """As csrc/host/add_spans.cpp: the gradient of the tokens' projections."""
    nothing = np.zeros((num_tokens, grad_output.shape[1]), grad_output.dtype)
    given = [pool_spans_backward(grad_output, nothing, starts, ends, [part], threads) for part in parts]
    return np.concatenate(given, axis=1)


def maxout(rows: Reals, bias: Reals, pieces: int, threads: int) -> tuple[Reals, NDArray[np.int32]]:
    """As csrc/host/layers.cpp."""
    each = (rows + bias).reshape(len(rows), rows.shape[1] // pieces, pieces)
    which = each.argmax(-1)
    return np.take_along_axis(each, which[..., None], -1)[..., 0], which.astype(np.int32)


def layer_norm(rows: Reals, gain: Reals, shift: Reals, epsilon: float, threads: int) -> tuple[Reals, Reals, Reals]:
    """As csrc/host/layers.cpp."""
    mean = rows.mean(1)
    inverse = 1 / np.sqrt(rows.var(1) + rows.dtype.type(epsilon))
    return (rows - mean[:, None]) * inverse[:, None] * gain + shift, mean, inverse


def layer_norm_backward(
    grad_output: Reals, rows: Reals, gain: Reals, mean: Reals, inverse: Reals, threads: int
) -> tuple[Reals, Reals, Reals]:
    """As csrc/host/layers.cpp."""
    normed = (rows - mean[:, None]) * inverse[:, None]
    grad = grad_output * gain
    along = (grad * normed).mean(1, keepdims=True)
    grad_rows = (grad - grad.mean(1, keepdims=True) - normed * along) * inverse[:, None]
    return grad_rows, (grad_output * normed).sum(0), grad_output.sum(0)


def _total(hidden: Reals, first: Indices, width: int) -> Reals:
    total = hidden[first]
    with np.errstate(invalid="ignore"):  # inf - inf is NaN, as ever
        for place in range(1, width):
            total = total + hidden[first + place]
    return total


def _by_width(starts: Indices, ends: Indices) -> Iterator[tuple[Indices, Indices, int]]:
    """Of each width of spans with tokens: the spans' places, their first tokens, the width."""
    widths = ends - starts
    for width in np.unique(widths[widths > 0]).tolist():
        rows = np.flatnonzero(widths == width)
        yield rows, starts[rows], width


def _largest(hidden: Reals, first: Indices, width: int) -> Indices:
    """`[spans, H]`: how far behind a span's first token a column's first largest number stands, or its first NaN."""
    best, places = hidden[first], np.zeros((len(first), hidden.shape[1]), dtype=np.int64)
    for place in range(1, width):
        tokens = hidden[first + place]
        keep = (tokens <= best) | np.isnan(best)
        best, places = np.where(keep, best, tokens), np.where(keep, places, place)
    return places


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


def mask_spans(
    tokens: Indices,
    cu_seqlens: Indices,
    word_starts: Flags,
    seed: int,
    budget: float,
    cumulative: Scores,
    mask_below: float,
    random_below: float,
    mask_token: int,
    random_tokens: Indices,
) -> tuple[Indices, Indices, Indices]:
    """Document by document with the random numbers of csrc/host/span_masking.cpp."""
    inputs, starts, ends = tokens.copy(), [], []
    for document, (begin, end) in enumerate(zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)):
        draws = _Draws(seed, document)
        masked = _drawn(draws, word_starts[begin:end], math.ceil((end - begin) * budget), cumulative)
        edges = np.flatnonzero(np.diff(np.concatenate([[0], masked, [0]])))
        for first, last in (edges.reshape(-1, 2) + begin).tolist():
            starts.append(first)
            ends.append(last)
            draw = draws.uniform()
            if draw < mask_below:
                inputs[first:last] = mask_token
            elif draw < random_below:
                inputs[first:last] = [random_tokens[draws.below(len(random_tokens))] for _ in range(first, last)]
    return inputs, np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64)


def _drawn(draws: _Draws, word_starts: Flags, wanted: int, cumulative: Scores) -> Indices:
    """1 for every masked token of a document, else 0."""
    length, left = len(word_starts), wanted
    masked = np.zeros(length, dtype=np.int64)
    while left:
        words = 1 + min(int(np.searchsorted(cumulative, draws.uniform(), side="right")), len(cumulative) - 1)
        token = draws.below(length)
        if masked[token]:
            continue
        while token > 0 and not word_starts[token]:
            token -= 1
        first = True
        while token < length and left and (first or not word_starts[token] or words > 1):
            words -= not first and bool(word_starts[token])
            left -= 1 - int(masked[token])
            masked[token] = 1
            token, first = token + 1, False
    return masked


def _mixed(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return x ^ (x >> 31)


class _Draws:
    """SplitMix64, seeded for a document."""

    def __init__(self, seed: int, document: int) -> None:
        self.state = _mixed(_mixed((seed + _GOLDEN) & _WORD) ^ ((document * _GOLDEN) & _WORD))

    def _next(self) -> int:
        self.state = (self.state + _GOLDEN) & _WORD
        return _mixed(self.state)

    def below(self, count: int) -> int:
        return (self._next() * count) >> 64

    def uniform(self) -> float:
        return (self._next() >> 11) * 2.0**-53
