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

import triton
import triton.language as tl

from spanbert_kernels.ops.span_pool.triton_forward import add_product, exact_window_product, is_finite, softmax_share


@triton.jit
def load_spans(starts, ends, rows, low, done, high, first_token, tokens, spans, COUNT: tl.constexpr):
    """COUNT spans of the slice from `low + done` on: bounds relative to the tile, -1 without tokens; output rows."""
    span = low + done + tl.arange(0, COUNT)
    there = span < high
    start = tl.load(starts + span, mask=there, other=0)
    end = tl.load(ends + span, mask=there, other=0)
    row = span
    if rows is not None:
        row = tl.load(rows + span, mask=there, other=-1)
    valid = there & (start >= 0) & (start < end) & (end <= tokens) & (row >= 0) & (row < spans)
    start = tl.where(valid, start - first_token, -1).to(tl.int32)
    end = tl.where(valid, end - first_token, -1).to(tl.int32)
    return start, end, tl.where(valid, row, 0)


@triton.jit
def linear_step(
    total,
    start,
    end,
    row,
    source,
    inside,
    grad_stride,
    start_column,
    end_column,
    mean_column,
    sum_column,
    MODE: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds what BLOCK_K spans give a tile of tokens; for MODE see `add_part`."""
    # Other spans of the slice are not read.
    touched = (end > 0) & (start < BLOCK)
    ahead, inner = touched & (start >= 0), touched & (end <= BLOCK)
    token = tl.arange(0, BLOCK)[:, None]
    start, end = start[None, :], end[None, :]
    held = (token >= start) & (token < end)  # [T, K]
    rows = source + row[:, None] * grad_stride
    if start_column is not None:
        total = add_part(total, token == start, rows + start_column, ahead, inside, True, MODE, PRECISION)
    if end_column is not None:
        total = add_part(total, token == end - 1, rows + end_column, inner, inside, True, MODE, PRECISION)
    if sum_column is not None:
        total = add_part(total, held, rows + sum_column, touched, inside, True, MODE, PRECISION)
    if mean_column is not None:
        weights = tl.where(held, 1.0 / tl.maximum(end - start, 1).to(tl.float32), 0.0)
        total = add_part(total, weights, rows + mean_column, touched, inside, False, MODE, PRECISION)
    return total


@triton.jit
def add_part(total, weights, rows, touched, inside, EXACT: tl.constexpr, MODE: tl.constexpr, PRECISION: tl.constexpr):
    """A matrix product of weights [T, K] with gradients [K, C]: of all, of the finite ones, or of the others alone, for
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
def attention_step(
    part,
    dots,
    start,
    end,
    row,
    source,
    score,
    lse,
    delta,
    inside,
    heads,
    grad_stride,
    MODE: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds what BLOCK_K spans give a tile of tokens through one head, and sums weight times delta."""
    touched = (end > 0) & (start < BLOCK)
    span_lse = tl.load(lse + row * heads, mask=touched, other=0.0)
    span_delta = tl.load(delta + row * heads, mask=touched, other=0.0)
    token = tl.arange(0, BLOCK)[:, None]
    # Where every score is -inf no token is weighed, and neither gradient nor delta is looked at.
    held = (token >= start[None, :]) & (token < end[None, :]) & (span_lse != float("inf"))[None, :]
    weights = tl.where(held, tl.exp(score[:, None] - span_lse[None, :]), 0.0)
    dots += tl.sum(tl.where(held, weights * span_delta[None, :], 0.0), 1)
    rows = source + row[:, None] * grad_stride
    return add_part(part, weights, rows, touched, inside, False, MODE, PRECISION), dots


@triton.jit
def add_and_store(others, grad_hidden, total, first_token, column, tokens, columns, BLOCK: tl.constexpr):
    token = first_token + tl.arange(0, BLOCK)
    mask = (token < tokens)[:, None] & (column < columns)[None, :]
    place = token[:, None] * columns + column[None, :]
    if others is not None:
        total += tl.load(others + place, mask=mask, other=0.0)
    tl.store(grad_hidden + place, total.to(grad_hidden.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["tokens", "spans"])
def linear_backward(
    grad_output,  # [N, .], dense rows
    starts,  # [N]
    ends,
    rows,  # [N] or None
    first,  # [T + 1]
    reach,  # [T]
    others,  # [T, H], float32: what other parts add, or None
    grad_hidden,  # [T, H]
    tokens,
    spans,
    columns,
    grad_stride,
    start_column,  # first output column of each part, None for a part not asked for
    end_column,
    mean_column,
    sum_column,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    column_blocks = tl.cdiv(columns, C)
    block = tl.program_id(0) % column_blocks
    first_token = (tl.program_id(0) // column_blocks).to(tl.int64) * BLOCK
    column = block * C + tl.arange(0, C)
    inside = column < columns
    low = tl.load(reach + first_token)
    high = tl.load(first + tl.minimum(first_token + BLOCK, tokens))
    extent = (high - low).to(tl.int32)
    source = grad_output + column[None, :]
    total = tl.zeros([BLOCK, C], tl.float32)
    if INTERPRETED:
        done = 0
        while done < extent:
            start, end, row = load_spans(starts, ends, rows, low, done, high, first_token, tokens, spans, BLOCK_K)
            total = linear_step(
                total, start, end, row, source, inside, grad_stride,
                start_column, end_column, mean_column, sum_column,
                "all", BLOCK, PRECISION,
            )  # fmt: skip
            done += BLOCK_K
    else:
        # The same loop, in the form that the compiler pipelines.
        for done in tl.range(0, extent, BLOCK_K):
            start, end, row = load_spans(starts, ends, rows, low, done, high, first_token, tokens, spans, BLOCK_K)
            total = linear_step(
                total, start, end, row, source, inside, grad_stride,
                start_column, end_column, mean_column, sum_column,
                "all", BLOCK, PRECISION,
            )  # fmt: skip
    if tl.max(tl.where(is_finite(total), 0, 1)) > 0:
        total = tl.zeros([BLOCK, C], tl.float32)
        done = 0
        while done < extent:
            start, end, row = load_spans(starts, ends, rows, low, done, high, first_token, tokens, spans, BLOCK_K)
            total = linear_step(
                total, start, end, row, source, inside, grad_stride,
                start_column, end_column, mean_column, sum_column,
                "finite", BLOCK, PRECISION,
            )  # fmt: skip
            done += BLOCK_K
        done = 0
        while done < extent:
            start, end, row = load_spans(starts, ends, rows, low, done, high, first_token, tokens, spans, 1)
            total = linear_step(
                total, start, end, row, source, inside, grad_stride,
                start_column, end_column, mean_column, sum_column,
                "others", BLOCK, PRECISION,
            )  # fmt: skip
            done += 1
    add_and_store(others, grad_hidden, total, first_token, column, tokens, columns, BLOCK)


@triton.jit(do_not_specialize=["tokens", "spans", "heads"])
def attention_backward(
    grad_output,  # the arguments of linear_backward
    hidden,  # [T, H], dense rows
    starts,
    ends,
    rows,
    first,
    reach,
    scores,  # [T, heads], float32
    lse,  # [N, heads]
    delta,  # [N, heads], the dot products of the gradient with what was pooled
    others,
    grad_hidden,
    partial_scores,  # [column blocks, T, heads], float32
    tokens,
    spans,
    columns,
    heads,
    grad_stride,
    hidden_stride,
    attention_column,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    column_blocks = tl.cdiv(columns, C)
    block = tl.program_id(0) % column_blocks
    first_token = (tl.program_id(0) // column_blocks).to(tl.int64) * BLOCK
    column = block * C + tl.arange(0, C)
    inside = column < columns
    low = tl.load(reach + first_token)
    high = tl.load(first + tl.minimum(first_token + BLOCK, tokens))
    extent = (high - low).to(tl.int32)
    token = first_token + tl.arange(0, BLOCK)
    there = token < tokens
    total = tl.zeros([BLOCK, C], tl.float32)
    head = 0
    while head < heads:
        score = tl.load(scores + token * heads + head, mask=there, other=-float("inf"))
        source = grad_output + attention_column + head * columns + column[None, :]
        part = tl.zeros([BLOCK, C], tl.float32)
        dots = tl.zeros([BLOCK], tl.float32)
        if INTERPRETED:
            done = 0
            while done < extent:
                start, end, row = load_spans(starts, ends, rows, low, done, high, first_token, tokens, spans, BLOCK_K)
                part, dots = attention_step(
                    part, dots, start, end, row, source, score, lse + head, delta + head, inside, heads, grad_stride,
                    "all", BLOCK, PRECISION,
                )  # fmt: skip
                done += BLOCK_K
        else:
            # The same loop, in the form that the compiler pipelines.
            for done in tl.range(0, extent, BLOCK_K):
                start, end, row = load_spans(starts, ends, rows, low, done, high, first_token, tokens, spans, BLOCK_K)
                part, dots = attention_step(
                    part, dots, start, end, row, source, score, lse + head, delta + head, inside, heads, grad_stride,
                    "all", BLOCK, PRECISION,
                )  # fmt: skip
        if tl.max(tl.where(is_finite(part), 0, 1)) > 0:
            part = tl.zeros([BLOCK, C], tl.float32)
            done = 0
            while done < extent:
                start, end, row = load_spans(starts, ends, rows, low, done, high, first_token, tokens, spans, BLOCK_K)
                part, _ = attention_step(
                    part, dots, start, end, row, source, score, lse + head, delta + head, inside, heads, grad_stride,
                    "finite", BLOCK, PRECISION,
                )  # fmt: skip
                done += BLOCK_K
            done = 0
            while done < extent:
                start, end, row = load_spans(starts, ends, rows, low, done, high, first_token, tokens, spans, 1)
                part, _ = attention_step(
                    part, dots, start, end, row, source, score, lse + head, delta + head, inside, heads, grad_stride,
                    "others", BLOCK, PRECISION,
                )  # fmt: skip
                done += 1
        total += part
        mask = there[:, None] & inside[None, :]
        x = tl.load(hidden + token[:, None] * hidden_stride + column[None, :], mask=mask, other=0.0)
        # A token that no span holds may be Inf or NaN.
        products = tl.sum(tl.where(part != 0, part * x.to(tl.float32), 0.0), 1)
        products -= tl.where(block == 0, dots, 0.0)
        tl.store(partial_scores + (block * tokens.to(tl.int64) + token) * heads + head, products, mask=there)
        head += 1
    add_and_store(others, grad_hidden, total, first_token, column, tokens, columns, BLOCK)


@triton.jit(do_not_specialize=["tokens", "spans"])
def max_backward(
    grad_output,  # [N, .], dense rows
    argmax,  # [N, H] by output row, offsets from a span's first token
    starts,
    ends,
    rows,
    first,
    reach,
    grad_hidden,  # [T, H]
    tokens,
    spans,
    columns,
    grad_stride,
    max_column,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    C: tl.constexpr,
):
    """BLOCK_N spans after the others, each column's gradient to the token that was the maximum."""
    column_blocks = tl.cdiv(columns, C)
    first_token = (tl.program_id(0) // column_blocks).to(tl.int64) * BLOCK_T
    column = tl.program_id(0) % column_blocks * C + tl.arange(0, C)
    inside = column < columns
    token = tl.arange(0, BLOCK_T)
    total = tl.zeros([BLOCK_T, C], tl.float32)
    low = tl.load(reach + first_token)
    high = tl.load(first + tl.minimum(first_token + BLOCK_T, tokens))
    done = 0
    while low + done < high:
        start, end, row = load_spans(starts, ends, rows, low, done, high, first_token, tokens, spans, BLOCK_N)
        if tl.max(end, 0) > 0:
            mask = (end > 0)[:, None] & inside[None, :]
            winner = tl.load(argmax + row[:, None] * columns + column[None, :], mask=mask, other=0).to(tl.int32)
            winner = tl.where(mask, winner + start[:, None], -1)  # [N, C]
            source = grad_output + row[:, None] * grad_stride + max_column + column[None, :]
            grad = tl.load(source, mask=mask, other=0.0).to(tl.float32)
            wins = token[:, None, None] == winner[None, :, :]  # [T, N, C]
            total += tl.sum(tl.where(wins, grad[None, :, :], 0.0), 1)
        done += BLOCK_N
    add_and_store(None, grad_hidden, total, first_token, column, tokens, columns, BLOCK_T)


@triton.jit(do_not_specialize=["tokens", "spans", "heads"])
def attention_delta(
    grad_output,  # [N, .], dense rows
    hidden,  # [T, H], dense rows
    starts,
    ends,
    rows,
    scores,  # [T, heads], float32
    partial_delta,  # [column blocks, N, heads]
    tokens,
    spans,
    columns,
    heads,
    grad_stride,
    hidden_stride,
    attention_column,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """The forward of a tile of spans again, a head and a block of columns of it, times their gradients."""
    column_blocks = tl.cdiv(columns, C)
    program = tl.program_id(0)
    block = program % column_blocks
    head = program // column_blocks % heads
    column = block * C + tl.arange(0, C)
    inside = column < columns
    span = (program // column_blocks // heads).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = span < spans
    start = tl.load(starts + span, mask=there, other=0)
    end = tl.load(ends + span, mask=there, other=0)
    row = span
    if rows is not None:
        row = tl.load(rows + span, mask=there, other=-1)
    kept = there & (row >= 0) & (row < spans)
    valid = kept & (start >= 0) & (start < end) & (end <= tokens)
    low = tl.min(tl.where(valid, start, tokens)) // BLOCK_K * BLOCK_K
    extent = (tl.max(tl.where(valid, end, 0)) - low).to(tl.int32)
    from_token = tl.where(valid, start - low, 0).to(tl.int32)
    to_token = tl.where(valid, end - low, 0).to(tl.int32)
    pooled, _, mass = exact_window_product(
        hidden + low * hidden_stride + column[None, :], scores + low * heads + head, from_token, to_token, extent,
        inside, heads, hidden_stride, True, BLOCK, BLOCK_K, C, PRECISION, INTERPRETED,
    )  # fmt: skip
    source = grad_output + attention_column + head * columns + row[:, None] * grad_stride + column[None, :]
    grad = tl.load(source, mask=valid[:, None] & inside[None, :], other=0.0).to(tl.float32)
    dots = tl.sum(tl.where(inside[None, :], grad * softmax_share(pooled, mass, valid), 0.0), 1)
    place = (block * spans.to(tl.int64) + row) * heads + head
    tl.store(partial_delta + place, tl.where(valid, dots, 0.0), mask=kept)


@triton.jit(do_not_specialize=["tokens", "spans", "share", "table_rows", "table_columns"])
def table_backward(
    grad_output,  # [N, .], dense rows
    starts,
    ends,
    rows,
    table_index,  # [N] by output row, or None
    partial_table,  # [shares, table_rows, table_columns], float32
    tokens,
    spans,
    share,  # spans of a program
    table_rows,
    table_columns,
    grad_stride,
    width_column,
    BLOCK_N: tl.constexpr,
    C: tl.constexpr,
):
    """One row of the width table: the gradients of the share's spans that took it."""
    column_blocks = tl.cdiv(table_columns, C)
    program = tl.program_id(0)
    column = program % column_blocks * C + tl.arange(0, C)
    entry = program // column_blocks % table_rows
    part = (program // column_blocks // table_rows).to(tl.int64)
    inside = column < table_columns
    stop = tl.minimum(part * share + share, spans)
    total = tl.zeros([BLOCK_N, C], tl.float32)
    done = 0
    while part * share + done < stop:
        start, end, row = load_spans(starts, ends, rows, part * share, done, stop, 0, tokens, spans, BLOCK_N)
        if table_index is None:
            index = (tl.minimum(end - start, table_rows) - 1).to(tl.int64)
        else:
            index = tl.load(table_index + row, mask=end > start, other=-1)
        mask = ((end > start) & (index == entry))[:, None] & inside[None, :]
        grad = tl.load(grad_output + width_column + row[:, None] * grad_stride + column[None, :], mask=mask, other=0.0)
        total += grad.to(tl.float32)
        done += BLOCK_N
    target = partial_table + (part * table_rows + entry) * table_columns + column
    tl.store(target, tl.sum(total, 0), mask=inside)
