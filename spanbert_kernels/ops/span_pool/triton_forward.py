"""Span pooling's forward kernels in Triton.

`walk_forward` follows spans token by token. Spans that start together are nested, so each continues the running sum,
maximum and online softmax (Milakov and Gimelshein 2018) of the one before: a token is read once per first token instead
of once per span, and an enumeration costs one step a span.

`banded_forward` is the matrix product of a tile of sorted spans with their tokens, `A @ X`: row n of A holds the
weights of span n, 1 or those of a softmax, over the window from the tile's first token to its last. It is never stored.
The steps through the window begin at multiples of BLOCK_K tokens, so the order of a span's additions does not depend on
the spans beside it. A weight of 0 does not hide Inf or NaN (0 x Inf = NaN): where the product is not finite it is made
again without the elements that are not, and those are added to the spans that hold them.
"""

from __future__ import annotations

import triton
import triton.language as tl


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
    """The weighted tokens [N, C] over the weights' sum; a span whose scores are all -inf is like one of no token."""
    live = valid & (mass != 0)
    return tl.where(live[:, None], weighted / tl.where(live, mass, 1.0)[:, None], 0.0)


@triton.jit
def log_sum(peak, mass, valid):
    """The log-sum-exp of every span's scores; +inf, against which every weight is 0, where none of them weighs."""
    live = valid & (mass != 0)
    return tl.where(live, peak + tl.log(tl.where(live, mass, 1.0)), float("inf"))


@triton.jit
def walk_token(
    source,
    scores,
    position,
    limit,
    start,
    inside,
    head,
    heads,
    hidden_stride,
    total,
    largest,
    offset,
    weighted,
    peak,
    mass,
    SUM: tl.constexpr,
    MAX: tl.constexpr,
    ATTENTION: tl.constexpr,
    LANES: tl.constexpr,
):
    """One more token in the running results of each lane that has not reached its limit."""
    more = position < limit  # [L]
    x = tl.load(source + position[:, None] * hidden_stride, mask=more[:, None] & inside[None, :], other=0.0).to(
        tl.float32
    )  # [L, C]
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
    return position + more, total, largest, offset, weighted, peak, mass


@triton.jit
def write_width(table, table_index, entry, row, width, mask, table_rows, table_columns, C: tl.constexpr):
    """The width table's entries of a tile of spans, zeros for a span without tokens."""
    if table_index is None:
        index = (tl.minimum(width, table_rows) - 1).to(tl.int64)
    else:
        index = tl.load(table_index + row, mask=mask, other=0)
    held = mask & (width > 0) & (index >= 0) & (index < table_rows)
    source = table + index * table_columns
    done = 0
    while done < table_columns:
        column = done + tl.arange(0, C)
        inside = (column < table_columns)[None, :]
        value = tl.load(source[:, None] + column[None, :], mask=held[:, None] & inside, other=0.0)
        tl.store(entry[:, None] + column[None, :], value, mask=mask[:, None] & inside)
        done += C


