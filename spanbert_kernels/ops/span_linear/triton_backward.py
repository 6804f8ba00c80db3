"""span_linear's backward kernels in Triton, from the gradient before the activation; span_score's are the same.

A program owns a tile of tokens and one block of the projection, and goes through the sorted spans that can hold one
of the tokens, the slice `reach[first token] : first[token after the last]`: the forward's product transposed, `A^T @
G`, where row t of A^T holds what token t weighs in each span. Nothing is added atomically, every sum has one order.
The softmax's scores get their gradient from the same product, a head of the attention at a time:
  d s[t] = sum of p_n[t] (g_n . x_t - g_n . out_n) = (sum of p_n[t] g_n) . x_t - sum of p_n[t] delta_n
over the spans n that hold t; p_n[t] is the softmax, out_n the head's share of span n, delta_n = g_n . out_n.
The width table is a product of the same form: a row of it is a token, and a span is the one row that it takes. Inf
and NaN are kept from other tokens as in the forward.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spanbert_kernels.ops.span_linear.triton_forward import load_tile, window_sums
from spanbert_kernels.ops.span_pool.triton_forward import add_product, is_finite

# Blocks whose weights are 0 and 1, two bits each in `kinds`. The weighed ones are the mean and then the heads.
START = tl.constexpr(0)
END = tl.constexpr(1)
SUM = tl.constexpr(2)


@triton.jit
def load_spans(starts, ends, rows, span, there, first_token):
    """Bounds relative to the tile, -1 for a span without tokens, and the rows of their gradients."""
    start = tl.load(starts + span, mask=there, other=0)
    end = tl.load(ends + span, mask=there, other=0)
    row = span
    if rows is not None:
        row = tl.load(rows + span, mask=there, other=0)
    valid = there & (start >= 0) & (start < end)
    start = tl.where(valid, start - first_token, -1).to(tl.int32)
    end = tl.where(valid, end - first_token, -1).to(tl.int32)
    return start, end, row


@triton.jit
def held_by(token, start, end, kind, WEIGHED: tl.constexpr):
    """Which tokens a block gives to which spans."""
    held = (token >= start) & (token < end)
    if not WEIGHED:
        held = tl.where(kind == START, token == start, tl.where(kind == END, token == end - 1, held))
    return held & (end > start)


@triton.jit
def slice_step(
    total,
    dots,
    done,
    source,
    starts,
    ends,
    rows,
    low,
    high,
    first_token,
    score,
    peaks,
    scales,
    deltas,
    inside,
    grad_stride,
    kind,
    is_head,
    WEIGHED: tl.constexpr,
    ATTENTION: tl.constexpr,
    SANITIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """BLOCK_K more spans of the slice."""
    span = low + done + tl.arange(0, BLOCK_K)
    start, end, row = load_spans(starts, ends, rows, span, span < high, first_token)
    touched = (end > 0) & (start < BLOCK_T)  # other spans of the slice are not read
    if not WEIGHED:
        touched = touched & ((start >= 0) | (kind != START)) & ((end <= BLOCK_T) | (kind != END))
    grad = tl.load(source + row[:, None] * grad_stride, mask=touched[:, None] & inside[None, :], other=0.0)  # [K, C]
    if SANITIZE:
        grad = tl.where(is_finite(grad), grad, 0.0)
    token = tl.arange(0, BLOCK_T)
    held = held_by(token[:, None], start[None, :], end[None, :], kind, WEIGHED)  # [T, K]
    weights = tl.where(held, 1.0, 0.0)
    if WEIGHED:
        scale = 1.0 / tl.maximum(end - start, 1).to(tl.float32)
        if ATTENTION:
            mine = touched & is_head
            scale = tl.where(is_head, tl.load(scales + span, mask=mine, other=1.0), scale)
            peak = tl.load(peaks + span, mask=mine, other=0.0)
            delta = tl.load(deltas + span, mask=mine, other=0.0)
            weights = tl.where(held, tl.exp(score[:, None] - peak[None, :]) * scale[None, :], 0.0)
            held = held & (scale != 0)[None, :]
            dots += tl.sum(tl.where(held, weights * delta[None, :], 0.0), 1)
        else:
            weights = tl.where(held, scale[None, :], 0.0)
    return add_product(total, weights, grad, not WEIGHED, PRECISION), dots


@triton.jit
def slice_loop(
    source,
    starts,
    ends,
    rows,
    low,
    high,
    first_token,
    score,
    peaks,
    scales,
    deltas,
    inside,
    grad_stride,
    kind,
    is_head,
    WEIGHED: tl.constexpr,
    ATTENTION: tl.constexpr,
    SANITIZE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    total = tl.zeros([BLOCK_T, C], tl.float32)
    dots = tl.zeros([BLOCK_T], tl.float32)
    extent = (high - low).to(tl.int32)
    if INTERPRETED:
        done = 0
        while done < extent:
            total, dots = slice_step(
                total, dots, done, source, starts, ends, rows, low, high, first_token, score, peaks, scales, deltas,
                inside, grad_stride, kind, is_head, WEIGHED, ATTENTION, SANITIZE, BLOCK_T, BLOCK_K, PRECISION,
            )  # fmt: skip
            done += BLOCK_K
    else:
        # The same loop, in the form that the compiler pipelines.
        for done in tl.range(0, extent, BLOCK_K):
            total, dots = slice_step(
                total, dots, done, source, starts, ends, rows, low, high, first_token, score, peaks, scales, deltas,
                inside, grad_stride, kind, is_head, WEIGHED, ATTENTION, SANITIZE, BLOCK_T, BLOCK_K, PRECISION,
            )  # fmt: skip
    if SANITIZE:
        token = tl.arange(0, BLOCK_T)
        span = low
        while span < high:
            start, end, row = load_spans(starts, ends, rows, span, span < high, first_token)
            held = held_by(token, start, end, kind, WEIGHED)
            weight = tl.where(held, 1.0, 0.0)
            if WEIGHED:
                scale = 1.0 / tl.maximum(end - start, 1).to(tl.float32)
                weight = weight * scale
                if ATTENTION:
                    scale = tl.where(is_head, tl.load(scales + span, mask=is_head, other=1.0), scale)
                    held = tl.where(scale == 0, False, held)
                    weight = tl.exp(score - tl.load(peaks + span, mask=is_head, other=0.0)) * scale
            grad = tl.load(source + row * grad_stride, mask=inside[None, :], other=0.0).to(tl.float32)  # [1, C]
            total = tl.where(held[:, None] & (is_finite(grad) == 0), total + weight[:, None] * grad, total)
            span += 1
    return total, dots


UNSPECIALIZED = (
    "tokens", "spans", "heads", "share", "kinds", "start_block", "end_block", "sum_block", "mean_block",
    "attention_block",
)  # fmt: skip


@triton.jit(do_not_specialize=UNSPECIALIZED)
def product_backward(
    grad,  # [N, O], before the activation, dense rows
    projected,  # [T, B * O], dense rows
    starts,  # [N]
    ends,
    rows,  # [N], where each span's gradient stands, or None
    first,  # [T + 1], or None: of the spans each program of the second axis takes `share`, for a result of its own
    reach,  # [T]
    scores,  # [heads, T], float32
    peaks,  # [heads, N]
    scales,  # [heads, N]
    deltas,  # [heads, N]
    target,  # [T, B * O]
    partial_scores,  # [column blocks, T, heads], float32
    tokens,
    spans,
    outputs,
    heads,
    share,
    grad_stride,
    projected_stride,
    target_stride,
    kinds,  # of the programs of the second axis, two bits each
    start_block,
    end_block,
    sum_block,
    mean_block,
    attention_block,
    WEIGHED: tl.constexpr,
    ATTENTION: tl.constexpr,
    ACCUMULATE: tl.constexpr,  # add to what the results hold
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    column_blocks = tl.cdiv(outputs, C)
    column_block = tl.program_id(0) % column_blocks
    column = column_block.to(tl.int64) * C + tl.arange(0, C)
    inside = column < outputs
    first_token = (tl.program_id(0) // column_blocks).to(tl.int64) * BLOCK_T
    token = first_token + tl.arange(0, BLOCK_T)
    there = token < tokens
    part = tl.program_id(1)
    head = part.to(tl.int64) * 0
    if first is None:
        low = part.to(tl.int64) * share
        high = tl.minimum(low + share, spans)
        target += part.to(tl.int64) * tokens * target_stride
        block = head
        kind = part * 0  # START
    else:
        kind = (kinds >> (2 * part)) & 3
        high = tl.load(first + tl.minimum(first_token + BLOCK_T, tokens))
        low = tl.load(reach + first_token)
        if WEIGHED:
            has_mean = (mean_block >= 0).to(tl.int32)
            head = (part - has_mean).to(tl.int64)
            block = tl.where(head < 0, mean_block, attention_block + head)
        else:
            if kind == START:
                low = tl.load(first + first_token)
            block = tl.where(kind == START, start_block, tl.where(kind == END, end_block, sum_block)).to(tl.int64)
    is_head = head >= 0
    score = tl.zeros([BLOCK_T], tl.float32)
    if ATTENTION:
        score = tl.load(scores + head * tokens + token, mask=there & is_head, other=0.0)
        peaks += head * spans
        scales += head * spans
        deltas += head * spans

    source = grad + column[None, :]
    total, dots = slice_loop(
        source, starts, ends, rows, low, high, first_token, score, peaks, scales, deltas, inside, grad_stride, kind,
        is_head, WEIGHED, ATTENTION, False, BLOCK_T, BLOCK_K, C, PRECISION, INTERPRETED,
    )  # fmt: skip
    if tl.max(tl.where(is_finite(total), 0, 1)) > 0:
        total, dots = slice_loop(
            source, starts, ends, rows, low, high, first_token, score, peaks, scales, deltas, inside, grad_stride,
            kind, is_head, WEIGHED, ATTENTION, True, BLOCK_T, BLOCK_K, C, PRECISION, INTERPRETED,
        )  # fmt: skip

    mask = there[:, None] & inside[None, :]
    if ATTENTION:  # noqa: SIM102 (known when the kernel is compiled, the next one when it runs)
        if is_head:
            x = tl.load(
                projected + token[:, None] * projected_stride + block * outputs + column[None, :], mask=mask, other=0.0
            )
            # A token that no span holds may be Inf or NaN.
            products = tl.sum(tl.where(total != 0, total * x.to(tl.float32), 0.0), 1)
            products -= tl.where(column_block == 0, dots, 0.0)
            place = partial_scores + (column_block.to(tl.int64) * tokens + token) * heads + head
            if ACCUMULATE:
                products += tl.load(place, mask=there, other=0.0)
            tl.store(place, products, mask=there)
    target += token[:, None] * target_stride + block * outputs + column[None, :]
    if ACCUMULATE:
        total += tl.load(target, mask=mask, other=0.0)
    tl.store(target, total.to(target.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens", "spans", "heads", "attention_block"])
def attention_deltas(
    grad,  # [N, O], before the activation, dense rows
    projected,  # [T, B * O], dense rows
    starts,  # [N]
    ends,
    rows,  # [N] or None
    scores,  # [heads, T], float32
    peaks,  # [heads, N]
    scales,  # [heads, N]
    deltas,  # [column blocks, heads, N]
    tokens,
    spans,
    outputs,
    heads,
    grad_stride,
    projected_stride,
    attention_block,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The dot product of a span's gradient with one head's share of it, for a block of columns."""
    column_blocks = tl.cdiv(outputs, C)
    column_block = (tl.program_id(0) % column_blocks).to(tl.int64)
    head = tl.program_id(1)
    column = column_block * C + tl.arange(0, C)
    inside = column < outputs
    tile = tl.program_id(0) // column_blocks
    span, there, start, end, valid, row = load_tile(starts, ends, rows, tile, tokens, spans, BLOCK_N)
    share = window_sums(
        projected + column[None, :], scores, peaks, scales, tile.to(tl.int64) * BLOCK_N, start, end, valid, inside,
        tokens, spans, outputs, projected_stride, -1, -1, attention_block, head, head + 1, True, BLOCK_N, BLOCK_K, C,
        PRECISION, INTERPRETED,
    )  # fmt: skip
    mask = valid[:, None] & inside[None, :]
    values = tl.load(grad + row[:, None] * grad_stride + column[None, :], mask=mask, other=0.0).to(tl.float32)
    dots = tl.sum(tl.where(mask, values * share, 0.0), 1)
    tl.store(deltas + (column_block * heads + head) * spans + span, dots, mask=there)
