"""Attention's backward kernels in Triton: gradients without atomics, in a fixed order of additions.

With P the softmax weights, dP = dO V^T behind dropout and delta = rowsum(P dP): dS = P (dP - delta), dQ = scale dS K,
dK = scale dS^T Q, dV = P^T dO (FlashAttention-2, Dao 2023). P is W = exp(S - lse), made again, times share = 1 /
rowsum(W): a lse of 1000 is rounded by 3e-5, so W does not add up to 1, and where one weight is nearly 1, dS is a
difference far smaller than that. In delta = rowsum(dO * O) the rounding of O to 16 bits would be left in it.

So queries go through the keys twice, `query_backward` with SUMS for delta and share, then without for dQ, before those
of `triton_kernels.py`. A softmax over one key is 1 whatever its score and has no dS: its share is negative.

The scale is kept out of dS, which is rounded to the dtype of the inputs. Letters of shapes: `triton_forward.py`.
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
def query_step(
    total,  # [Q, C]
    mass,  # [Q], of W
    moment,  # [Q], of W dP
    number,  # [K], of keys
    queries,  # [Q, C]
    grads,  # [Q, C], of the output
    lse,  # [Q], in base 2
    delta,  # [Q]
    share,  # [Q]
    query,  # [Q]
    query_there,  # [Q]
    first,
    last,
    grad_output,  # [1, C], as q, k and v: to row 0 of the head
    q,
    k,
    v,
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
    SUMS: tl.constexpr,
):
    """A block of keys more, for the sums of rows or for the rest."""
    row, there = block_rows(first, last, anchors, documents, seed, K)
    keys = load_rows(k + own, row, there, k_stride, inside)
    values = keys
    if not CHUNKED:
        values = load_rows(v, row, there, v_stride, inside)
    scores = inner_products(
        queries, keys, q, query, query_there, q_stride, k, row, there, k_stride, head_dim, CHUNKED, Q, K, C, PRECISION
    )
    weights = tl.where(there[None, :], tl.exp2(scores * factor - lse[:, None]), 0.0)
    slopes = inner_products(
        grads, values, grad_output, query, query_there, grad_stride, v, row, there, v_stride, head_dim,
        CHUNKED, Q, K, C, PRECISION,
    )  # fmt: skip
    if seed is not None:
        slopes = tl.where(kept_entries(seed, threshold, query, first, head, Q, K), slopes / kept_share, 0.0)
    if SUMS:
        mass += tl.sum(weights, 1)
        moment += tl.sum(weights * slopes, 1)
        number += there.to(tl.int32)
    else:
        slopes = weights * tl.where(share < 0.0, 0.0, share)[:, None] * (slopes - delta[:, None])
        total = product(slopes, keys, total, PRECISION)
    return total, mass, moment, number


@triton.jit
def query_ranges(
    total,
    mass,
    moment,
    number,
    queries,
    grads,
    lse,
    delta,
    share,
    query,
    query_there,
    begin,
    own_begin,
    own_end,
    end,
    grad_output,
    q,
    k,
    v,
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
    SUMS: tl.constexpr,
):
    """All keys of two ranges."""
    before = count_blocks(begin, own_begin, K)
    blocks = before + count_blocks(own_end, end, K)
    if PRECISION == "ieee":
        block = 0
        while block < blocks:
            first, last = block_bounds(block, before, begin, own_begin, own_end, end, K)
            total, mass, moment, number = query_step(
                total, mass, moment, number, queries, grads, lse, delta, share, query, query_there, first, last,
                grad_output, q, k, v, anchors, seed, head, documents, head_dim, grad_stride, q_stride, k_stride,
                v_stride, own, inside, factor, threshold, kept_share, CHUNKED, Q, K, C, PRECISION, SUMS,
            )  # fmt: skip
            block += 1
    else:
        # The same loop, in the form that the compiler pipelines.
        for block in tl.range(0, blocks):
            first, last = block_bounds(block, before, begin, own_begin, own_end, end, K)
            total, mass, moment, number = query_step(
                total, mass, moment, number, queries, grads, lse, delta, share, query, query_there, first, last,
                grad_output, q, k, v, anchors, seed, head, documents, head_dim, grad_stride, q_stride, k_stride,
                v_stride, own, inside, factor, threshold, kept_share, CHUNKED, Q, K, C, PRECISION, SUMS,
            )  # fmt: skip
    return total, mass, moment, number


@triton.jit
def row_statistics(mass, moment, number, softmaxes):
    """`delta`, and `share` for the mean of so many softmaxes."""
    mass = tl.where(mass == 0.0, 1.0, mass)
    share = 1.0 / (mass * softmaxes)
    return moment / mass, tl.where(tl.sum(number, 0) == 1, -share, share)


@triton.jit(do_not_specialize=["query_rows", "documents", "heads", "parts", "include_self", "threshold"])
def query_backward(
    grad_output,  # [query rows, heads, head_dim], like q, k and v of any row and head stride
    q,
    k,
    v,
    lse,  # [heads, query rows]
    delta,  # [heads, query rows]
    share,  # [heads, query rows]
    grad_q,  # [query rows, heads, head_dim]
    work,  # [6, documents], AttentionWork.documents
    link_offsets,  # [documents + 1] or None
    links,
    tiles,  # [tiles, 2] of queries
    anchors,  # the bounds of the keys in `work`, where keys are anchors, else None
    seed,  # [1], or None without dropout
    query_rows,
    documents,
    heads,
    head_dim,
    parts,  # blocks of a tile
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
    SUMS: tl.constexpr,
):
    document, head, first, last = find_tile(tiles, work, documents, heads, parts, Q)
    if first >= last:
        return
    own = tl.program_id(1) * C
    column = own + tl.arange(0, C)
    inside = column < head_dim
    query = first + tl.arange(0, Q)
    there = query < last
    grad_output += head * grad_head_stride + tl.arange(0, C)[None, :]
    q += head * q_head_stride + tl.arange(0, C)[None, :]
    k += head * k_head_stride + tl.arange(0, C)[None, :]
    v += head * v_head_stride + tl.arange(0, C)[None, :]
    queries = load_rows(q + own, query, there, q_stride, inside)
    grads = load_rows(grad_output + own, query, there, grad_stride, inside)
    sums = tl.load(lse + head * query_rows + query, mask=there, other=0.0) * LOG2_E
    bounds = work + 2 * documents
    factor = scale * LOG2_E
    total = tl.zeros([Q, C], tl.float32)
    mass = tl.zeros([Q], tl.float32)
    moment = tl.zeros([Q], tl.float32)
    number = tl.zeros([K], tl.int32)
    delta += head * query_rows + query
    share += head * query_rows + query
    deltas = mass
    shares = mass
    if not SUMS:
        deltas = tl.load(delta, mask=there, other=0.0)
        shares = tl.load(share, mask=there, other=0.0)
    if links is None:
        begin, own_begin, own_end, end = seen_rows(work, bounds, None, 0, document, documents, include_self)
        total, mass, moment, number = query_ranges(
            total, mass, moment, number, queries, grads, sums, deltas, shares, query, there, begin, own_begin,
            own_end, end, grad_output, q, k, v, anchors, seed, head, documents, head_dim, grad_stride, q_stride,
            k_stride, v_stride, own, inside, factor, threshold, kept_share, CHUNKED, Q, K, C, PRECISION, SUMS,
        )  # fmt: skip
    else:
        place = tl.load(link_offsets + document)
        done = place * 0
        while place < tl.load(link_offsets + document + 1):
            begin, _, _, end = seen_rows(work, bounds, links, place, document, documents, 0)
            total, mass, moment, number = query_step(
                total, mass, moment, number, queries, grads, sums, deltas, shares, query, there, begin + done, end,
                grad_output, q, k, v, anchors, seed, head, documents, head_dim, grad_stride, q_stride, k_stride,
                v_stride, own, inside, factor, threshold, kept_share, CHUNKED, Q, K, C, PRECISION, SUMS,
            )  # fmt: skip
            place, done = next_block(place, done, begin, end, K)
    if SUMS:
        deltas, shares = row_statistics(mass, moment, number, 1)
        tl.store(delta, deltas, mask=there)
        tl.store(share, shares, mask=there)
    else:
        target = grad_q + (query[:, None] * heads + head) * head_dim + column[None, :]
        tl.store(target, (total * scale).to(grad_q.dtype.element_ty), mask=there[:, None] & inside[None, :])
