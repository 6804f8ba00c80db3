"""Attention's backward kernels in Triton: gradients without atomics, in a fixed order of additions.

With P the softmax weights, made again from the log-sum-exp, dP = dO V^T behind dropout and delta = rowsum(dO * O):
dS = P (dP - delta), dQ = scale dS K, dK = scale dS^T Q, dV = P^T dO (FlashAttention-2, Dao 2023). `query_backward` is
the loop of the forward, for dQ, and leaves delta. The kernels that go by keys: `triton_kernels.py`.

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
def row_products(left, right, row, there, left_stride, right_stride, columns, R: tl.constexpr, C: tl.constexpr):
    """The dot products `[R]` of the rows of two tensors over all columns, in float32."""
    total = tl.zeros([R], tl.float32)
    done = 0
    while done < columns:
        inside = done + tl.arange(0, C) < columns
        x = load_rows(left + done, row, there, left_stride, inside).to(tl.float32)
        total += tl.sum(x * load_rows(right + done, row, there, right_stride, inside).to(tl.float32), 1)
        done += C
    return total


@triton.jit
def query_step(
    total,  # [Q, C]
    queries,  # [Q, C]
    grads,  # [Q, C], of the output
    lse,  # [Q], in base 2
    delta,  # [Q]
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
):
    """A block of keys more."""
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
    return product(weights * (slopes - delta[:, None]), keys, total, PRECISION)


@triton.jit
def query_ranges(
    total,
    queries,
    grads,
    lse,
    delta,
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
):
    """All keys of two ranges."""
    before = count_blocks(begin, own_begin, K)
    blocks = before + count_blocks(own_end, end, K)
    if PRECISION == "ieee":
        block = 0
        while block < blocks:
            first, last = block_bounds(block, before, begin, own_begin, own_end, end, K)
            total = query_step(
                total, queries, grads, lse, delta, query, query_there, first, last, grad_output, q, k, v, anchors, seed,
                head, documents, head_dim, grad_stride, q_stride, k_stride, v_stride, own, inside, factor, threshold,
                kept_share, CHUNKED, Q, K, C, PRECISION,
            )  # fmt: skip
            block += 1
    else:
        # The same loop, in the form that the compiler pipelines.
        for block in tl.range(0, blocks):
            first, last = block_bounds(block, before, begin, own_begin, own_end, end, K)
            total = query_step(
                total, queries, grads, lse, delta, query, query_there, first, last, grad_output, q, k, v, anchors, seed,
                head, documents, head_dim, grad_stride, q_stride, k_stride, v_stride, own, inside, factor, threshold,
                kept_share, CHUNKED, Q, K, C, PRECISION,
            )  # fmt: skip
    return total


@triton.jit(do_not_specialize=["query_rows", "documents", "heads", "parts", "include_self", "threshold"])
def query_backward(
    grad_output,  # [query rows, heads, head_dim], like q, k and v of any row and head stride
    q,
    k,
    v,
    output,  # [query rows, heads, head_dim]
    lse,  # [heads, query rows]
    delta,  # [heads, query rows]
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
    output += head * head_dim + tl.arange(0, C)[None, :]
    queries = load_rows(q + own, query, there, q_stride, inside)
    grads = load_rows(grad_output + own, query, there, grad_stride, inside)
    deltas = row_products(grad_output, output, query, there, grad_stride, heads * head_dim, head_dim, Q, C)
    tl.store(delta + head * query_rows + query, deltas, mask=there & (own == 0))
    sums = tl.load(lse + head * query_rows + query, mask=there, other=0.0) * LOG2_E
    bounds = work + 2 * documents
    factor = scale * LOG2_E
    total = tl.zeros([Q, C], tl.float32)
    if links is None:
        begin, own_begin, own_end, end = seen_rows(work, bounds, None, 0, document, documents, include_self)
        total = query_ranges(
            total, queries, grads, sums, deltas, query, there, begin, own_begin, own_end, end, grad_output, q, k, v,
            anchors, seed, head, documents, head_dim, grad_stride, q_stride, k_stride, v_stride, own, inside, factor,
            threshold, kept_share, CHUNKED, Q, K, C, PRECISION,
        )  # fmt: skip
    else:
        place = tl.load(link_offsets + document)
        done = place * 0
        while place < tl.load(link_offsets + document + 1):
            begin, _, _, end = seen_rows(work, bounds, links, place, document, documents, 0)
            total = query_step(
                total, queries, grads, sums, deltas, query, there, begin + done, end, grad_output, q, k, v, anchors,
                seed, head, documents, head_dim, grad_stride, q_stride, k_stride, v_stride, own, inside, factor,
                threshold, kept_share, CHUNKED, Q, K, C, PRECISION,
            )  # fmt: skip
            place, done = next_block(place, done, begin, end, K)
    target = grad_q + (query[:, None] * heads + head) * head_dim + column[None, :]
    tl.store(target, (total * scale).to(grad_q.dtype.element_ty), mask=there[:, None] & inside[None, :])
