"""Gradients of the projection from those of all spans up to a width, before the activation.

Spans that start together are nested, so what one of them gives to a token is a sum over the wider ones: a first token's
spans are gone through from the widest to the narrowest, and the running sum is at each width what the last token of
that span gets from all that start here. A program owns a block of tokens and of columns, a thread one column, and goes
through the first tokens in order; sums of the WIDTHS tokens from there on move along in registers, and one of them is
complete at every step. First tokens before the block whose spans reach into it are gone through again. Nothing is added
atomically, every sum has one order, and Inf and NaN reach the tokens of their spans alone.

With the softmax's shares, `total = (1 - p) total + p row` forward, the running sum is `g + (1 - p') sum'`, where p' and
sum' are those of the next wider span, and the token gets `p sum`. Its score gets the token's product with that, less
the same sum of `g . out` (`triton_backward`), numbers of spans that a kernel of its own adds up to `weighed`.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from spanbert_kernels.ops.span_linear.triton_enumerated import block_of


class GradientTiling(NamedTuple):
    """How a program goes through the spans of its tokens, and what places of rows are computed from.

    Attributes:
        M: tokens.
        WIDTHS: widths of spans, at most 32.
        SHARE_WIDTHS: widths of which there are shares.
        D: columns.
        OUTPUTS: columns of a block of the projection.
        STRIDE: elements from a row of the result to the next.
        START, END: the numbers of the blocks of these parts, -1 for one not asked for.
        WEIGHED: the numbers of the blocks that are summed over spans, eight bits each.
        MEAN, SUM, HEADS: how many there are of these of them, in this order.
    """

    M: int
    WIDTHS: int
    SHARE_WIDTHS: int
    D: int
    OUTPUTS: int
    STRIDE: int
    START: int
    END: int
    WEIGHED: int
    MEAN: int
    SUM: int
    HEADS: int


class GradientSums(NamedTuple):
    """What is written.

    Attributes:
        projected: `[T, B * O]`.
        scores: `[column blocks, T, heads]`, parts of sums; or None without attention.
        widths: `[blocks of tokens, WIDTHS, O]`, the sum of all spans of a width that start in a block; or None.
        spans: `[blocks of tokens, O]`, that of all spans that start in a block.
    """

    projected: Tensor
    scores: Tensor | None
    widths: Tensor | None
    spans: Tensor


LANES = tl.constexpr(32)


@triton.jit(do_not_specialize=["tokens", "spans"])
def weigh_deltas(enumeration, deltas, weighed, tokens, spans, BLOCK, STARTS: tl.constexpr):
    """Writes `weighed [T, heads, WIDTHS]`: what the last token of each span gets of `deltas [heads, N]` from a start.

    That is the sum over all spans of the same first token that are as wide or wider.
    """
    head = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0).to(tl.int64) * STARTS + tl.arange(0, STARTS)
    first = tl.load(enumeration.first + start, mask=start < tokens, other=0)
    last = tl.load(enumeration.first + start + 1, mask=start < tokens, other=0)
    total = tl.zeros([STARTS], tl.float32)
    share = tl.zeros([STARTS], tl.float32)
    for j in tl.static_range(BLOCK.WIDTHS):
        w = BLOCK.WIDTHS - 1 - j
        there = first + w < last
        delta = tl.load(deltas + head * spans + first + w, mask=there, other=0.0)
        place = enumeration.shares + (start * BLOCK.HEADS + head) * BLOCK.SHARE_WIDTHS + w
        total = delta + (1.0 - share) * total
        share = tl.load(place, mask=there, other=0.0)
        place = weighed + (start * BLOCK.HEADS + head) * BLOCK.WIDTHS + w
        tl.store(place, share * total, mask=start < tokens)


@triton.jit
def add_start(start, sums, by_width, grad, enumeration, results, column, inside, first_token, OWN: tl.constexpr, BLOCK):
    """The sums with one more first token's spans, and the sum of all of these.

    Of `sums` those of token `start + w` come WIDTHS - 1 - w sets of blocks behind the first.
    """
    KINDS: tl.constexpr = (BLOCK.END >= 0) + BLOCK.MEAN + BLOCK.SUM + BLOCK.HEADS
    NUMBERS: tl.constexpr = BLOCK.MEAN + BLOCK.SUM + BLOCK.HEADS
    first = tl.load(enumeration.first + start)
    widths = (tl.load(enumeration.first + start + 1) - first).to(tl.int32)
    ahead = (first_token - start).to(tl.int32)
    rows = grad + first * BLOCK.OUTPUTS + column
    every = tl.zeros([BLOCK.D], tl.float32)
    running = ()
    shares = ()
    for _ in tl.static_range(NUMBERS):
        running += (tl.zeros([BLOCK.D], tl.float32),)
    for _ in tl.static_range(BLOCK.HEADS):
        shares += (0.0,)
    added = ()
    counted = ()
    for j in tl.static_range(BLOCK.WIDTHS):
        w = BLOCK.WIDTHS - 1 - j
        there = w < widths
        if not OWN:
            there = there & (w >= ahead)  # narrower ones end before the block
        value = tl.load(rows + w * BLOCK.OUTPUTS, mask=inside & there, other=0.0).to(tl.float32)
        every += value
        if OWN and results.widths is not None:
            counted += (by_width[j] + value,)
        given = ()
        if BLOCK.END >= 0:
            given += (value,)
        totals = ()
        news = ()
        for number in tl.static_range(NUMBERS):
            if number < BLOCK.MEAN:
                total = running[number] + value * (1.0 / (w + 1))
                given += (total,)
            elif number < BLOCK.MEAN + BLOCK.SUM:
                total = running[number] + value
                given += (total,)
            else:
                total = value + (1.0 - shares[number - BLOCK.MEAN - BLOCK.SUM]) * running[number]
                row = start * BLOCK.HEADS + (number - BLOCK.MEAN - BLOCK.SUM)
                place = enumeration.shares + row * BLOCK.SHARE_WIDTHS + w
                share = tl.load(place, mask=w < widths, other=0.0)
                news += (share,)
                given += (share * total,)
            totals += (total,)
        running = totals
        shares = news
        for kind in tl.static_range(KINDS):
            if j == 0:
                added += (given[kind],)
            else:
                added += (sums[(j - 1) * KINDS + kind] + given[kind],)
    if not OWN:
        counted = by_width
    return added, counted, every


@triton.jit
def write_token(token, sums, every, projected, weighed, results, column, inside, column_block, tokens, BLOCK):
    """What is complete behind the first token's own spans: the token's gradients in all blocks and of its scores."""
    KINDS: tl.constexpr = (BLOCK.END >= 0) + BLOCK.MEAN + BLOCK.SUM + BLOCK.HEADS
    FIRST: tl.constexpr = (BLOCK.WIDTHS - 1) * KINDS
    row = results.projected + token * BLOCK.STRIDE + column
    if BLOCK.START >= 0:
        tl.store(row + BLOCK.START * BLOCK.OUTPUTS, every, mask=inside)
    if BLOCK.END >= 0:
        tl.store(row + BLOCK.END * BLOCK.OUTPUTS, sums[FIRST], mask=inside)
    for number in tl.static_range(BLOCK.MEAN + BLOCK.SUM + BLOCK.HEADS):
        total = sums[FIRST + (BLOCK.END >= 0) + number]
        tl.store(row + block_of(number, BLOCK) * BLOCK.OUTPUTS, total, mask=inside)
        if number >= BLOCK.MEAN + BLOCK.SUM:
            head = number - BLOCK.MEAN - BLOCK.SUM
            values = projected.data + token * projected.stride + block_of(number, BLOCK) * BLOCK.OUTPUTS + column
            x = tl.load(values, mask=inside, other=0.0)
            # A token that no span holds may be Inf or NaN.
            product = tl.where(total != 0, total * x, 0.0)
            # The numbers of spans are no block of columns' own: the first one counts them.
            w = tl.arange(0, LANES)
            before = (w < BLOCK.WIDTHS) & (w <= token) & (column_block == 0)
            place = weighed + ((token - w) * BLOCK.HEADS + head) * BLOCK.WIDTHS + w
            numbers = tl.load(place, mask=before, other=0.0)
            place = results.scores + (column_block * tokens + token) * BLOCK.HEADS + head
            tl.store(place, tl.sum(product, 0) - tl.sum(numbers, 0))


@triton.jit(do_not_specialize=["tokens"])
def enumerated_backward(
    grad,  # [N, O], before the activation
    projected,  # [T, B * O]
    enumeration,
    weighed,  # None without attention
    results,
    tokens,
    BLOCK,
):
    """`product_backward` of all spans up to a width, all blocks and the width table at once."""
    column_blocks: tl.constexpr = (BLOCK.OUTPUTS + BLOCK.D - 1) // BLOCK.D
    KINDS: tl.constexpr = (BLOCK.END >= 0) + BLOCK.MEAN + BLOCK.SUM + BLOCK.HEADS
    column_block = (tl.program_id(0) % column_blocks).to(tl.int64)
    token_block = (tl.program_id(0) // column_blocks).to(tl.int64)
    column = column_block * BLOCK.D + tl.arange(0, BLOCK.D)
    inside = column < BLOCK.OUTPUTS
    first_token = token_block * BLOCK.M
    stop = tl.minimum(first_token + BLOCK.M, tokens)
    start = tl.maximum(first_token - (BLOCK.WIDTHS - 1), 0)
    sums = ()
    for _ in tl.static_range(BLOCK.WIDTHS * KINDS):
        sums += (tl.zeros([BLOCK.D], tl.float32),)
    by_width = ()
    if results.widths is not None:
        for _ in tl.static_range(BLOCK.WIDTHS):
            by_width += (tl.zeros([BLOCK.D], tl.float32),)
    while start < first_token:
        sums, by_width, every = add_start(
            start, sums, by_width, grad, enumeration, results, column, inside, first_token, False, BLOCK
        )
        start += 1
    spans = tl.zeros([BLOCK.D], tl.float32)
    while start < stop:
        sums, by_width, every = add_start(
            start, sums, by_width, grad, enumeration, results, column, inside, first_token, True, BLOCK
        )
        spans += every
        write_token(start, sums, every, projected, weighed, results, column, inside, column_block, tokens, BLOCK)
        start += 1
    tl.store(results.spans + token_block * BLOCK.OUTPUTS + column, spans, mask=inside)
    if results.widths is not None:
        for j in tl.static_range(BLOCK.WIDTHS):
            place = results.widths + (token_block * BLOCK.WIDTHS + (BLOCK.WIDTHS - 1 - j)) * BLOCK.OUTPUTS + column
            tl.store(place, by_width[j], mask=inside)
