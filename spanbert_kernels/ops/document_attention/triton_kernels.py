"""The backward of short documents that see themselves alone, in Triton: all gradients from one tile of scores.

The gradients are those of `triton_backward.py`, with five products in place of seven, and nothing is read twice.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spanbert_kernels.ops.document_attention.triton_forward import (
    LOG2_E,
    block_rows,
    find_tile,
    kept_entries,
    load_rows,
    product,
)


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
    output,  # [T, heads, head_dim]
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
    for part in tl.range(0, K // Q):
        query = first + part * Q + tl.arange(0, Q)
        query_there = query < last
        mask = query_there[:, None] & inside[None, :]
        target = query[:, None] * heads * head_dim + place
        queries = load_rows(q, query, query_there, q_stride, inside)
        grads = load_rows(grad_output, query, query_there, grad_stride, inside)
        outputs = tl.load(output + target, mask=mask, other=0.0)
        delta = tl.sum(grads.to(tl.float32) * outputs.to(tl.float32), 1)
        sums = tl.load(lse + head * query_rows + query, mask=query_there, other=float("inf")) * LOG2_E
        scores = product(queries, tl.trans(keys), tl.zeros([Q, K], tl.float32), PRECISION) * (scale * LOG2_E)
        weights = tl.where(there[None, :], tl.exp2(scores - sums[:, None]), 0.0)
        if seed is not None:
            # Less than 0 where it is dropped: one tile in place of two.
            weights = tl.where(kept_entries(seed, threshold, query, first, head, Q, K), weights, -weights)
        kept_weights = rounded(tl.where(weights < 0, 0.0, weights), grads.dtype, PRECISION)
        total_v = product(tl.trans(kept_weights), grads, total_v, PRECISION)
        slopes = product(grads, tl.trans(values), tl.zeros([Q, K], tl.float32), PRECISION)
        slopes = tl.where(weights < 0, 0.0, slopes / kept_share)
        slopes = rounded(tl.abs(weights) * (slopes - delta[:, None]), keys.dtype, PRECISION)
        total_k = product(tl.trans(slopes), queries, total_k, PRECISION)
        total_q = product(slopes, keys, tl.zeros([Q, C], tl.float32), PRECISION) * scale
        tl.store(grad_q + target, total_q.to(grad_q.dtype.element_ty), mask=mask)
    target = row[:, None] * heads * head_dim + place
    mask = there[:, None] & inside[None, :]
    tl.store(grad_k + target, (total_k * scale).to(grad_k.dtype.element_ty), mask=mask)
    tl.store(grad_v + target, (total_v / kept_share).to(grad_v.dtype.element_ty), mask=mask)
