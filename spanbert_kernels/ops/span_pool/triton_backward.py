"""Span pooling's backward kernels in Triton.

A program owns a tile of tokens and goes through the sorted spans that can hold one of them, the slice
`reach[first token] : first[token after the last]`: nothing is added atomically, every sum has one order.

The sums are the forward's matrix product transposed, `A^T @ G`: row t of A^T holds what token t weighs in each
span of the slice. The softmax's scores get theirs from the same product, head by head:
  d s[t] = sum of p_n[t] (g_n . x_t - g_n . out_n) = (sum of p_n[t] g_n) . x_t - sum of p_n[t] delta_n
over the spans n that hold t, p_n[t] = exp(s[t] - lse_n). delta_n is the dot product of g_n with the pooled vector
before it was rounded: that is made again. Inf and NaN are kept from other tokens as in the forward.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from spanbert_kernels.ops.span_pool.triton_forward import (
    add_product,
    exact_window_product,
    is_finite,
    softmax_share,
    window_of,
)
from spanbert_kernels.ops.triton_arguments import Matrix


class Slice(NamedTuple):
    """The sorted spans `low : high`, of which some hold one of the tokens from `first_token` on; `extent` of them."""

    low: tl.tensor
    high: tl.tensor
    extent: tl.tensor
    first_token: tl.tensor


class Held(NamedTuple):
    """Some spans of a slice: bounds relative to the tile of tokens, -1 for a span without tokens, and output rows."""

    start: tl.tensor
    end: tl.tensor
    row: tl.tensor


class Softmax(NamedTuple):
    """The scores `[T, heads]` of the attention, and of its spans `[N, heads]`; all float32.

    Attributes:
        scores: `[T, heads]`.
        lse: the log-sum-exp of each span's scores.
        delta: the dot product of the gradient with what was pooled.
    """

    scores: Tensor
    lse: Tensor
    delta: Tensor


@triton.jit
def slice_of(spans, first_token, tokens, BLOCK):
    """The spans that can hold one of a tile's tokens."""
    low = tl.load(spans.reach + first_token)
    high = tl.load(spans.first + tl.minimum(first_token + BLOCK.M, tokens))
    return Slice(low, high, (high - low).to(tl.int32), first_token)


@triton.jit
def load_spans(spans, part, done, tokens, num_spans, COUNT: tl.constexpr):
    """COUNT spans of the slice after `done` others."""
    span = part.low + done + tl.arange(0, COUNT)
    there = span < part.high
    start = tl.load(spans.starts + span, mask=there, other=0)
    end = tl.load(spans.ends + span, mask=there, other=0)
    row = span
    if spans.rows is not None:
        row = tl.load(spans.rows + span, mask=there, other=-1)
    valid = there & (start >= 0) & (start < end) & (end <= tokens) & (row >= 0) & (row < num_spans)
    start = tl.where(valid, start - part.first_token, -1).to(tl.int32)
    end = tl.where(valid, end - part.first_token, -1).to(tl.int32)
    return Held(start, end, tl.where(valid, row, 0))


@triton.jit
def linear_step(total, held, source, at, inside, MODE: tl.constexpr, BLOCK):
    """Adds what some spans give a tile of tokens; for MODE see `add_part`."""
    # Other spans of the slice are not read.
    touched = (held.end > 0) & (held.start < BLOCK.M)
    ahead, inner = touched & (held.start >= 0), touched & (held.end <= BLOCK.M)
    token = tl.arange(0, BLOCK.M)[:, None]
    start, end = held.start[None, :], held.end[None, :]
    holds = (token >= start) & (token < end)  # [T, K]
    rows = source.data + held.row[:, None] * source.stride
    if at.start is not None:
        total = add_part(total, token == start, rows + at.start, ahead, inside, True, MODE, BLOCK.PRECISION)
    if at.end is not None:
        total = add_part(total, token == end - 1, rows + at.end, inner, inside, True, MODE, BLOCK.PRECISION)
    if at.sum is not None:
        total = add_part(total, holds, rows + at.sum, touched, inside, True, MODE, BLOCK.PRECISION)
    if at.mean is not None:
        weights = tl.where(holds, 1.0 / tl.maximum(end - start, 1).to(tl.float32), 0.0)
        total = add_part(total, weights, rows + at.mean, touched, inside, False, MODE, BLOCK.PRECISION)
    return total


