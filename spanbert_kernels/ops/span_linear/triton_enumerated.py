"""Values of all spans up to a width before the activation, which span_linear's and span_score's kernels share.

Spans that start together are nested: the one of w + 1 tokens goes on from the sums of the one of w. A group of SPANS
first tokens that follow each other goes through its widths together: of every block of the projection it reads one more
row a width, which the next width's spans hold, too. A span's additions are in the order of its tokens, and no other
token is among them: Inf and NaN stay with their spans. The softmax needs no maximum for its sums: a kernel of its own
finds what share the last token of each span has in it, `p`, and then `(1 - p) sum + p row` is the weighed sum.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from spanbert_kernels.ops.span_linear.triton_forward import activate, slope
from spanbert_kernels.ops.span_pool.triton_forward import softmax_step


class Enumeration(NamedTuple):
    """All spans up to a width.

    Attributes:
        first: int64 `[T + 1]`, the number of spans that start before each token.
        shares: `[starts, heads, widths]`, what the last token of a span weighs in it, of all spans that programs ask
            for; or None without attention.
    """

    first: Tensor
    shares: Tensor | None


class Layer(NamedTuple):
    """What is written, and what is read span by span.

    Attributes:
        output: `[N, O]`, or None where only `deltas` are asked for.
        addend: `[N, O]`, or None.
        grad_output: `[N, O]`: asks for the gradient before the activation instead.
        deltas: `[column blocks, heads, N]`, or None: the gradient's products with each head's share, of its columns.
    """

    output: Tensor | None
    addend: Tensor | None
    grad_output: Tensor | None
    deltas: Tensor | None


class WidthTiling(NamedTuple):
    """How a program goes through the spans of its first tokens, and what places of rows are computed from.

    Attributes:
        M: groups of first tokens.
        SPANS: first tokens of a group.
        WIDTHS: widths that a program goes through.
        STEP: of these, that are in one block of instructions; divides WIDTHS.
        CHUNKS: programs that go through all widths.
        D: columns of a step.
        OUTPUTS: columns of a block of the projection.
        STRIDE: elements from a row of the projection to the next.
        TABLE_ROWS: rows of the width table.
        START, END: the numbers of the blocks of these parts, -1 for one not asked for.
        WEIGHED: the numbers of the blocks that are summed over spans, eight bits each.
        MEAN, SUM, HEADS: how many there are of these of them, in this order.
    """

    M: int
    SPANS: int
    WIDTHS: int
    STEP: int
    CHUNKS: int
    D: int
    OUTPUTS: int
    STRIDE: int
    TABLE_ROWS: int
    START: int
    END: int
    WEIGHED: int
    MEAN: int
    SUM: int
    HEADS: int


class StartGroup(NamedTuple):
    """Of every group its first token, and how many there are from that on.

    Attributes:
        before: the widths before the program's own.
        widths: all that there are.
    """

    start: tl.tensor
    left: tl.tensor
    before: tl.tensor
    widths: tl.tensor


class Places(NamedTuple):
    """Of every group the places of its first token's row `[M, D]` and of its shares `[M]`, None without attention."""

    row: tl.tensor
    share: tl.tensor


class Steps(NamedTuple):
    """What goes on from width to width: of every first token the sum of each weighed block, and rows that stay."""

    sums: tl.tuple
    rows: tl.tuple
    ends: tl.tuple


@triton.jit(do_not_specialize=["tokens", "starts"])
def shares_of_spans(scores, shares, tokens, starts, heads, WIDTHS: tl.constexpr, M: tl.constexpr):
    """Writes the shares of all widths of M first tokens; of those behind the tokens some number."""
    head = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    peak = tl.full([M], -float("inf"), tl.float32)
    mass = tl.zeros([M], tl.float32)
    width = 0
    while width < WIDTHS:
        score = tl.load(scores + head * tokens + start + width, mask=start + width < tokens, other=-float("inf"))
        before = peak
        peak, subtracted = softmax_step(peak, score)
        weight = tl.exp(score - subtracted)
        mass = mass * tl.exp(before - subtracted) + weight
        # A span whose scores are all -inf is like one of no token.
        share = tl.where(mass != 0, weight / tl.where(mass != 0, mass, 1.0), 0.0)
        tl.store(shares + (start * heads + head) * WIDTHS + width, share, mask=start < starts)
        width += 1


@triton.jit
def load_group(number, tokens, widths, BLOCK):
    start = (number.to(tl.int64) * BLOCK.M + tl.arange(0, BLOCK.M)) * BLOCK.SPANS
    before = 0
    if BLOCK.CHUNKS > 1:
        before = tl.program_id(1) * BLOCK.WIDTHS
    return StartGroup(start, (tokens - start).to(tl.int32), before, widths)


