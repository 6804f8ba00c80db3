"""Span pooling's forward kernels in Triton.

`walk_forward` follows spans token by token. Spans that start together are nested, so each continues the running sum,
maximum and online softmax (Milakov and Gimelshein 2018) of the one before: a token is read once per first token instead
of once per span, and an enumeration costs one step a span.

`banded_forward` is the matrix product of a tile of sorted spans with their tokens, `A @ X`: row n of A holds the
weights of span n, 1 or those of a softmax, over the window from the tile's first token to its last. It is never stored.
The steps through the window begin at multiples of BLOCK.K tokens, so the order of a span's additions does not depend on
the spans beside it. A weight of 0 does not hide Inf or NaN (0 x Inf = NaN): where the product is not finite it is made
again without the elements that are not, and those are added to the spans that hold them.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from spanbert_kernels.ops.triton_arguments import Matrix


class Table(NamedTuple):
    """The width table `[R, E]`, and the row of it by output row, int64 `[N]`; absent: `min(width, R) - 1`."""

    data: Tensor
    rows: Tensor | None


class PartColumns(NamedTuple):
    """The first output column of each part, None for a part not asked for."""

    start: int | None
    end: int | None
    mean: int | None
    sum: int | None
    max: int | None
    attention: int | None
    width: int | None


class Outputs(NamedTuple):
    """What the forward writes.

    Attributes:
        output: `[N, stride]`.
        stride: columns of all parts.
        argmax: `[N, H]`, the place of the maximum in the span, or None.
        lse: `[N, heads]`, float32, or None.
    """

    output: Tensor
    stride: int
    argmax: Tensor | None
    lse: Tensor | None


class Walk(NamedTuple):
    """How far the lanes are in their spans `[L]`, and what they found there `[L, D]`, `[L]`."""

    position: tl.tensor
    total: tl.tensor
    largest: tl.tensor
    offset: tl.tensor
    weighted: tl.tensor
    peak: tl.tensor
    mass: tl.tensor


class Window(NamedTuple):
    """The tokens of a tile of spans: the first, how many, and the spans' bounds `[N]` counted from the first."""

    low: tl.tensor
    extent: tl.tensor
    start: tl.tensor
    end: tl.tensor


class Pooled(NamedTuple):
    """Sums over spans `[N, D]`; of a softmax its largest score and the sum of its weights `[N]`, too."""

    total: tl.tensor
    peak: tl.tensor
    mass: tl.tensor


@triton.jit
def is_finite(x):
    return tl.abs(x.to(tl.float32)) < float("inf")


@triton.jit
def add_product(accumulator, weights, values, EXACT: tl.constexpr, PRECISION: tl.constexpr):
    """`accumulator + weights @ values`, weights in float32; EXACT: the dtype of the values can hold them."""
    if PRECISION == "ieee":
        accumulator = tl.dot(weights, values.to(tl.float32), accumulator, input_precision="ieee")
    elif values.dtype == tl.float32:
        accumulator = tl.dot(weights, values, accumulator, input_precision=PRECISION)
    else:
        high = weights.to(values.dtype)
        accumulator = tl.dot(high, values, accumulator, input_precision=PRECISION)
        if not EXACT:
            # What rounding to 16 bits took from a weight, in a second product.
            low = (weights - high.to(tl.float32)).to(values.dtype)
            accumulator = tl.dot(low, values, accumulator, input_precision=PRECISION)
    return accumulator


@triton.jit
def softmax_step(peak, score):
    """The new maximum, and what it subtracts: a maximum of -inf stands for no token and must not meet itself."""
    peak = tl.maximum(peak, score)
    return peak, tl.where(peak == -float("inf"), 0.0, peak)


@triton.jit
def softmax_share(weighted, mass, valid):
    """The weighted tokens [N, D] over the weights' sum; a span whose scores are all -inf is like one of no token."""
    live = valid & (mass != 0)
    return tl.where(live[:, None], weighted / tl.where(live, mass, 1.0)[:, None], 0.0)