@triton.jit
def add_part(total, weights, rows, touched, inside, EXACT: tl.constexpr, MODE: tl.constexpr, PRECISION: tl.constexpr):
    """A matrix product of weights [T, K] with gradients [K, D]: of all, of the finite ones, or of the others alone, for
    one span (K = 1) and without a product.
    """
    grad = tl.load(rows, mask=touched[:, None] & inside[None, :], other=0.0)
    weights = weights.to(tl.float32)
    if MODE == "others":
        grad = grad.to(tl.float32)
        total = tl.where((weights != 0) & (is_finite(grad) == 0), total + weights * grad, total)
    else:
        if MODE == "finite":
            grad = tl.where(is_finite(grad), grad, 0.0)
        total = add_product(total, weights, grad, EXACT, PRECISION)
    return total


@triton.jit
def attention_step(total, dots, held, source, softmax, score, heads, inside, MODE: tl.constexpr, BLOCK):
    """Adds what some spans give a tile of tokens through one head, and sums weight times delta."""
    touched = (held.end > 0) & (held.start < BLOCK.M)
    lse = tl.load(softmax.lse + held.row * heads, mask=touched, other=0.0)
    delta = tl.load(softmax.delta + held.row * heads, mask=touched, other=0.0)
    token = tl.arange(0, BLOCK.M)[:, None]
    # Where every score is -inf no token is weighed, and neither gradient nor delta is looked at.
    holds = (token >= held.start[None, :]) & (token < held.end[None, :]) & (lse != float("inf"))[None, :]
    weights = tl.where(holds, tl.exp(score[:, None] - lse[None, :]), 0.0)
    dots += tl.sum(tl.where(holds, weights * delta[None, :], 0.0), 1)
    rows = source.data + held.row[:, None] * source.stride
    return add_part(total, weights, rows, touched, inside, False, MODE, BLOCK.PRECISION), dots


@triton.jit
def add_and_store(others, grad_hidden, total, first_token, column, tokens, columns, BLOCK):
    token = first_token + tl.arange(0, BLOCK.M)
    mask = (token < tokens)[:, None] & (column < columns)[None, :]
    place = token[:, None] * columns + column[None, :]
    if others is not None:
        total += tl.load(others + place, mask=mask, other=0.0)
    tl.store(grad_hidden + place, total.to(grad_hidden.dtype.element_ty), mask=mask)


@triton.jit
def linear_steps(
    total, spans, part, source, at, tokens, num_spans, inside, MODE: tl.constexpr, COUNT: tl.constexpr, BLOCK
):
    """All spans of the slice, COUNT at a time."""
    done = 0
    while done < part.extent:
        held = load_spans(spans, part, done, tokens, num_spans, COUNT)
        total = linear_step(total, held, source, at, inside, MODE, BLOCK)
        done += COUNT
    return total