@triton.jit
def places_of(projection, enumeration, group, column, BLOCK):
    row = projection.data + group.start[:, None] * BLOCK.STRIDE + column
    share = None
    if enumeration.shares is not None:
        share = enumeration.shares + group.start * (BLOCK.HEADS * BLOCK.CHUNKS * BLOCK.WIDTHS)
    return Places(row, share)


@triton.jit
def are_whole(group, before, BLOCK):
    """Whether the widths behind `before` ask for no row behind the tokens."""
    return tl.min(group.left, 0) >= before + (BLOCK.SPANS + BLOCK.WIDTHS - 1)


@triton.jit
def load_row(places, group, token, block, inside, WHOLE: tl.constexpr, BLOCK):
    """The row of every group's token [M, D] in a block of the projection."""
    if BLOCK.CHUNKS > 1:
        token = token.to(tl.int64)
    place = places.row + (token * BLOCK.STRIDE + block * BLOCK.OUTPUTS)
    if WHOLE:
        return tl.load(place)
    return tl.load(place, mask=(token < group.left)[:, None] & inside, other=0.0)


@triton.jit
def block_of(number: tl.constexpr, BLOCK):
    """The number of a weighed block among all."""
    return (BLOCK.WEIGHED >> (8 * number)) & 255


@triton.jit
def add_token(total, row, places, width, i: tl.constexpr, number: tl.constexpr, BLOCK):
    """A weighed sum with one more token, the last of the spans of `width` + 1 tokens."""
    if number >= BLOCK.MEAN + BLOCK.SUM:
        head: tl.constexpr = number - BLOCK.MEAN - BLOCK.SUM
        share = tl.load(places.share + ((i * BLOCK.HEADS + head) * (BLOCK.CHUNKS * BLOCK.WIDTHS) + width))[:, None]
        total, row = (1.0 - share) * total, share * row
    return total + row


@triton.jit
def begin(places, group, inside, WHOLE: tl.constexpr, BLOCK):
    """Before the first width of a program."""
    sums = ()
    rows = ()
    ends = ()
    for number in tl.static_range(BLOCK.MEAN + BLOCK.SUM + BLOCK.HEADS):
        for i in tl.static_range(BLOCK.SPANS):
            total = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
            if BLOCK.CHUNKS > 1:
                width = 0
                while width < group.before:
                    row = load_row(places, group, width + i, block_of(number, BLOCK), inside, WHOLE, BLOCK)
                    total = add_token(total, row, places, width, i, number, BLOCK)
                    width += 1
            sums += (total,)
        for i in tl.static_range(BLOCK.SPANS - 1):
            rows += (load_row(places, group, group.before + i, block_of(number, BLOCK), inside, WHOLE, BLOCK),)
    if BLOCK.END >= 0:
        for i in tl.static_range(BLOCK.SPANS - 1):
            ends += (load_row(places, group, group.before + i, BLOCK.END, inside, WHOLE, BLOCK),)
    return Steps(sums, rows, ends)


@triton.jit
def first_values(projection, places, group, column, inside, WHOLE: tl.constexpr, BLOCK):
    """What all widths of each first token share: its own row, and the bias."""
    shared = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
    if projection.bias is not None:
        shared += tl.load(projection.bias + column, mask=inside, other=0.0)
    values = ()
    for i in tl.static_range(BLOCK.SPANS):
        value = shared
        if BLOCK.START >= 0:
            value += load_row(places, group, group.before * 0 + i, BLOCK.START, inside, WHOLE, BLOCK)
        values += (value,)
    return values


