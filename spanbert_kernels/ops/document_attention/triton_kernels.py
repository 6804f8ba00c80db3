"""The backward kernels of attention that go by keys, in Triton: a tile of one document's keys through queries.

`key_backward` takes it through all queries that see it. `whole_backward` is for short documents that see themselves
alone, whose scores are one tile: it makes all gradients from that, with five products in place of seven, and nothing is
read twice. The formulas are those of `triton_backward.py`; letters of shapes: `triton_forward.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spanbert_kernels.ops.document_attention.triton_forward import (
    LOG2_E,
    block_bounds,
    block_rows,
    count_blocks,
    find_tile,
    inner_products,
    kept_entries,
    load_rows,
    next_block,
    product,
    seen_rows,
)


@triton.jit
def key_step(
    total_k,  # [K, C]
    total_v,  # [K, C]
    keys,  # [K, C]
    values,  # [K, C]
    key,  # [K]
    key_there,  # [K]
    first_key,
    first,
    last,
    grad_output,  # [1, C], as q, k and v: to row 0 of the head
    q,
    k,
    v,
    lse,  # of the head
    delta,
    share,
    anchors,
    seed,
    head,
    documents,
    head_dim,
    grad_stride,
    q_stride,
    k_stride,
    v_stride,
    own,  # the first column of the results
    inside,
    factor,
    threshold,
    kept_share,
    CHUNKED: tl.constexpr,
    Q: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block of queries more. Scores are `[K, Q]`, which makes them left sides of products as they are."""
    row, there = block_rows(first, last, anchors, documents, None, Q)
    queries = load_rows(q + own, row, there, q_stride, inside)
    grads = load_rows(grad_output + own, row, there, grad_stride, inside)
    sums = tl.load(lse + row, mask=there, other=float("inf")) * LOG2_E  # no weight where there is no query
    deltas = tl.load(delta + row, mask=there, other=0.0)
    shares = tl.load(share + row, mask=there, other=0.0)
    scores = inner_products(
        keys, queries, k, key, key_there, k_stride, q, row, there, q_stride, head_dim, CHUNKED, K, Q, C, PRECISION
    )
    weights = tl.exp2(scores * factor - sums[None, :]) * tl.abs(shares)[None, :]
    if seed is not None:
        # Less than 0 where it is dropped: one tile in place of two.
        weights = tl.where(tl.trans(kept_entries(seed, threshold, row, first_key, head, Q, K)), weights, -weights)
    total_v = product(tl.where(weights < 0, 0.0, weights), grads, total_v, PRECISION)
    slopes = inner_products(
        values, grads, v, key, key_there, v_stride, grad_output, row, there, grad_stride, head_dim,
        CHUNKED, K, Q, C, PRECISION,
    )  # fmt: skip
    slopes = tl.where(weights < 0, 0.0, slopes / kept_share)
    slopes = tl.where(shares[None, :] < 0, 0.0, tl.abs(weights) * (slopes - deltas[None, :]))
    total_k = product(slopes, queries, total_k, PRECISION)
    return total_k, total_v


