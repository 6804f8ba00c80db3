"""span_linear's forward kernels in Triton, and the values before the activation, which span_score shares.

The parts over a span's tokens are one matrix product for a tile of sorted spans, `A @ P`: P are the projected tokens
from the tile's first to its last, and row n of A, built in registers, holds what each of them weighs in span n: 1 /
width, 1, or exp(score - peak) * scale, the span's softmax, whose two numbers a kernel of their own finds first.
Windows begin at multiples of BLOCK_K tokens, so the order of a span's additions does not depend on the spans beside
it. A weight of 0 does not hide Inf or NaN (0 x Inf = NaN): where a product is not finite it is made again without the
elements that are not, and those are added to the spans that hold them. The boundary tokens and the width table are
gathered.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spanbert_kernels.ops.span_pool.triton_forward import add_product, is_finite

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
def load_tile(starts, ends, rows, tile, tokens, spans, BLOCK_N: tl.constexpr):
    """A tile of sorted spans: their numbers, which of them there are, bounds, which have tokens, output rows."""
    span = tile.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    there = span < spans
    start = tl.load(starts + span, mask=there, other=0)
    end = tl.load(ends + span, mask=there, other=0)
    valid = (start >= 0) & (start < end) & (end <= tokens)
    row = span
    if rows is not None:
        row = tl.load(rows + span, mask=there, other=0)
    return span, there, start, end, valid, row


@triton.jit
def window_of(start, end, valid, tokens, BLOCK_K: tl.constexpr):
    """The tokens of a tile of spans: the first, how many; and the spans' bounds counted from it."""
    low = tl.min(tl.where(valid, start, tokens), 0) // BLOCK_K * BLOCK_K
    extent = (tl.max(tl.where(valid, end, 0), 0) - low).to(tl.int32)
    return low, extent, tl.where(valid, start - low, 0).to(tl.int32), tl.where(valid, end - low, 0).to(tl.int32)


