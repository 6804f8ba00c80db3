"""span_linear's forward kernels in Triton, and the values before the activation, which span_score shares.

The parts over a span's tokens are one matrix product for a tile of sorted spans, `A @ P`: P are the projected tokens
from the tile's first to its last, and row n of A, built in registers, holds what each of them weighs in span n: 1 /
width, 1, or exp(score - peak) * scale, the span's softmax, whose two numbers a kernel of their own finds first.
Windows begin at multiples of BLOCK.K tokens, so the order of a span's additions does not depend on the spans beside
it. A weight of 0 does not hide Inf or NaN (0 x Inf = NaN): where a product is not finite it is made again without the
elements that are not, and those are added to the spans that hold them. The boundary tokens and the width table are
gathered.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from spanbert_kernels.ops.span_pool.triton_forward import add_product, is_finite, window_of
from spanbert_kernels.ops.triton_arguments import Matrix
from spanbert_kernels.ops.triton_masks import only_if


class Projection(NamedTuple):
    """What the layer before the activation is added up from.

    Attributes:
        data: the projected tokens, `[T, B * O]` with dense columns.
        stride: elements from one of their rows to the next.
        table: the projected width table `[R, O]`, or None.
        entries: the row of it by output row, int64 `[N]`; absent: `min(width, R) - 1`.
        bias: `[O]`, or None.
    """

    data: Tensor
    stride: int
    table: Tensor | None
    entries: Tensor | None
    bias: Tensor | None


class Weights(NamedTuple):
    """The attention's: `exp(score - peak) * scale` for a token in a span; all float32.

    Attributes:
        scores: `[heads, T]`.
        peaks: `[heads, N]`, the largest score in each span.
        scales: `[heads, N]`, 1 / the sum of exp(score - peak), 0 where nothing is weighed.
    """

    scores: Tensor
    peaks: Tensor
    scales: Tensor


class Blocks(NamedTuple):
    """Where each part's block stands in the projection, -1 for a part not asked for."""

    start: int
    end: int
    mean: int
    sum: int
    attention: int


class Sizes(NamedTuple):
    """Numbers of tokens, spans, columns, heads and rows of the width table."""

    tokens: int
    spans: int
    outputs: int
    heads: int
    table_rows: int


class Tile(NamedTuple):
    """Sorted spans: the number of the first, which of them there are, bounds, which have tokens, output rows."""

    first: tl.tensor
    there: tl.tensor
    start: tl.tensor
    end: tl.tensor
    valid: tl.tensor
    row: tl.tensor


class Head(NamedTuple):
    """What weighs the tokens of a window in its spans: a head's scores of them, and by span what `Weights` has."""

    scores: tl.tensor
    peak: tl.tensor
    scale: tl.tensor


# Indices of ACTIVATIONS.
RELU = tl.constexpr(1)
GELU = tl.constexpr(2)


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == RELU:
        x = tl.where(x <= 0, 0.0, x)  # NaN stays
    if ACTIVATION == GELU:
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    return x


@triton.jit
def slope(x, grad, ACTIVATION: tl.constexpr):
    """The gradient before the activation, from the one behind it."""
    if ACTIVATION == RELU:
        grad = tl.where(x <= 0, 0.0, grad)
    if ACTIVATION == GELU:
        normal = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        grad = grad * (normal + x * tl.exp(-0.5 * x * x) * 0.3989422804014327)
    return grad


@triton.jit
def load_tile(spans, tile, tokens, num_spans, COUNT: tl.constexpr):
    """A tile of COUNT sorted spans."""
    return load_spans_from(spans, tile.to(tl.int64) * COUNT, tokens, num_spans, COUNT)


@triton.jit
def load_spans_from(spans, first, tokens, last, COUNT: tl.constexpr):
    """The sorted spans from `first` on, COUNT of them, but none from `last` on."""
    span = first + tl.arange(0, COUNT)
    there = span < last
    start = tl.load(spans.starts + span, mask=there, other=0)
    end = tl.load(spans.ends + span, mask=there, other=0)
    valid = (start >= 0) & (start < end) & (end <= tokens)
    row = span
    if spans.rows is not None:
        row = tl.load(spans.rows + span, mask=there, other=0)
    return Tile(first, there, start, end, valid, row)