@triton.jit(do_not_specialize=["tokens", "spans", "heads", "table_rows", "table_columns", "share"])
def walk_forward(
    hidden,  # [T, H], dense rows
    starts,  # [N]; not read for an enumeration
    ends,
    rows,  # [N] or None: the spans are in the order of the output rows
    first,  # [T + 1] of an enumeration, else None
    scores,  # [T, heads], float32
    table,  # [table_rows, table_columns]
    table_index,  # [N] by output row, or None
    output,  # [N, output_stride]
    argmax,  # [N, H] or None
    lse,  # [N, heads] or None
    tokens,
    spans,
    columns,
    heads,
    table_rows,
    table_columns,
    share,  # spans of a lane, of an enumeration tokens
    hidden_stride,
    output_stride,
    start_column,  # first output column of each part, None for a part not asked for
    end_column,
    mean_column,
    sum_column,
    max_column,
    attention_column,
    width_column,
    LANES: tl.constexpr,
    UNROLL: tl.constexpr,
    C: tl.constexpr,
):
    """A program is LANES walkers, each with its own share of the spans, that write their n-th span together."""
    column_blocks = tl.maximum(tl.cdiv(columns, C), 1)
    program = tl.program_id(0)
    block = program % column_blocks
    head = program // column_blocks % heads
    begin = ((program // column_blocks // heads).to(tl.int64) * LANES + tl.arange(0, LANES)) * share  # [L]
    column = block * C + tl.arange(0, C)
    inside = column < columns
    source = hidden + column[None, :]
    SUM: tl.constexpr = (mean_column is not None) or (sum_column is not None)
    MAX: tl.constexpr = max_column is not None
    ATTENTION: tl.constexpr = attention_column is not None

    if first is not None:
        start = begin - 1
        item = tl.load(first + tl.minimum(begin, tokens))
        stop = tl.load(first + tl.minimum(begin + share, tokens))
    else:
        start = begin * 0 - 1
        item = begin
        stop = tl.minimum(begin + share, spans)
    base = item  # of an enumeration: the first span of the token, and that of the next
    following = item
    position = begin * 0
    total = tl.zeros([LANES, C], tl.float32)
    largest = tl.full([LANES, C], -float("inf"), tl.float32)
    offset = tl.zeros([LANES, C], tl.int32)
    weighted = tl.zeros([LANES, C], tl.float32)
    peak = tl.full([LANES], -float("inf"), tl.float32)
    mass = tl.zeros([LANES], tl.float32)
    while tl.max(stop - item, 0) > 0:
        there = item < stop
        if first is not None:
            fresh = item == following
            start = tl.where(fresh, start + 1, start)
            base = tl.where(fresh, item, base)
            following = tl.load(first + start + 1, mask=there, other=-1)
            end = start + 1 + item - base
        else:
            start_before = start
            start = tl.load(starts + item, mask=there, other=0)
            end = tl.load(ends + item, mask=there, other=0)
            fresh = start != start_before
        position = tl.where(fresh, start, position)
        total = tl.where(fresh[:, None], 0.0, total)
        largest = tl.where(fresh[:, None], -float("inf"), largest)
        offset = tl.where(fresh[:, None], 0, offset)
        weighted = tl.where(fresh[:, None], 0.0, weighted)
        peak = tl.where(fresh, -float("inf"), peak)
        mass = tl.where(fresh, 0.0, mass)

        valid = there & (start >= 0) & (start < end) & (end <= tokens)
        if SUM or MAX or ATTENTION:
            limit = tl.where(valid, end, position)
            if UNROLL > 1:
                while tl.max(limit - position, 0) >= UNROLL:
                    for _ in tl.static_range(UNROLL):
                        position, total, largest, offset, weighted, peak, mass = walk_token(
                            source, scores, position, limit, start, inside, head, heads, hidden_stride,
                            total, largest, offset, weighted, peak, mass, SUM, MAX, ATTENTION, LANES,
                        )  # fmt: skip
            while tl.max(limit - position, 0) > 0:
                position, total, largest, offset, weighted, peak, mass = walk_token(
                    source, scores, position, limit, start, inside, head, heads, hidden_stride,
                    total, largest, offset, weighted, peak, mass, SUM, MAX, ATTENTION, LANES,
                )  # fmt: skip

        row = item
        if rows is not None:
            row = tl.load(rows + item, mask=there, other=-1)
        kept = there & (row >= 0) & (row < spans)
        mask = kept[:, None] & inside[None, :]
        held = valid[:, None]
        target = output + row[:, None] * output_stride + column[None, :]
        width = tl.where(valid, end - start, 0)
        if head == 0:
            if start_column is not None:
                x = tl.load(source + start[:, None] * hidden_stride, mask=mask & held, other=0.0)
                tl.store(target + start_column, x, mask=mask)
            if end_column is not None:
                x = tl.load(source + (end - 1)[:, None] * hidden_stride, mask=mask & held, other=0.0)
                tl.store(target + end_column, x, mask=mask)
            if mean_column is not None:
                mean = tl.where(held, total / tl.maximum(width, 1).to(tl.float32)[:, None], 0.0)
                tl.store(target + mean_column, mean.to(output.dtype.element_ty), mask=mask)
            if sum_column is not None:
                tl.store(target + sum_column, tl.where(held, total, 0.0).to(output.dtype.element_ty), mask=mask)
            if MAX:
                tl.store(target + max_column, tl.where(held, largest, 0.0).to(output.dtype.element_ty), mask=mask)
                if argmax is not None:
                    chosen = tl.where(held, offset, 0).to(argmax.dtype.element_ty)
                    tl.store(argmax + row[:, None] * columns + column[None, :], chosen, mask=mask)
            if width_column is not None and block == 0:
                entry = output + row * output_stride + width_column
                write_width(table, table_index, entry, row, width, kept, table_rows, table_columns, 32)
        if ATTENTION:
            value = softmax_share(weighted, mass, valid)
            tl.store(target + attention_column + head * columns, value.to(output.dtype.element_ty), mask=mask)
            if lse is not None and block == 0:
                tl.store(lse + row * heads + head, log_sum(peak, mass, valid), mask=kept)
        item += 1


@triton.jit
def window_step(
    accumulator,
    peak,
    mass,
    done,
    source,
    scores,
    start,
    end,
    extent,
    inside,
    heads,
    hidden_stride,
    SOFTMAX: tl.constexpr,
    SANITIZE: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """BLOCK_K more tokens of the window; positions count from its beginning."""
    token = done + tl.arange(0, BLOCK_K)
    there = token < extent
    x = tl.load(
        source + token.to(tl.int64)[:, None] * hidden_stride, mask=there[:, None] & inside[None, :], other=0.0
    )  # [K, C]
    if SANITIZE:
        x = tl.where(is_finite(x), x, 0.0)
    # Made as [K, N]: a thread then keeps the bounds of a span or two instead of half of them.
    held = (token[:, None] >= start[None, :]) & (token[:, None] < end[None, :])
    if SOFTMAX:
        score = tl.load(scores + token.to(tl.int64) * heads, mask=there, other=-float("inf"))
        score = tl.where(held, score[:, None], -float("inf"))
        peak_before = peak
        peak, subtracted = softmax_step(peak, tl.max(score, 0))
        weights = tl.where(held, tl.exp(score - subtracted[None, :]), 0.0)
        factor = tl.exp(peak_before - subtracted)
        mass = mass * factor + tl.sum(weights, 0)
        accumulator = accumulator * factor[:, None]
    else:
        weights = tl.where(held, 1.0, 0.0)
    return add_product(accumulator, tl.trans(weights), x, not SOFTMAX, PRECISION), peak, mass


@triton.jit
def window_product(
    source,
    scores,
    start,
    end,
    extent,
    inside,
    heads,
    hidden_stride,
    SOFTMAX: tl.constexpr,
    SANITIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    accumulator = tl.zeros([BLOCK, C], tl.float32)
    peak = tl.full([BLOCK], -float("inf"), tl.float32)
    mass = tl.zeros([BLOCK], tl.float32)
    if SANITIZE or INTERPRETED:
        done = 0
        while done < extent:
            accumulator, peak, mass = window_step(
                accumulator, peak, mass, done, source, scores, start, end, extent, inside, heads, hidden_stride,
                SOFTMAX, SANITIZE, BLOCK_K, PRECISION,
            )  # fmt: skip
            done += BLOCK_K
    else:
        # The same loop, in the form that the compiler pipelines.
        for done in tl.range(0, extent, BLOCK_K):
            accumulator, peak, mass = window_step(
                accumulator, peak, mass, done, source, scores, start, end, extent, inside, heads, hidden_stride,
                SOFTMAX, SANITIZE, BLOCK_K, PRECISION,
            )  # fmt: skip
    return accumulator, peak, mass


@triton.jit
def exact_window_product(
    source,
    scores,
    start,
    end,
    extent,
    inside,
    heads,
    hidden_stride,
    SOFTMAX: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    """`window_product`, where Inf and NaN reach the spans that hold them, and no other."""
    pooled, peak, mass = window_product(
        source, scores, start, end, extent, inside, heads, hidden_stride,
        SOFTMAX, False, BLOCK, BLOCK_K, C, PRECISION, INTERPRETED,
    )  # fmt: skip
    if tl.max(tl.where(is_finite(pooled), 0, 1)) > 0:
        pooled, peak, mass = window_product(
            source, scores, start, end, extent, inside, heads, hidden_stride,
            SOFTMAX, True, BLOCK, BLOCK_K, C, PRECISION, INTERPRETED,
        )  # fmt: skip
        token = tl.min(start)
        while token < extent:
            x = tl.load(source + token.to(tl.int64) * hidden_stride, mask=inside[None, :], other=0.0).to(
                tl.float32
            )  # [1, C]
            held = (token >= start) & (token < end)
            added = tl.zeros([BLOCK, C], tl.float32) + x
            if SOFTMAX:
                subtracted = tl.where(peak == -float("inf"), 0.0, peak)
                added = added * tl.exp(tl.load(scores + token.to(tl.int64) * heads) - subtracted)[:, None]
            pooled = tl.where(held[:, None] & (is_finite(x) == 0), pooled + added, pooled)
            token += 1
    return pooled, peak, mass


@triton.jit(do_not_specialize=["tokens", "spans", "heads", "table_rows", "table_columns"])
def banded_forward(
    hidden,  # the arguments of walk_forward; there are `starts` and `ends`
    starts,
    ends,
    rows,
    scores,
    table,
    table_index,
    output,
    lse,
    tokens,
    spans,
    columns,
    heads,
    table_rows,
    table_columns,
    hidden_stride,
    output_stride,
    start_column,
    end_column,
    mean_column,
    sum_column,
    attention_column,  # its product is made where the columns of the mean and the sum are None
    width_column,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
):
    column_blocks = tl.maximum(tl.cdiv(columns, C), 1)
    program = tl.program_id(0)
    block = program % column_blocks
    head = program // column_blocks % heads
    column = block * C + tl.arange(0, C)
    inside = column < columns
    SOFTMAX: tl.constexpr = attention_column is not None
    SUM: tl.constexpr = (mean_column is not None) or (sum_column is not None)

    span = (program // column_blocks // heads).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = span < spans
    start = tl.load(starts + span, mask=there, other=0)
    end = tl.load(ends + span, mask=there, other=0)
    valid = (start >= 0) & (start < end) & (end <= tokens)

    if SUM or SOFTMAX:
        low = tl.min(tl.where(valid, start, tokens)) // BLOCK_K * BLOCK_K
        extent = (tl.max(tl.where(valid, end, 0)) - low).to(tl.int32)
        from_token = tl.where(valid, start - low, 0).to(tl.int32)
        to_token = tl.where(valid, end - low, 0).to(tl.int32)
        source = hidden + low * hidden_stride + column[None, :]
        head_scores = scores
        if SOFTMAX:
            head_scores = scores + low * heads + head
        pooled, peak, mass = exact_window_product(
            source, head_scores, from_token, to_token, extent, inside, heads, hidden_stride,
            SOFTMAX, BLOCK, BLOCK_K, C, PRECISION, INTERPRETED,
        )  # fmt: skip

    row = span
    if rows is not None:
        row = tl.load(rows + span, mask=there, other=-1)
    kept = there & (row >= 0) & (row < spans)
    width = tl.where(valid, end - start, 0)
    mask = kept[:, None] & inside[None, :]
    target = output + row[:, None] * output_stride + column[None, :]
    if SOFTMAX:
        value = softmax_share(pooled, mass, valid)
        tl.store(target + attention_column + head * columns, value.to(output.dtype.element_ty), mask=mask)
        if lse is not None and block == 0:
            tl.store(lse + row * heads + head, log_sum(peak, mass, valid), mask=kept)
    if mean_column is not None:
        mean = pooled / tl.maximum(width, 1).to(tl.float32)[:, None]
        tl.store(target + mean_column, mean.to(output.dtype.element_ty), mask=mask)
    if sum_column is not None:
        tl.store(target + sum_column, pooled.to(output.dtype.element_ty), mask=mask)
    if head == 0:
        source_rows = hidden + column[None, :]
        held_mask = mask & valid[:, None]
        if start_column is not None:
            x = tl.load(source_rows + start[:, None] * hidden_stride, mask=held_mask, other=0.0)
            tl.store(target + start_column, x, mask=mask)
        if end_column is not None:
            x = tl.load(source_rows + (end - 1)[:, None] * hidden_stride, mask=held_mask, other=0.0)
            tl.store(target + end_column, x, mask=mask)
        if width_column is not None and block == 0:
            entry = output + row * output_stride + width_column
            write_width(table, table_index, entry, row, width, kept, table_rows, table_columns, 32)