@triton.jit
def next_width(
    steps, shared, w: tl.constexpr, projection, enumeration, places, group, column, inside,
    WHOLE: tl.constexpr, BLOCK,
):  # fmt: skip
    """The steps behind the program's `w`-th width, and its spans' values before the activation [M, D]."""
    width = group.before + w
    newest = width + (BLOCK.SPANS - 1)
    values = shared
    ends = ()
    if BLOCK.END >= 0:
        for i in tl.static_range(1, BLOCK.SPANS - 1):
            ends += (steps.ends[i],)
        end = load_row(places, group, newest, BLOCK.END, inside, WHOLE, BLOCK)
        added = ()
        for i in tl.static_range(BLOCK.SPANS - 1):
            added += (values[i] + steps.ends[i],)
        added += (values[BLOCK.SPANS - 1] + end,)
        values = added
        if BLOCK.SPANS > 1:
            ends += (end,)
    if projection.table is not None:
        added = ()
        if projection.entries is None:
            if BLOCK.CHUNKS > 1:
                entry = tl.minimum(width, BLOCK.TABLE_ROWS - 1).to(tl.int64)
            else:
                entry = width if width < BLOCK.TABLE_ROWS else BLOCK.TABLE_ROWS - 1
            place = projection.table + entry * BLOCK.OUTPUTS + column
            row = tl.load(place) if WHOLE else tl.load(place, mask=inside, other=0.0)
            for i in tl.static_range(BLOCK.SPANS):
                added += (values[i] + row,)
        else:
            for i in tl.static_range(BLOCK.SPANS):
                first = tl.load(enumeration.first + group.start + i, mask=i < group.left, other=0)
                last = tl.load(enumeration.first + group.start + i + 1, mask=i < group.left, other=0)
                entry = tl.load(projection.entries + first + width, mask=first + width < last, other=-1)[:, None]
                known = (entry >= 0) & (entry < BLOCK.TABLE_ROWS) & inside
                row = tl.load(projection.table + entry * BLOCK.OUTPUTS + column, mask=known, other=0.0)
                added += (values[i] + row,)
        values = added
    sums = ()
    rows = ()
    for number in tl.static_range(BLOCK.MEAN + BLOCK.SUM + BLOCK.HEADS):
        row = load_row(places, group, newest, block_of(number, BLOCK), inside, WHOLE, BLOCK)
        added = ()
        for i in tl.static_range(BLOCK.SPANS):
            token = row
            if i < BLOCK.SPANS - 1:
                token = steps.rows[number * (BLOCK.SPANS - 1) + i]
            total = add_token(steps.sums[number * BLOCK.SPANS + i], token, places, width, i, number, BLOCK)
            sums += (total,)
            if number < BLOCK.MEAN:
                total = total * (1.0 / (width + 1))
            added += (values[i] + total,)
        values = added
        for i in tl.static_range(1, BLOCK.SPANS - 1):
            rows += (steps.rows[number * (BLOCK.SPANS - 1) + i],)
        if BLOCK.SPANS > 1:
            rows += (row,)
    return Steps(sums, rows, ends), values


@triton.jit
def write_columns(
    group, column, projection, enumeration, layer, deltas, spans, ACTIVATION: tl.constexpr, WHOLE: tl.constexpr, BLOCK
):
    """A block of columns of all spans of the groups."""
    inside = column < BLOCK.OUTPUTS
    places = places_of(projection, enumeration, group, column, BLOCK)
    shared = first_values(projection, places, group, column, inside, WHOLE, BLOCK)
    steps = begin(places, group, inside, WHOLE, BLOCK)
    firsts = ()
    lasts = ()
    for i in tl.static_range(BLOCK.SPANS):
        there = i < group.left
        firsts += (tl.load(enumeration.first + group.start + i, mask=there, other=0),)
        lasts += (tl.load(enumeration.first + group.start + i + 1, mask=there, other=0),)
    before = 0
    while before < group.widths:
        own = StartGroup(group.start, group.left, before, group.widths)
        for w in tl.static_range(BLOCK.WIDTHS):
            steps, values = next_width(
                steps, shared, w, projection, enumeration, places, own, column, inside, WHOLE, BLOCK
            )
            for i in tl.static_range(BLOCK.SPANS):
                value = values[i]
                row = firsts[i] + (before + w)
                mask = (row < lasts[i])[:, None]
                if not WHOLE:
                    mask = mask & inside
                if layer.addend is not None:
                    place = layer.addend + row[:, None] * BLOCK.OUTPUTS + column
                    value += tl.load(place, mask=mask, other=0.0).to(tl.float32)
                if layer.grad_output is None:
                    value = activate(value, ACTIVATION)
                else:
                    place = layer.grad_output + row[:, None] * BLOCK.OUTPUTS + column
                    value = slope(value, tl.load(place, mask=mask, other=0.0).to(tl.float32), ACTIVATION)
                if layer.output is not None:
                    place = layer.output + row[:, None] * BLOCK.OUTPUTS + column
                    tl.store(place, value.to(place.dtype.element_ty), mask=mask)
                if layer.deltas is not None:
                    for head in tl.static_range(BLOCK.HEADS):
                        share = steps.sums[(BLOCK.MEAN + BLOCK.SUM + head) * BLOCK.SPANS + i]
                        tl.store(deltas + head * spans + row, tl.sum(value * share, 1), mask=row < lasts[i])
        before += BLOCK.WIDTHS


@triton.jit(do_not_specialize=["tokens", "widths", "spans"])
def enumerated_linear_forward(
    projection,
    enumeration,
    layer,
    tokens,
    widths,
    spans,
    ACTIVATION: tl.constexpr,
    BLOCK,
):
    """`linear_forward` of all spans up to a width."""
    column_blocks: tl.constexpr = (BLOCK.OUTPUTS + BLOCK.D - 1) // BLOCK.D
    group = load_group(tl.program_id(0) // column_blocks, tokens, widths, BLOCK)
    done = tl.program_id(0) % column_blocks * BLOCK.D
    column = (done + tl.arange(0, BLOCK.D))[None, :]
    deltas = layer.deltas
    if layer.deltas is not None:
        deltas += (tl.program_id(0) % column_blocks).to(tl.int64) * BLOCK.HEADS * spans
    write_columns(group, column, projection, enumeration, layer, deltas, spans, ACTIVATION, False, BLOCK)