@triton.jit(do_not_specialize=["tokens", "num_spans", "heads"])
def softmax_of_spans(spans, weights, tokens, num_spans, heads, BLOCK):
    """Writes the peaks and scales."""
    head = tl.program_id(1)
    tile = load_tile(spans, tl.program_id(0), tokens, num_spans, BLOCK.M)
    window = window_of(tile.start, tile.end, tile.valid, tokens, BLOCK.K)
    source = weights.scores + head.to(tl.int64) * tokens + window.low
    peak = tl.full([BLOCK.M], -float("inf"), tl.float32)
    mass = tl.zeros([BLOCK.M], tl.float32)
    done = 0
    while done < window.extent:
        token = done + tl.arange(0, BLOCK.K)
        score = tl.load(source + token, mask=token < window.extent, other=-float("inf"))
        held = (token[None, :] >= window.start[:, None]) & (token[None, :] < window.end[:, None])
        score = tl.where(held, score[None, :], -float("inf"))
        before = peak
        peak = tl.maximum(peak, tl.max(score, 1))
        # A maximum of -inf stands for no token and must not meet itself.
        subtracted = tl.where(peak == -float("inf"), 0.0, peak)
        mass = mass * tl.exp(before - subtracted) + tl.sum(tl.exp(score - subtracted[:, None]), 1)
        done += BLOCK.K
    place = head.to(tl.int64) * num_spans + tile.first + tl.arange(0, BLOCK.M)
    # A span whose scores are all -inf is like one of no token: it scales every weight by 0.
    live = tile.valid & (mass != 0)
    tl.store(weights.peaks + place, tl.where(live, peak, 0.0), mask=tile.there)
    tl.store(weights.scales + place, tl.where(live, 1.0 / tl.where(live, mass, 1.0), 0.0), mask=tile.there)


@triton.jit
def window_step(total, done, source, head, window, inside, weighed, SANITIZE: tl.constexpr, BLOCK):
    """BLOCK.K more tokens of the window, of one block of the projection."""
    token = done + tl.arange(0, BLOCK.K)
    there = token < window.extent
    x = tl.load(
        source.data + token.to(tl.int64)[:, None] * source.stride, mask=there[:, None] & inside[None, :], other=0.0
    )  # [K, D]
    if SANITIZE:
        x = tl.where(is_finite(x), x, 0.0)
    # Built as [K, N]: a thread then keeps the bounds of few spans.
    held = (token[:, None] >= window.start[None, :]) & (token[:, None] < window.end[None, :])
    weights = tl.where(held, head.scale[None, :], 0.0)
    if head.scores is not None:
        score = tl.load(head.scores + token, mask=only_if(weighed, there), other=0.0)
        weights = tl.where(held, tl.exp(score[:, None] - head.peak[None, :]) * head.scale[None, :], 0.0)
    return add_product(total, tl.trans(weights), x, False, BLOCK.PRECISION)


@triton.jit
def window_products(
    columns, weights, blocks, tile, window, sizes, first_head, last_head, inside, SANITIZE: tl.constexpr, BLOCK
):
    """What the tokens of the window give to the spans [N, D]: mean, sum, and the heads of the attention."""
    total = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
    valid = window.end > window.start
    part = -2
    while part < last_head - first_head:
        attention_block = blocks.attention + first_head + part
        block = tl.where(part == -2, blocks.mean, tl.where(part == -1, blocks.sum, attention_block))
        if block >= 0:
            source = Matrix(
                columns.data + window.low * columns.stride + block.to(tl.int64) * sizes.outputs, columns.stride
            )
            scale = tl.full([BLOCK.M], 1.0, tl.float32)
            if part == -2:
                scale = 1.0 / tl.maximum(window.end - window.start, 1).to(tl.float32)
            peak = tl.zeros([BLOCK.M], tl.float32)
            scores = None
            if weights is not None:
                number = (first_head + tl.maximum(part, 0)).to(tl.int64)
                scores = weights.scores + number * sizes.tokens + window.low
                if part >= 0:
                    place = number * sizes.spans + tile.first
                    there = tl.arange(0, BLOCK.M) < sizes.spans - tile.first
                    peak = tl.load(weights.peaks + place + tl.arange(0, BLOCK.M), mask=there, other=0.0)
                    scale = tl.load(weights.scales + place + tl.arange(0, BLOCK.M), mask=there, other=1.0)
            head = Head(scores, peak, scale)
            if BLOCK.INTERPRETED:
                done = 0
                while done < window.extent:
                    total = window_step(total, done, source, head, window, inside, part >= 0, SANITIZE, BLOCK)
                    done += BLOCK.K
            else:
                # The same loop, in the form that the compiler pipelines.
                for done in tl.range(0, window.extent, BLOCK.K):
                    total = window_step(total, done, source, head, window, inside, part >= 0, SANITIZE, BLOCK)
            if SANITIZE:
                token = tl.min(tl.where(valid, window.start, window.extent), 0)
                while token < window.extent:
                    x = tl.load(source.data + token.to(tl.int64) * source.stride, mask=inside[None, :], other=0.0)
                    x = x.to(tl.float32)  # [1, D]
                    weight = scale
                    if weights is not None:
                        score = tl.load(scores + token, mask=part >= 0, other=0.0)
                        weight = tl.exp(score - peak) * scale
                    held = (token >= window.start) & (token < window.end) & (scale != 0)
                    total = tl.where(held[:, None] & (is_finite(x) == 0), total + weight[:, None] * x, total)
                    token += 1
        part += 1
    return total


