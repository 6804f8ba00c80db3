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

from typing import NamedTuple

import triton
import triton.language as tl

from spanbert_kernels.ops.span_linear.triton_forward import Blocks, Sizes, load_tile, window_sums
from spanbert_kernels.ops.span_pool.triton_backward import Held, Slice
from spanbert_kernels.ops.span_pool.triton_forward import add_product, is_finite
from spanbert_kernels.ops.triton_arguments import Matrix
from spanbert_kernels.ops.triton_masks import only_if

# Blocks whose weights are 0 and 1, two bits each in `kinds`. The weighed ones are the mean and then the heads.
START = tl.constexpr(0)
END = tl.constexpr(1)
SUM = tl.constexpr(2)


class HeadGradient(NamedTuple):
    """One head's scores of a tile's tokens `[T]`, and what `Weights` and the deltas have of its spans."""

    score: tl.tensor
    peaks: tl.tensor
    scales: tl.tensor
    deltas: tl.tensor


@triton.jit
def load_spans(spans, span, there, first_token):
    """Bounds relative to the tile, -1 for a span without tokens, and the rows of their gradients."""
    start = tl.load(spans.starts + span, mask=there, other=0)
    end = tl.load(spans.ends + span, mask=there, other=0)
    row = span
    if spans.rows is not None:
        row = tl.load(spans.rows + span, mask=there, other=0)
    valid = there & (start >= 0) & (start < end)
    start = tl.where(valid, start - first_token, -1).to(tl.int32)
    end = tl.where(valid, end - first_token, -1).to(tl.int32)
    return Held(start, end, row)


@triton.jit
def held_by(token, start, end, kind, WEIGHED: tl.constexpr):
    """Which tokens a block gives to which spans."""
    held = (token >= start) & (token < end)
    if not WEIGHED:
        held = tl.where(kind == START, token == start, tl.where(kind == END, token == end - 1, held))
    return held & (end > start)


@triton.jit
def slice_step(
    total, dots, done, source, spans, part, head, inside, kind, is_head,
    WEIGHED: tl.constexpr, SANITIZE: tl.constexpr, BLOCK,
):  # fmt: skip
    """BLOCK.K more spans of the slice."""
    span = part.low + done + tl.arange(0, BLOCK.K)
    start, end, row = load_spans(spans, span, span < part.high, part.first_token)
    touched = (end > 0) & (start < BLOCK.M)  # other spans of the slice are not read
    if not WEIGHED:
        touched = touched & (tl.where(kind == START, start, 0) >= 0)
        touched = touched & (tl.where(kind == END, end, 0) <= BLOCK.M)
    rows = source.data + row[:, None] * source.stride
    grad = tl.load(rows, mask=touched[:, None] & inside[None, :], other=0.0)  # [K, D]
    if SANITIZE:
        grad = tl.where(is_finite(grad), grad, 0.0)
    token = tl.arange(0, BLOCK.M)
    held = held_by(token[:, None], start[None, :], end[None, :], kind, WEIGHED)  # [T, K]
    weights = tl.where(held, 1.0, 0.0)
    if WEIGHED:
        scale = 1.0 / tl.maximum(end - start, 1).to(tl.float32)
        if head is not None:
            mine = only_if(is_head, touched)
            scale = tl.where(is_head, tl.load(head.scales + span, mask=mine, other=1.0), scale)
            peak = tl.load(head.peaks + span, mask=mine, other=0.0)
            delta = tl.load(head.deltas + span, mask=mine, other=0.0)
            weights = tl.where(held, tl.exp(head.score[:, None] - peak[None, :]) * scale[None, :], 0.0)
            held = held & (scale != 0)[None, :]
            dots += tl.sum(tl.where(held, weights * delta[None, :], 0.0), 1)
        else:
            weights = tl.where(held, scale[None, :], 0.0)
    return add_product(total, weights, grad, not WEIGHED, BLOCK.PRECISION), dots


@triton.jit
def slice_loop(source, spans, part, head, inside, kind, is_head, WEIGHED: tl.constexpr, SANITIZE: tl.constexpr, BLOCK):
    total = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
    dots = tl.zeros([BLOCK.M], tl.float32)
    if BLOCK.INTERPRETED:
        done = 0
        while done < part.extent:
            total, dots = slice_step(
                total, dots, done, source, spans, part, head, inside, kind, is_head, WEIGHED, SANITIZE, BLOCK
            )
            done += BLOCK.K
    else:
        # The same loop, in the form that the compiler pipelines.
        for done in tl.range(0, part.extent, BLOCK.K):
            total, dots = slice_step(
                total, dots, done, source, spans, part, head, inside, kind, is_head, WEIGHED, SANITIZE, BLOCK
            )
    if SANITIZE:
        token = tl.arange(0, BLOCK.M)
        span = part.low
        while span < part.high:
            start, end, row = load_spans(spans, span, span < part.high, part.first_token)
            held = held_by(token, start, end, kind, WEIGHED)
            weight = tl.where(held, 1.0, 0.0)
            if WEIGHED:
                scale = 1.0 / tl.maximum(end - start, 1).to(tl.float32)
                weight = weight * scale
                if head is not None:
                    scale = tl.where(is_head, tl.load(head.scales + span, mask=is_head, other=1.0), scale)
                    held = tl.where(scale == 0, False, held)
                    peak = tl.load(head.peaks + span, mask=is_head, other=0.0)
                    weight = tl.exp(head.score - peak) * scale
            grad = tl.load(source.data + row * source.stride, mask=inside[None, :], other=0.0).to(tl.float32)  # [1, D]
            total = tl.where(held[:, None] & (is_finite(grad) == 0), total + weight[:, None] * grad, total)
            span += 1
    return total, dots