@triton.jit
def key_ranges(
    total_k,
    total_v,
    keys,
    values,
    key,
    key_there,
    first_key,
    begin,
    own_begin,
    own_end,
    end,
    grad_output,
    q,
    k,
    v,
    lse,
    delta,
    share,
    anchors,
    seed,
    head,
    documents,
    head_dim,
    grad_stride,
    q_stride,
    k_stride,
    v_stride,
    own,
    inside,
    factor,
    threshold,
    kept_share,
    CHUNKED: tl.constexpr,
    Q: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """All queries of two ranges."""
    before = count_blocks(begin, own_begin, Q)
    blocks = before + count_blocks(own_end, end, Q)
    if PRECISION == "ieee":
        block = 0
        while block < blocks:
            first, last = block_bounds(block, before, begin, own_begin, own_end, end, Q)
            total_k, total_v = key_step(
                total_k, total_v, keys, values, key, key_there, first_key, first, last, grad_output, q, k, v, lse,
                delta, share, anchors, seed, head, documents, head_dim, grad_stride, q_stride, k_stride, v_stride, own,
                inside, factor, threshold, kept_share, CHUNKED, Q, K, C, PRECISION,
            )  # fmt: skip
            block += 1
    else:
        for block in tl.range(0, blocks):
            first, last = block_bounds(block, before, begin, own_begin, own_end, end, Q)
            total_k, total_v = key_step(
                total_k, total_v, keys, values, key, key_there, first_key, first, last, grad_output, q, k, v, lse,
                delta, share, anchors, seed, head, documents, head_dim, grad_stride, q_stride, k_stride, v_stride, own,
                inside, factor, threshold, kept_share, CHUNKED, Q, K, C, PRECISION,
            )  # fmt: skip
    return total_k, total_v


@triton.jit(do_not_specialize=["query_rows", "documents", "heads", "parts", "size", "include_self", "threshold"])
def key_backward(
    grad_output,  # [query rows, heads, head_dim], like q, k and v of any row and head stride
    q,
    k,
    v,
    lse,  # [heads, size]
    delta,  # [heads, size]
    share,  # [heads, size]
    grad_k,  # [key rows, heads, head_dim]
    grad_v,
    work,  # [6, documents], AttentionWork.documents
    link_offsets,  # [documents + 1] or None: the links back
    links,
    tiles,  # [tiles, 2] of keys
    anchors,  # the bounds of the queries in `work`, where queries are anchors, else None
    slots,  # [links] or None: PairStatistics.back_slots
    seed,  # [1], or None without dropout
    query_rows,
    documents,
    heads,
    head_dim,
    parts,  # blocks of a tile
    size,  # statistics of a head: one a query, or more, where each key document has a softmax of its own
    grad_stride,
    grad_head_stride,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    include_self,
    scale,
    threshold,
    kept_share,
    CHUNKED: tl.constexpr,
    Q: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    document, head, first, last = find_tile(tiles, work + 2 * documents, documents, heads, parts, K)
    if first >= last:
        return
    own = tl.program_id(1) * C
    column = own + tl.arange(0, C)
    inside = column < head_dim
    key, there = block_rows(first, last, None, documents, seed, K)
    grad_output += head * grad_head_stride + tl.arange(0, C)[None, :]
    q += head * q_head_stride + tl.arange(0, C)[None, :]
    k += head * k_head_stride + tl.arange(0, C)[None, :]
    v += head * v_head_stride + tl.arange(0, C)[None, :]
    keys = load_rows(k + own, key, there, k_stride, inside)
    values = load_rows(v + own, key, there, v_stride, inside)
    lse += head * size
    delta += head * size
    share += head * size
    factor = scale * LOG2_E
    total_k = tl.zeros([K, C], tl.float32)
    total_v = tl.zeros([K, C], tl.float32)
    if links is None:
        if size > query_rows:
            place = document - tl.load(work + 4 * documents + document)
            lse += place * query_rows
            delta += place * query_rows
            share += place * query_rows
        begin, own_begin, own_end, end = seen_rows(work, work, None, 0, document, documents, include_self)
        total_k, total_v = key_ranges(
            total_k, total_v, keys, values, key, there, first, begin, own_begin, own_end, end, grad_output, q, k, v,
            lse, delta, share, anchors, seed, head, documents, head_dim, grad_stride, q_stride, k_stride, v_stride, own,
            inside, factor, threshold, kept_share, CHUNKED, Q, K, C, PRECISION,
        )  # fmt: skip
    else:
        place = tl.load(link_offsets + document)
        done = place * 0
        while place < tl.load(link_offsets + document + 1):
            begin, _, _, end = seen_rows(work, work, links, place, document, documents, 0)
            slot = place * 0
            if slots is not None:
                slot = tl.load(slots + place)
            total_k, total_v = key_step(
                total_k, total_v, keys, values, key, there, first, begin + done, end, grad_output, q, k, v, lse + slot,
                delta + slot, share + slot, anchors, seed, head, documents, head_dim, grad_stride, q_stride, k_stride,
                v_stride, own, inside, factor, threshold, kept_share, CHUNKED, Q, K, C, PRECISION,
            )  # fmt: skip
            place, done = next_block(place, done, begin, end, Q)
    target = (key[:, None] * heads + head) * head_dim + column[None, :]
    mask = there[:, None] & inside[None, :]
    tl.store(grad_k + target, (total_k * scale).to(grad_k.dtype.element_ty), mask=mask)
    tl.store(grad_v + target, (total_v / kept_share).to(grad_v.dtype.element_ty), mask=mask)


@triton.jit
def rounded(x, dtype: tl.constexpr, PRECISION: tl.constexpr):
    """In the dtype that `product` takes, before it is transposed; not in the interpreter, whose bfloat16 is cut off."""
    if PRECISION != "ieee":
        x = x.to(dtype)
    return x


@triton.jit(do_not_specialize=["query_rows", "documents", "heads", "threshold"])
def whole_backward(
    grad_output,  # [T, heads, head_dim], like q, k and v of any row and head stride
    q,
    k,
    v,
    lse,  # [heads, T]
    grad_q,  # [T, heads, head_dim]
    grad_k,
    grad_v,
    work,  # [6, documents], AttentionWork.documents
    tiles,  # [tiles, 2]
    seed,  # [1], or None without dropout
    query_rows,
    documents,
    heads,
    head_dim,
    grad_stride,
    grad_head_stride,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    scale,
    threshold,
    kept_share,
    Q: tl.constexpr,  # rows of the scores at a time
    K: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    document, head, first, last = find_tile(tiles, work, documents, heads, 1, K)
    if (first >= last) | (first > tl.load(work + document)):
        return  # the tile of a document's first rows takes all of them
    column = tl.arange(0, C)
    inside = column < head_dim
    row, there = block_rows(first, last, None, documents, seed, K)
    place = head * head_dim + column[None, :]
    q += head * q_head_stride + column[None, :]
    grad_output += head * grad_head_stride + column[None, :]
    keys = load_rows(k + head * k_head_stride + column[None, :], row, there, k_stride, inside)
    values = load_rows(v + head * v_head_stride + column[None, :], row, there, v_stride, inside)
    total_k = tl.zeros([K, C], tl.float32)
    total_v = tl.zeros([K, C], tl.float32)
    slope_scale = tl.where(last - first == 1, 0.0, scale)  # a softmax over one key is 1 whatever its score
    for part in tl.range(0, K // Q):
        query = first + part * Q + tl.arange(0, Q)
        query_there = query < last
        mask = query_there[:, None] & inside[None, :]
        target = query[:, None] * heads * head_dim + place
        queries = load_rows(q, query, query_there, q_stride, inside)
        grads = load_rows(grad_output, query, query_there, grad_stride, inside)
        sums = tl.load(lse + head * query_rows + query, mask=query_there, other=float("inf")) * LOG2_E
        scores = product(queries, tl.trans(keys), tl.zeros([Q, K], tl.float32), PRECISION) * (scale * LOG2_E)
        weights = tl.where(there[None, :], tl.exp2(scores - sums[:, None]), 0.0)
        mass = tl.sum(weights, 1)
        weights *= (1.0 / tl.where(mass == 0.0, 1.0, mass))[:, None]
        if seed is not None:
            # Less than 0 where it is dropped: one tile in place of two.
            weights = tl.where(kept_entries(seed, threshold, query, first, head, Q, K), weights, -weights)
        kept_weights = rounded(tl.where(weights < 0, 0.0, weights), grads.dtype, PRECISION)
        total_v = product(tl.trans(kept_weights), grads, total_v, PRECISION)
        slopes = product(grads, tl.trans(values), tl.zeros([Q, K], tl.float32), PRECISION)
        slopes = tl.where(weights < 0, 0.0, slopes / kept_share)
        weights = tl.abs(weights)
        delta = tl.sum(weights * slopes, 1)
        slopes = rounded(weights * (slopes - delta[:, None]), keys.dtype, PRECISION)
        total_k = product(tl.trans(slopes), queries, total_k, PRECISION)
        total_q = product(slopes, keys, tl.zeros([Q, C], tl.float32), PRECISION) * slope_scale
        tl.store(grad_q + target, total_q.to(grad_q.dtype.element_ty), mask=mask)
    target = row[:, None] * heads * head_dim + place
    mask = there[:, None] & inside[None, :]
    tl.store(grad_k + target, (total_k * slope_scale).to(grad_k.dtype.element_ty), mask=mask)
    tl.store(grad_v + target, (total_v / kept_share).to(grad_v.dtype.element_ty), mask=mask)