@triton.jit
def window_sums(columns, weights, blocks, tile, sizes, first_head, last_head, inside, BLOCK):
    """`window_products`, where Inf and NaN reach the spans that hold them, and no other."""
    window = window_of(tile.start, tile.end, tile.valid, sizes.tokens, BLOCK.K)
    total = window_products(columns, weights, blocks, tile, window, sizes, first_head, last_head, inside, False, BLOCK)
    if tl.max(tl.where(is_finite(total), 0, 1)) > 0:
        total = window_products(
            columns, weights, blocks, tile, window, sizes, first_head, last_head, inside, True, BLOCK
        )
    return total


@triton.jit
def pre_activation(projection, weights, blocks, addend, tile, column, sizes, BANDED: tl.constexpr, BLOCK):
    """The sum of all parts, bias and addend [N, D] in float32, for a tile of spans and a block of columns."""
    inside = column < sizes.outputs
    total = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
    if BANDED:
        columns = Matrix(projection.data + column[None, :], projection.stride)
        total = window_sums(columns, weights, blocks, tile, sizes, 0, sizes.heads, inside, BLOCK)
    mask = tile.valid[:, None] & inside[None, :]
    token = projection.data + tile.start[:, None] * projection.stride + column[None, :]
    if blocks.start >= 0:
        total += tl.load(token + blocks.start.to(tl.int64) * sizes.outputs, mask=mask, other=0.0).to(tl.float32)
    token = projection.data + (tile.end - 1)[:, None] * projection.stride + column[None, :]
    if blocks.end >= 0:
        total += tl.load(token + blocks.end.to(tl.int64) * sizes.outputs, mask=mask, other=0.0).to(tl.float32)
    if projection.table is not None:
        if projection.entries is None:
            entry = (tl.minimum(tile.end - tile.start, sizes.table_rows) - 1).to(tl.int64)
        else:
            entry = tl.load(projection.entries + tile.row, mask=tile.valid, other=-1)
        known = (entry >= 0) & (entry < sizes.table_rows)
        values = projection.table + entry[:, None] * sizes.outputs + column[None, :]
        total += tl.load(values, mask=mask & known[:, None], other=0.0).to(tl.float32)
    if projection.bias is not None:
        total += tl.load(projection.bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    if addend is not None:
        added = addend.data + tile.row[:, None] * addend.stride + column[None, :]
        total += tl.load(added, mask=tile.there[:, None] & inside[None, :], other=0.0).to(tl.float32)
    return total


UNSPECIALIZED = (
    "tokens", "num_spans", "heads", "table_rows", "start_block", "end_block", "mean_block", "sum_block",
    "attention_block",
)  # fmt: skip


@triton.jit(do_not_specialize=UNSPECIALIZED)
def linear_forward(
    projection,
    spans,
    weights,  # None without attention
    addend,  # [N, O], or None
    grad_output,  # [N, O]: asks for the gradient before the activation instead
    output,  # [N, O]
    tokens,
    num_spans,
    outputs,
    heads,
    table_rows,
    start_block,
    end_block,
    mean_block,
    sum_block,
    attention_block,
    ACTIVATION: tl.constexpr,
    BANDED: tl.constexpr,
    BLOCK,
):
    sizes = Sizes(tokens, num_spans, outputs, heads, table_rows)
    blocks = Blocks(start_block, end_block, mean_block, sum_block, attention_block)
    column_blocks = tl.cdiv(outputs, BLOCK.D)
    column = (tl.program_id(0) % column_blocks).to(tl.int64) * BLOCK.D + tl.arange(0, BLOCK.D)
    tile = load_tile(spans, tl.program_id(0) // column_blocks, tokens, num_spans, BLOCK.M)
    value = pre_activation(projection, weights, blocks, addend, tile, column, sizes, BANDED, BLOCK)
    mask = tile.there[:, None] & (column < outputs)[None, :]
    if grad_output is None:
        value = activate(value, ACTIVATION)
    else:
        source = grad_output.data + tile.row[:, None] * grad_output.stride + column[None, :]
        value = slope(value, tl.load(source, mask=mask, other=0.0).to(tl.float32), ACTIVATION)
    tl.store(output + tile.row[:, None] * outputs + column[None, :], value.to(output.dtype.element_ty), mask=mask)