UNSPECIALIZED = (
    "tokens", "num_spans", "heads", "share", "kinds", "start_block", "end_block", "sum_block", "mean_block",
    "attention_block",
)  # fmt: skip


@triton.jit(do_not_specialize=UNSPECIALIZED)
def product_backward(
    grad,  # [N, O], before the activation
    projected,  # [T, B * O]
    spans,  # `first` may be None: each program of the second axis then takes `share` of them, for a result of its own
    weights,  # None without attention
    deltas,  # [heads, N], the dot products of the gradient with each head's share
    target,  # [T, B * O]
    partial_scores,  # [column blocks, T, heads], float32
    tokens,
    num_spans,
    outputs,
    heads,
    share,
    kinds,  # of the programs of the second axis, two bits each
    start_block,
    end_block,
    mean_block,
    sum_block,
    attention_block,
    WEIGHED: tl.constexpr,
    ACCUMULATE: tl.constexpr,  # add to what the results hold
    BLOCK,
):
    column_blocks = tl.cdiv(outputs, BLOCK.D)
    column_block = tl.program_id(0) % column_blocks
    column = column_block.to(tl.int64) * BLOCK.D + tl.arange(0, BLOCK.D)
    inside = column < outputs
    first_token = (tl.program_id(0) // column_blocks).to(tl.int64) * BLOCK.M
    token = first_token + tl.arange(0, BLOCK.M)
    there = token < tokens
    program = tl.program_id(1)
    head = program.to(tl.int64) * 0
    results = target.data
    if spans.first is None:
        low = program.to(tl.int64) * share
        high = tl.minimum(low + share, num_spans)
        results += program.to(tl.int64) * tokens * target.stride
        block = head
        kind = program * 0  # START
    else:
        kind = (kinds >> (2 * program)) & 3
        high = tl.load(spans.first + tl.minimum(first_token + BLOCK.M, tokens))
        low = tl.load(spans.reach + first_token)
        if WEIGHED:
            has_mean = (mean_block >= 0).to(tl.int32)
            head = (program - has_mean).to(tl.int64)
            block = tl.where(head < 0, mean_block, attention_block + head)
        else:
            if kind == START:
                low = tl.load(spans.first + first_token)
            block = tl.where(kind == START, start_block, tl.where(kind == END, end_block, sum_block)).to(tl.int64)
    is_head = head >= 0
    of_head = None
    if weights is not None:
        of_head = HeadGradient(
            tl.load(weights.scores + head * tokens + token, mask=only_if(is_head, there), other=0.0),
            weights.peaks + head * num_spans,
            weights.scales + head * num_spans,
            deltas + head * num_spans,
        )

    part = Slice(low, high, (high - low).to(tl.int32), first_token)
    source = Matrix(grad.data + column[None, :], grad.stride)
    total, dots = slice_loop(source, spans, part, of_head, inside, kind, is_head, WEIGHED, False, BLOCK)
    if tl.max(tl.where(is_finite(total), 0, 1)) > 0:
        total, dots = slice_loop(source, spans, part, of_head, inside, kind, is_head, WEIGHED, True, BLOCK)

    mask = there[:, None] & inside[None, :]
    if weights is not None:  # noqa: SIM102 (known when the kernel is compiled, the next one when it runs)
        if is_head:
            values = projected.data + token[:, None] * projected.stride + block * outputs + column[None, :]
            x = tl.load(values, mask=mask, other=0.0)
            # A token that no span holds may be Inf or NaN.
            products = tl.sum(tl.where(total != 0, total * x.to(tl.float32), 0.0), 1)
            products -= tl.where(column_block == 0, dots, 0.0)
            place = partial_scores + (column_block.to(tl.int64) * tokens + token) * heads + head
            if ACCUMULATE:
                products += tl.load(place, mask=there, other=0.0)
            tl.store(place, products, mask=there)
    results += token[:, None] * target.stride + block * outputs + column[None, :]
    if ACCUMULATE:
        total += tl.load(results, mask=mask, other=0.0)
    tl.store(results, total.to(results.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens", "num_spans", "heads", "attention_block"])
def attention_deltas(
    grad,  # [N, O], before the activation
    projected,  # [T, B * O]
    spans,
    weights,
    partial_deltas,  # [column blocks, heads, N]
    tokens,
    num_spans,
    outputs,
    heads,
    attention_block,
    BLOCK,
):
    """The dot product of a span's gradient with one head's share of it, for a block of columns."""
    column_blocks = tl.cdiv(outputs, BLOCK.D)
    column_block = (tl.program_id(0) % column_blocks).to(tl.int64)
    head = tl.program_id(1)
    column = column_block * BLOCK.D + tl.arange(0, BLOCK.D)
    inside = column < outputs
    tile = load_tile(spans, tl.program_id(0) // column_blocks, tokens, num_spans, BLOCK.M)
    columns = Matrix(projected.data + column[None, :], projected.stride)
    blocks, sizes = Blocks(-1, -1, -1, -1, attention_block), Sizes(tokens, num_spans, outputs, heads, 0)
    share = window_sums(columns, weights, blocks, tile, sizes, head, head + 1, inside, BLOCK)
    mask = tile.valid[:, None] & inside[None, :]
    values = tl.load(grad.data + tile.row[:, None] * grad.stride + column[None, :], mask=mask, other=0.0)
    dots = tl.sum(tl.where(mask, values.to(tl.float32) * share, 0.0), 1)
    place = (column_block * heads + head) * num_spans + tile.first + tl.arange(0, BLOCK.M)
    tl.store(partial_deltas + place, dots, mask=tile.there)