@triton.jit(do_not_specialize=["tokens", "spans", "heads"])
def softmax_of_spans(
    starts,  # [N]
    ends,
    scores,  # [heads, T], float32
    peaks,  # [heads, N], the largest score in each span
    scales,  # [heads, N], 1 / the sum of exp(score - peak), 0 where nothing is weighed
    tokens,
    spans,
    heads,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    head = tl.program_id(1)
    span, there, start, end, valid, _ = load_tile(starts, ends, None, tl.program_id(0), tokens, spans, BLOCK_N)
    low, extent, begin, stop = window_of(start, end, valid, tokens, BLOCK_K)
    source = scores + head.to(tl.int64) * tokens + low
    peak = tl.full([BLOCK_N], -float("inf"), tl.float32)
    mass = tl.zeros([BLOCK_N], tl.float32)
    done = 0
    while done < extent:
        token = done + tl.arange(0, BLOCK_K)
        score = tl.load(source + token, mask=token < extent, other=-float("inf"))
        held = (token[None, :] >= begin[:, None]) & (token[None, :] < stop[:, None])
        score = tl.where(held, score[None, :], -float("inf"))
        before = peak
        peak = tl.maximum(peak, tl.max(score, 1))
        # A maximum of -inf stands for no token and must not meet itself.
        subtracted = tl.where(peak == -float("inf"), 0.0, peak)
        mass = mass * tl.exp(before - subtracted) + tl.sum(tl.exp(score - subtracted[:, None]), 1)
        done += BLOCK_K
    place = head.to(tl.int64) * spans + span
    # A span whose scores are all -inf is like one of no token: it scales every weight by 0.
    live = valid & (mass != 0)
    tl.store(peaks + place, tl.where(live, peak, 0.0), mask=there)
    tl.store(scales + place, tl.where(live, 1.0 / tl.where(live, mass, 1.0), 0.0), mask=there)


@triton.jit
def window_step(
    total,
    done,
    source,
    head_scores,
    begin,
    stop,
    peak,
    scale,
    extent,
    inside,
    weighed,
    projected_stride,
    ATTENTION: tl.constexpr,
    SANITIZE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """BLOCK_K more tokens of the window, of one block of the projection."""
    token = done + tl.arange(0, BLOCK_K)
    there = token < extent
    x = tl.load(
        source + token.to(tl.int64)[:, None] * projected_stride, mask=there[:, None] & inside[None, :], other=0.0
    )  # [K, C]
    if SANITIZE:
        x = tl.where(is_finite(x), x, 0.0)
    # Built as [K, N]: a thread then keeps the bounds of few spans.
    held = (token[:, None] >= begin[None, :]) & (token[:, None] < stop[None, :])
    weights = tl.where(held, scale[None, :], 0.0)
    if ATTENTION:
        score = tl.load(head_scores + token, mask=there & weighed, other=0.0)
        weights = tl.where(held, tl.exp(score[:, None] - peak[None, :]) * scale[None, :], 0.0)
    return add_product(total, tl.trans(weights), x, False, PRECISION)


@triton.jit
def window_products(
    projected,
    scores,
    peaks,
    scales,
    first_span,
    begin,
    stop,
    low,
    extent,
    inside,
    tokens,
    spans,
    outputs,
    projected_stride,
    mean_block,
    sum_block,
    attention_block,
    first_head,
    last_head,
    ATTENTION: tl.constexpr,
    SANITIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """What the tokens of the window give to the spans [N, C]: mean, sum, and the heads of the attention."""
    total = tl.zeros([BLOCK_N, C], tl.float32)
    valid = stop > begin
    part = -2
    while part < last_head - first_head:
        block = tl.where(part == -2, mean_block, tl.where(part == -1, sum_block, attention_block + first_head + part))
        if block >= 0:
            source = projected + low * projected_stride + block.to(tl.int64) * outputs
            scale = tl.full([BLOCK_N], 1.0, tl.float32)
            if part == -2:
                scale = 1.0 / tl.maximum(stop - begin, 1).to(tl.float32)
            peak = tl.zeros([BLOCK_N], tl.float32)
            head_scores = scores
            if ATTENTION:
                head = (first_head + tl.maximum(part, 0)).to(tl.int64)
                head_scores = scores + head * tokens + low
                if part >= 0:
                    place = head * spans + first_span
                    there = tl.arange(0, BLOCK_N) < spans - first_span
                    peak = tl.load(peaks + place + tl.arange(0, BLOCK_N), mask=there, other=0.0)
                    scale = tl.load(scales + place + tl.arange(0, BLOCK_N), mask=there, other=1.0)
            if INTERPRETED:
                done = 0
                while done < extent:
                    total = window_step(
                        total, done, source, head_scores, begin, stop, peak, scale, extent, inside, part >= 0,
                        projected_stride, ATTENTION, SANITIZE, BLOCK_K, PRECISION,
                    )  # fmt: skip
                    done += BLOCK_K
            else:
                # The same loop, in the form that the compiler pipelines.
                for done in tl.range(0, extent, BLOCK_K):
                    total = window_step(
                        total, done, source, head_scores, begin, stop, peak, scale, extent, inside, part >= 0,
                        projected_stride, ATTENTION, SANITIZE, BLOCK_K, PRECISION,
                    )  # fmt: skip
            if SANITIZE:
                token = tl.min(tl.where(valid, begin, extent), 0)
                while token < extent:
                    x = tl.load(source + token.to(tl.int64) * projected_stride, mask=inside[None, :], other=0.0)
                    x = x.to(tl.float32)  # [1, C]
                    weight = scale
                    if ATTENTION:
                        score = tl.load(head_scores + token, mask=part >= 0, other=0.0)
                        weight = tl.exp(score - peak) * scale
                    held = (token >= begin) & (token < stop) & (scale != 0)
                    total = tl.where(held[:, None] & (is_finite(x) == 0), total + weight[:, None] * x, total)
                    token += 1
        part += 1
    return total


@triton.jit
def window_sums(
    projected,
    scores,
    peaks,
    scales,
    first_span,
    start,
    end,
    valid,
    inside,
    tokens,
    spans,
    outputs,
    projected_stride,
    mean_block,
    sum_block,
    attention_block,
    first_head,
    last_head,
    ATTENTION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """`window_products`, where Inf and NaN reach the spans that hold them, and no other."""
    low, extent, begin, stop = window_of(start, end, valid, tokens, BLOCK_K)
    total = window_products(
        projected, scores, peaks, scales, first_span, begin, stop, low, extent, inside, tokens, spans, outputs,
        projected_stride, mean_block, sum_block, attention_block, first_head, last_head, ATTENTION, False,
        BLOCK_N, BLOCK_K, C, PRECISION, INTERPRETED,
    )  # fmt: skip
    if tl.max(tl.where(is_finite(total), 0, 1)) > 0:
        total = window_products(
            projected, scores, peaks, scales, first_span, begin, stop, low, extent, inside, tokens, spans, outputs,
            projected_stride, mean_block, sum_block, attention_block, first_head, last_head, ATTENTION, True,
            BLOCK_N, BLOCK_K, C, PRECISION, INTERPRETED,
        )  # fmt: skip
    return total


@triton.jit
def pre_activation(
    projected,
    scores,
    peaks,
    scales,
    width_projected,
    width_index,
    bias,
    addend,
    first_span,
    there,
    start,
    end,
    valid,
    row,
    column,
    tokens,
    spans,
    outputs,
    heads,
    table_rows,
    projected_stride,
    addend_stride,
    start_block,
    end_block,
    mean_block,
    sum_block,
    attention_block,
    BANDED: tl.constexpr,
    ATTENTION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The sum of all parts, bias and addend [N, C] in float32, for a tile of spans and a block of columns."""
    inside = column < outputs
    total = tl.zeros([BLOCK_N, C], tl.float32)
    if BANDED:
        total = window_sums(
            projected + column[None, :], scores, peaks, scales, first_span, start, end, valid, inside, tokens, spans,
            outputs, projected_stride, mean_block, sum_block, attention_block, 0, heads,
            ATTENTION, BLOCK_N, BLOCK_K, C, PRECISION, INTERPRETED,
        )  # fmt: skip
    mask = valid[:, None] & inside[None, :]
    token = projected + start[:, None] * projected_stride + column[None, :]
    if start_block >= 0:
        total += tl.load(token + start_block.to(tl.int64) * outputs, mask=mask, other=0.0).to(tl.float32)
    token = projected + (end - 1)[:, None] * projected_stride + column[None, :]
    if end_block >= 0:
        total += tl.load(token + end_block.to(tl.int64) * outputs, mask=mask, other=0.0).to(tl.float32)
    if width_projected is not None:
        if width_index is None:
            index = (tl.minimum(end - start, table_rows) - 1).to(tl.int64)
        else:
            index = tl.load(width_index + row, mask=valid, other=-1)
        entry = width_projected + index[:, None] * outputs + column[None, :]
        known = (index >= 0) & (index < table_rows)
        total += tl.load(entry, mask=mask & known[:, None], other=0.0).to(tl.float32)
    if bias is not None:
        total += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    if addend is not None:
        added = addend + row[:, None] * addend_stride + column[None, :]
        total += tl.load(added, mask=there[:, None] & inside[None, :], other=0.0).to(tl.float32)
    return total


UNSPECIALIZED = (
    "tokens", "spans", "heads", "table_rows", "start_block", "end_block", "mean_block", "sum_block", "attention_block",
)  # fmt: skip


@triton.jit(do_not_specialize=UNSPECIALIZED)
def linear_forward(
    projected,  # [T, B * O], dense rows
    starts,  # [N]
    ends,
    rows,  # [N] or None
    scores,  # [heads, T], float32
    peaks,  # [heads, N]
    scales,  # [heads, N]
    width_projected,  # [R, O] or None
    width_index,  # [N] by output row, or None
    bias,  # [O] or None
    addend,  # [N, O], dense rows, or None
    grad_output,  # [N, O], dense rows: asks for the gradient before the activation instead
    output,  # [N, O]
    tokens,
    spans,
    outputs,
    heads,
    table_rows,
    projected_stride,
    addend_stride,
    grad_stride,
    start_block,  # where each part's block stands in the projection, -1 for a part not asked for
    end_block,
    mean_block,
    sum_block,
    attention_block,
    ACTIVATION: tl.constexpr,
    BANDED: tl.constexpr,
    ATTENTION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    column_blocks = tl.cdiv(outputs, C)
    tile = tl.program_id(0) // column_blocks
    column = (tl.program_id(0) % column_blocks).to(tl.int64) * C + tl.arange(0, C)
    _, there, start, end, valid, row = load_tile(starts, ends, rows, tile, tokens, spans, BLOCK_N)
    value = pre_activation(
        projected, scores, peaks, scales, width_projected, width_index, bias, addend, tile.to(tl.int64) * BLOCK_N,
        there, start, end, valid, row, column, tokens, spans, outputs, heads, table_rows, projected_stride,
        addend_stride, start_block, end_block, mean_block, sum_block, attention_block, BANDED, ATTENTION, BLOCK_N,
        BLOCK_K, C, PRECISION, INTERPRETED,
    )  # fmt: skip
    mask = there[:, None] & (column < outputs)[None, :]
    if grad_output is None:
        value = activate(value, ACTIVATION)
    else:
        source = grad_output + row[:, None] * grad_stride + column[None, :]
        value = slope(value, tl.load(source, mask=mask, other=0.0).to(tl.float32), ACTIVATION)
    tl.store(output + row[:, None] * outputs + column[None, :], value.to(output.dtype.element_ty), mask=mask)