@triton.jit(do_not_specialize=["tokens", "num_spans"])
def linear_backward(
    grad_output,  # [N, .]
    spans,
    others,  # [T, H], float32: what other parts add, or None
    grad_hidden,  # [T, H]
    at,  # the columns of the linear parts
    tokens,
    num_spans,
    columns,
    BLOCK,
):
    column_blocks = tl.cdiv(columns, BLOCK.D)
    block = tl.program_id(0) % column_blocks
    first_token = (tl.program_id(0) // column_blocks).to(tl.int64) * BLOCK.M
    column = block * BLOCK.D + tl.arange(0, BLOCK.D)
    inside = column < columns
    part = slice_of(spans, first_token, tokens, BLOCK)
    source = Matrix(grad_output.data + column[None, :], grad_output.stride)
    total = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
    if BLOCK.INTERPRETED:
        total = linear_steps(total, spans, part, source, at, tokens, num_spans, inside, "all", BLOCK.K, BLOCK)
    else:
        # The same loop, in the form that the compiler pipelines.
        for done in tl.range(0, part.extent, BLOCK.K):
            held = load_spans(spans, part, done, tokens, num_spans, BLOCK.K)
            total = linear_step(total, held, source, at, inside, "all", BLOCK)
    if tl.max(tl.where(is_finite(total), 0, 1)) > 0:
        total = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
        total = linear_steps(total, spans, part, source, at, tokens, num_spans, inside, "finite", BLOCK.K, BLOCK)
        total = linear_steps(total, spans, part, source, at, tokens, num_spans, inside, "others", 1, BLOCK)
    add_and_store(others, grad_hidden, total, first_token, column, tokens, columns, BLOCK)


@triton.jit
def attention_steps(
    total, dots, spans, part, source, softmax, score, tokens, num_spans, heads, inside,
    MODE: tl.constexpr, COUNT: tl.constexpr, BLOCK,
):  # fmt: skip
    """All spans of the slice, COUNT at a time."""
    done = 0
    while done < part.extent:
        held = load_spans(spans, part, done, tokens, num_spans, COUNT)
        total, more = attention_step(total, dots, held, source, softmax, score, heads, inside, MODE, BLOCK)
        if MODE == "all":
            dots = more
        done += COUNT
    return total, dots


@triton.jit(do_not_specialize=["tokens", "num_spans", "heads"])
def attention_backward(
    grad_output,  # the arguments of linear_backward
    hidden,  # [T, H]
    spans,
    softmax,
    others,
    grad_hidden,
    partial_scores,  # [column blocks, T, heads], float32
    attention_column,
    tokens,
    num_spans,
    columns,
    heads,
    BLOCK,
):
    column_blocks = tl.cdiv(columns, BLOCK.D)
    block = tl.program_id(0) % column_blocks
    first_token = (tl.program_id(0) // column_blocks).to(tl.int64) * BLOCK.M
    column = block * BLOCK.D + tl.arange(0, BLOCK.D)
    inside = column < columns
    part = slice_of(spans, first_token, tokens, BLOCK)
    token = first_token + tl.arange(0, BLOCK.M)
    there = token < tokens
    total = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
    head = 0
    while head < heads:
        score = tl.load(softmax.scores + token * heads + head, mask=there, other=-float("inf"))
        of_head = Softmax(softmax.scores, softmax.lse + head, softmax.delta + head)
        first_column = grad_output.data + attention_column + head * columns
        source = Matrix(first_column + column[None, :], grad_output.stride)
        own = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
        dots = tl.zeros([BLOCK.M], tl.float32)
        if BLOCK.INTERPRETED:
            own, dots = attention_steps(
                own, dots, spans, part, source, of_head, score, tokens, num_spans, heads, inside,
                "all", BLOCK.K, BLOCK,
            )  # fmt: skip
        else:
            # The same loop, in the form that the compiler pipelines.
            for done in tl.range(0, part.extent, BLOCK.K):
                held = load_spans(spans, part, done, tokens, num_spans, BLOCK.K)
                own, dots = attention_step(own, dots, held, source, of_head, score, heads, inside, "all", BLOCK)
        if tl.max(tl.where(is_finite(own), 0, 1)) > 0:
            own = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
            own, _ = attention_steps(
                own, dots, spans, part, source, of_head, score, tokens, num_spans, heads, inside,
                "finite", BLOCK.K, BLOCK,
            )  # fmt: skip
            own, _ = attention_steps(
                own, dots, spans, part, source, of_head, score, tokens, num_spans, heads, inside,
                "others", 1, BLOCK,
            )  # fmt: skip
        total += own
        mask = there[:, None] & inside[None, :]
        x = tl.load(hidden.data + token[:, None] * hidden.stride + column[None, :], mask=mask, other=0.0)
        # A token that no span holds may be Inf or NaN.
        products = tl.sum(tl.where(own != 0, own * x.to(tl.float32), 0.0), 1)
        products -= tl.where(block == 0, dots, 0.0)
        tl.store(partial_scores + (block * tokens.to(tl.int64) + token) * heads + head, products, mask=there)
        head += 1
    add_and_store(others, grad_hidden, total, first_token, column, tokens, columns, BLOCK)


@triton.jit(do_not_specialize=["tokens", "num_spans"])
def max_backward(
    grad_output,  # [N, .]
    argmax,  # [N, H] by output row, offsets from a span's first token
    spans,
    grad_hidden,  # [T, H]
    max_column,
    tokens,
    num_spans,
    columns,
    BLOCK,
):
    """BLOCK.K spans after the others, each column's gradient to the token that was the maximum."""
    column_blocks = tl.cdiv(columns, BLOCK.D)
    first_token = (tl.program_id(0) // column_blocks).to(tl.int64) * BLOCK.M
    column = tl.program_id(0) % column_blocks * BLOCK.D + tl.arange(0, BLOCK.D)
    inside = column < columns
    token = tl.arange(0, BLOCK.M)
    total = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
    part = slice_of(spans, first_token, tokens, BLOCK)
    done = 0
    while part.low + done < part.high:
        held = load_spans(spans, part, done, tokens, num_spans, BLOCK.K)
        if tl.max(held.end, 0) > 0:
            mask = (held.end > 0)[:, None] & inside[None, :]
            winner = tl.load(argmax + held.row[:, None] * columns + column[None, :], mask=mask, other=0).to(tl.int32)
            winner = tl.where(mask, winner + held.start[:, None], -1)  # [K, D]
            source = grad_output.data + held.row[:, None] * grad_output.stride + max_column + column[None, :]
            grad = tl.load(source, mask=mask, other=0.0).to(tl.float32)
            wins = token[:, None, None] == winner[None, :, :]  # [T, K, D]
            total += tl.sum(tl.where(wins, grad[None, :, :], 0.0), 1)
        done += BLOCK.K
    add_and_store(None, grad_hidden, total, first_token, column, tokens, columns, BLOCK)


@triton.jit(do_not_specialize=["tokens", "num_spans", "heads"])
def attention_delta(
    grad_output,  # [N, .]
    hidden,  # [T, H]
    spans,
    scores,  # [T, heads], float32
    partial_delta,  # [column blocks, N, heads]
    attention_column,
    tokens,
    num_spans,
    columns,
    heads,
    BLOCK,
):
    """The forward of a tile of spans again, a head and a block of columns of it, times their gradients."""
    column_blocks = tl.cdiv(columns, BLOCK.D)
    program = tl.program_id(0)
    block = program % column_blocks
    head = program // column_blocks % heads
    column = block * BLOCK.D + tl.arange(0, BLOCK.D)
    inside = column < columns
    span = (program // column_blocks // heads).to(tl.int64) * BLOCK.M + tl.arange(0, BLOCK.M)
    there = span < num_spans
    start = tl.load(spans.starts + span, mask=there, other=0)
    end = tl.load(spans.ends + span, mask=there, other=0)
    row = span
    if spans.rows is not None:
        row = tl.load(spans.rows + span, mask=there, other=-1)
    kept = there & (row >= 0) & (row < num_spans)
    valid = kept & (start >= 0) & (start < end) & (end <= tokens)
    window = window_of(start, end, valid, tokens, BLOCK.K)
    pooled = exact_window_product(
        Matrix(hidden.data + window.low * hidden.stride + column[None, :], hidden.stride),
        Matrix(scores + window.low * heads + head, heads),
        window,
        inside,
        BLOCK,
    )
    first_column = grad_output.data + attention_column + head * columns
    source = first_column + row[:, None] * grad_output.stride + column[None, :]
    grad = tl.load(source, mask=valid[:, None] & inside[None, :], other=0.0).to(tl.float32)
    share = softmax_share(pooled.total, pooled.mass, valid)
    dots = tl.sum(tl.where(inside[None, :], grad * share, 0.0), 1)
    place = (block * num_spans.to(tl.int64) + row) * heads + head
    tl.store(partial_delta + place, tl.where(valid, dots, 0.0), mask=kept)


@triton.jit(do_not_specialize=["tokens", "num_spans", "share", "table_rows", "table_columns"])
def table_backward(
    grad_output,  # [N, .]
    spans,
    table_index,  # [N] by output row, or None
    partial_table,  # [shares, table_rows, table_columns], float32
    width_column,
    tokens,
    num_spans,
    share,  # spans of a program
    table_rows,
    table_columns,
    BLOCK,
):
    """One row of the width table: the gradients of the share's spans that took it."""
    column_blocks = tl.cdiv(table_columns, BLOCK.D)
    program = tl.program_id(0)
    column = program % column_blocks * BLOCK.D + tl.arange(0, BLOCK.D)
    entry = program // column_blocks % table_rows
    of_share = (program // column_blocks // table_rows).to(tl.int64)
    inside = column < table_columns
    part = Slice(of_share * share, tl.minimum(of_share * share + share, num_spans), share, 0)
    total = tl.zeros([BLOCK.K, BLOCK.D], tl.float32)
    done = 0
    while part.low + done < part.high:
        held = load_spans(spans, part, done, tokens, num_spans, BLOCK.K)
        if table_index is None:
            index = (tl.minimum(held.end - held.start, table_rows) - 1).to(tl.int64)
        else:
            index = tl.load(table_index + held.row, mask=held.end > held.start, other=-1)
        mask = ((held.end > held.start) & (index == entry))[:, None] & inside[None, :]
        source = grad_output.data + width_column + held.row[:, None] * grad_output.stride + column[None, :]
        total += tl.load(source, mask=mask, other=0.0).to(tl.float32)
        done += BLOCK.K
    target = partial_table + (of_share * table_rows + entry) * table_columns + column
    tl.store(target, tl.sum(total, 0), mask=inside)