@triton.jit
def log_sum(peak, mass, valid):
    """The log-sum-exp of every span's scores; +inf, against which every weight is 0, where none of them weighs."""
    live = valid & (mass != 0)
    return tl.where(live, peak + tl.log(tl.where(live, mass, 1.0)), float("inf"))


@triton.jit
def walk_token(
    walk, source, scores, head, heads, start, limit, inside,
    SUM: tl.constexpr, MAX: tl.constexpr, ATTENTION: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """One more token in the running results of each lane that has not reached its limit."""
    position, total, largest, offset, weighted, peak, mass = walk
    more = position < limit  # [L]
    x = tl.load(source.data + position[:, None] * source.stride, mask=more[:, None] & inside[None, :], other=0.0).to(
        tl.float32
    )  # [L, D]
    if SUM:
        total += x
    if MAX:
        larger = ((x > largest) | (x != x)) & (largest == largest)  # the first NaN stays
        if LANES > 1:
            larger = larger & more[:, None]
        offset = tl.where(larger, (position - start).to(tl.int32)[:, None], offset)
        largest = tl.where(larger, x, largest)
    if ATTENTION:
        score = tl.load(scores + position * heads + head, mask=more, other=-float("inf"))
        peak_before = peak
        peak, subtracted = softmax_step(peak, score)
        factor, weight = tl.exp(peak_before - subtracted), tl.exp(score - subtracted)
        weighted = weighted * factor[:, None] + weight[:, None] * x
        mass = mass * factor + weight
    return Walk(position + more, total, largest, offset, weighted, peak, mass)


@triton.jit
def write_width(table, entry, row, width, mask, table_rows, table_columns, STEP: tl.constexpr):
    """The width table's entries of a tile of spans, zeros for a span without tokens."""
    if table.rows is None:
        index = (tl.minimum(width, table_rows) - 1).to(tl.int64)
    else:
        index = tl.load(table.rows + row, mask=mask, other=0)
    held = mask & (width > 0) & (index >= 0) & (index < table_rows)
    source = table.data + index * table_columns
    done = 0
    while done < table_columns:
        column = done + tl.arange(0, STEP)
        inside = (column < table_columns)[None, :]
        value = tl.load(source[:, None] + column[None, :], mask=held[:, None] & inside, other=0.0)
        tl.store(entry[:, None] + column[None, :], value, mask=mask[:, None] & inside)
        done += STEP


@triton.jit
def write_boundaries(source, target, at, start, end, valid, mask):
    """The first and the last token of a tile of spans, zeros for a span without tokens."""
    held = mask & valid[:, None]
    if at.start is not None:
        x = tl.load(source.data + start[:, None] * source.stride, mask=held, other=0.0)
        tl.store(target + at.start, x, mask=mask)
    if at.end is not None:
        x = tl.load(source.data + (end - 1)[:, None] * source.stride, mask=held, other=0.0)
        tl.store(target + at.end, x, mask=mask)


@triton.jit(do_not_specialize=["tokens", "num_spans", "heads", "table_rows", "table_columns", "share"])
def walk_forward(
    hidden,  # [T, H]
    spans,  # bounds are not read for an enumeration, which alone has `first`
    scores,  # [T, heads], float32
    table,
    results,
    at,
    tokens,
    num_spans,
    columns,
    heads,
    table_rows,
    table_columns,
    share,  # spans of a lane, of an enumeration tokens
    BLOCK,
):
    """A program is LANES walkers, each with its own share of the spans, that write their n-th span together."""
    column_blocks = tl.maximum(tl.cdiv(columns, BLOCK.D), 1)
    program = tl.program_id(0)
    block = program % column_blocks
    head = program // column_blocks % heads
    group = (program // column_blocks // heads).to(tl.int64)
    begin = (group * BLOCK.LANES + tl.arange(0, BLOCK.LANES)) * share  # [L]
    column = block * BLOCK.D + tl.arange(0, BLOCK.D)
    inside = column < columns
    source = Matrix(hidden.data + column[None, :], hidden.stride)
    kind = results.output.dtype.element_ty
    SUM: tl.constexpr = (at.mean is not None) or (at.sum is not None)
    MAX: tl.constexpr = at.max is not None
    ATTENTION: tl.constexpr = at.attention is not None

    if spans.first is not None:
        start = begin - 1
        item = tl.load(spans.first + tl.minimum(begin, tokens))
        stop = tl.load(spans.first + tl.minimum(begin + share, tokens))
    else:
        start = begin * 0 - 1
        item = begin
        stop = tl.minimum(begin + share, num_spans)
    base = item  # of an enumeration: the first span of the token, and that of the next
    following = item
    walk = Walk(
        begin * 0,
        tl.zeros([BLOCK.LANES, BLOCK.D], tl.float32),
        tl.full([BLOCK.LANES, BLOCK.D], -float("inf"), tl.float32),
        tl.zeros([BLOCK.LANES, BLOCK.D], tl.int32),
        tl.zeros([BLOCK.LANES, BLOCK.D], tl.float32),
        tl.full([BLOCK.LANES], -float("inf"), tl.float32),
        tl.zeros([BLOCK.LANES], tl.float32),
    )
    while tl.max(stop - item, 0) > 0:
        there = item < stop
        if spans.first is not None:
            fresh = item == following
            start = tl.where(fresh, start + 1, start)
            base = tl.where(fresh, item, base)
            following = tl.load(spans.first + start + 1, mask=there, other=-1)
            end = start + 1 + item - base
        else:
            start_before = start
            start = tl.load(spans.starts + item, mask=there, other=0)
            end = tl.load(spans.ends + item, mask=there, other=0)
            fresh = start != start_before
        walk = Walk(
            tl.where(fresh, start, walk.position),
            tl.where(fresh[:, None], 0.0, walk.total),
            tl.where(fresh[:, None], -float("inf"), walk.largest),
            tl.where(fresh[:, None], 0, walk.offset),
            tl.where(fresh[:, None], 0.0, walk.weighted),
            tl.where(fresh, -float("inf"), walk.peak),
            tl.where(fresh, 0.0, walk.mass),
        )

        valid = there & (start >= 0) & (start < end) & (end <= tokens)
        if SUM or MAX or ATTENTION:
            limit = tl.where(valid, end, walk.position)
            if BLOCK.UNROLL > 1:
                while tl.max(limit - walk.position, 0) >= BLOCK.UNROLL:
                    for _ in tl.static_range(BLOCK.UNROLL):
                        walk = walk_token(
                            walk, source, scores, head, heads, start, limit, inside, SUM, MAX, ATTENTION, BLOCK.LANES
                        )
            while tl.max(limit - walk.position, 0) > 0:
                walk = walk_token(
                    walk, source, scores, head, heads, start, limit, inside, SUM, MAX, ATTENTION, BLOCK.LANES
                )

        row = item
        if spans.rows is not None:
            row = tl.load(spans.rows + item, mask=there, other=-1)
        kept = there & (row >= 0) & (row < num_spans)
        mask = kept[:, None] & inside[None, :]
        held = valid[:, None]
        target = results.output + row[:, None] * results.stride + column[None, :]
        width = tl.where(valid, end - start, 0)
        if head == 0:
            write_boundaries(source, target, at, start, end, valid, mask)
            if at.mean is not None:
                mean = tl.where(held, walk.total / tl.maximum(width, 1).to(tl.float32)[:, None], 0.0)
                tl.store(target + at.mean, mean.to(kind), mask=mask)
            if at.sum is not None:
                tl.store(target + at.sum, tl.where(held, walk.total, 0.0).to(kind), mask=mask)
            if MAX:
                tl.store(target + at.max, tl.where(held, walk.largest, 0.0).to(kind), mask=mask)
                if results.argmax is not None:
                    chosen = tl.where(held, walk.offset, 0).to(results.argmax.dtype.element_ty)
                    tl.store(results.argmax + row[:, None] * columns + column[None, :], chosen, mask=mask)
            if at.width is not None and block == 0:
                entry = results.output + row * results.stride + at.width
                write_width(table, entry, row, width, kept, table_rows, table_columns, 32)
        if ATTENTION:
            value = softmax_share(walk.weighted, walk.mass, valid)
            tl.store(target + at.attention + head * columns, value.to(kind), mask=mask)
            if results.lse is not None and block == 0:
                tl.store(results.lse + row * heads + head, log_sum(walk.peak, walk.mass, valid), mask=kept)
        item += 1


@triton.jit
def window_of(start, end, valid, tokens, STEP: tl.constexpr):
    """The tokens of a tile of spans, from a multiple of STEP on, and the spans' bounds counted from it."""
    low = tl.min(tl.where(valid, start, tokens), 0) // STEP * STEP
    extent = (tl.max(tl.where(valid, end, 0), 0) - low).to(tl.int32)
    return Window(low, extent, tl.where(valid, start - low, 0).to(tl.int32), tl.where(valid, end - low, 0).to(tl.int32))


@triton.jit
def window_step(pooled, done, source, scores, window, inside, SANITIZE: tl.constexpr, BLOCK):
    """BLOCK.K more tokens of the window; positions count from its beginning."""
    total, peak, mass = pooled
    token = done + tl.arange(0, BLOCK.K)
    there = token < window.extent
    x = tl.load(
        source.data + token.to(tl.int64)[:, None] * source.stride, mask=there[:, None] & inside[None, :], other=0.0
    )  # [K, D]
    if SANITIZE:
        x = tl.where(is_finite(x), x, 0.0)
    # Made as [K, N]: a thread then keeps the bounds of a span or two instead of half of them.
    held = (token[:, None] >= window.start[None, :]) & (token[:, None] < window.end[None, :])
    if scores is not None:
        score = tl.load(scores.data + token.to(tl.int64) * scores.stride, mask=there, other=-float("inf"))
        score = tl.where(held, score[:, None], -float("inf"))
        peak_before = peak
        peak, subtracted = softmax_step(peak, tl.max(score, 0))
        weights = tl.where(held, tl.exp(score - subtracted[None, :]), 0.0)
        factor = tl.exp(peak_before - subtracted)
        mass = mass * factor + tl.sum(weights, 0)
        total = total * factor[:, None]
    else:
        weights = tl.where(held, 1.0, 0.0)
    return Pooled(add_product(total, tl.trans(weights), x, scores is None, BLOCK.PRECISION), peak, mass)


@triton.jit
def window_product(source, scores, window, inside, SANITIZE: tl.constexpr, BLOCK):
    pooled = Pooled(
        tl.zeros([BLOCK.M, BLOCK.D], tl.float32),
        tl.full([BLOCK.M], -float("inf"), tl.float32),
        tl.zeros([BLOCK.M], tl.float32),
    )
    if SANITIZE or BLOCK.INTERPRETED:
        done = 0
        while done < window.extent:
            pooled = window_step(pooled, done, source, scores, window, inside, SANITIZE, BLOCK)
            done += BLOCK.K
    else:
        # The same loop, in the form that the compiler pipelines.
        for done in tl.range(0, window.extent, BLOCK.K):
            pooled = window_step(pooled, done, source, scores, window, inside, SANITIZE, BLOCK)
    return pooled


@triton.jit
def exact_window_product(source, scores, window, inside, BLOCK):
    """The sums over each span of a tile; weighed by the softmax of the scores `[T]`, a Matrix, if there are any.

    Inf and NaN reach the spans that hold them, and no other.
    """
    pooled = window_product(source, scores, window, inside, False, BLOCK)
    if tl.max(tl.where(is_finite(pooled.total), 0, 1)) > 0:
        pooled = window_product(source, scores, window, inside, True, BLOCK)
        total, peak, mass = pooled
        token = tl.min(window.start)
        while token < window.extent:
            x = tl.load(source.data + token.to(tl.int64) * source.stride, mask=inside[None, :], other=0.0).to(
                tl.float32
            )  # [1, D]
            held = (token >= window.start) & (token < window.end)
            added = tl.zeros([BLOCK.M, BLOCK.D], tl.float32) + x
            if scores is not None:
                subtracted = tl.where(peak == -float("inf"), 0.0, peak)
                score = tl.load(scores.data + token.to(tl.int64) * scores.stride)
                added = added * tl.exp(score - subtracted)[:, None]
            total = tl.where(held[:, None] & (is_finite(x) == 0), total + added, total)
            token += 1
        pooled = Pooled(total, peak, mass)
    return pooled


@triton.jit(do_not_specialize=["tokens", "num_spans", "heads", "table_rows", "table_columns"])
def banded_forward(
    hidden,  # the arguments of walk_forward
    spans,
    scores,
    table,
    results,
    at,  # the product is the attention's where there are no columns of the mean and the sum
    tokens,
    num_spans,
    columns,
    heads,
    table_rows,
    table_columns,
    BLOCK,
):
    column_blocks = tl.maximum(tl.cdiv(columns, BLOCK.D), 1)
    program = tl.program_id(0)
    block = program % column_blocks
    head = program // column_blocks % heads
    column = block * BLOCK.D + tl.arange(0, BLOCK.D)
    inside = column < columns
    kind = results.output.dtype.element_ty
    SOFTMAX: tl.constexpr = at.attention is not None
    SUM: tl.constexpr = (at.mean is not None) or (at.sum is not None)

    span = (program // column_blocks // heads).to(tl.int64) * BLOCK.M + tl.arange(0, BLOCK.M)
    there = span < num_spans
    start = tl.load(spans.starts + span, mask=there, other=0)
    end = tl.load(spans.ends + span, mask=there, other=0)
    valid = (start >= 0) & (start < end) & (end <= tokens)

    if SUM or SOFTMAX:
        window = window_of(start, end, valid, tokens, BLOCK.K)
        source = Matrix(hidden.data + window.low * hidden.stride + column[None, :], hidden.stride)
        head_scores = None
        if SOFTMAX:
            head_scores = Matrix(scores + window.low * heads + head, heads)
        pooled = exact_window_product(source, head_scores, window, inside, BLOCK)

    row = span
    if spans.rows is not None:
        row = tl.load(spans.rows + span, mask=there, other=-1)
    kept = there & (row >= 0) & (row < num_spans)
    width = tl.where(valid, end - start, 0)
    mask = kept[:, None] & inside[None, :]
    target = results.output + row[:, None] * results.stride + column[None, :]
    if SOFTMAX:
        value = softmax_share(pooled.total, pooled.mass, valid)
        tl.store(target + at.attention + head * columns, value.to(kind), mask=mask)
        if results.lse is not None and block == 0:
            tl.store(results.lse + row * heads + head, log_sum(pooled.peak, pooled.mass, valid), mask=kept)
    if at.mean is not None:
        mean = pooled.total * (1.0 / tl.maximum(width, 1).to(tl.float32))[:, None]
        tl.store(target + at.mean, mean.to(kind), mask=mask)
    if at.sum is not None:
        tl.store(target + at.sum, pooled.total.to(kind), mask=mask)
    if head == 0:
        write_boundaries(Matrix(hidden.data + column[None, :], hidden.stride), target, at, start, end, valid, mask)
        if at.width is not None and block == 0:
            entry = results.output + row * results.stride + at.width
            write_width(table, entry, row, width, kept, table_rows, table_columns, 32)
