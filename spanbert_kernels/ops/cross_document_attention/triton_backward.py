"""The backward of pairwise attention in Triton, as far as the queries.

A document's softmax is one n-th of the output, n the number of documents seen. With its log-sum-exp raised by log n the
weights come out divided, and everything is as in the joint softmax, but that each document has a log-sum-exp and a
delta, the sum of P dP over its keys, of its own. `pairwise_backward` leaves both for document_attention's
`key_backward`. Letters of shapes: document_attention's `triton_forward.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spanbert_kernels.ops.cross_document_attention.triton_forward import pair_slot, seen_document, seen_list
from spanbert_kernels.ops.document_attention.triton_backward import query_ranges
from spanbert_kernels.ops.document_attention.triton_forward import (
    LOG2_E,
    block_rows,
    find_tile,
    inner_products,
    kept_entries,
    load_rows,
)


@triton.jit(do_not_specialize=["query_rows", "documents", "heads", "parts", "size", "include_self", "threshold"])
def pairwise_backward(
    grad_output,  # [query rows, heads, head_dim], like q, k and v of any row and head stride
    q,
    k,
    v,
    lse,  # [heads, size]
    raised,  # [heads, size]: the log-sum-exps raised by log n
    delta,  # [heads, size]
    grad_q,  # [query rows, heads, head_dim]
    work,  # [6, documents], AttentionWork.documents
    link_offsets,  # [documents + 1] or None
    links,
    tiles,  # [tiles, 2] of queries
    slots,  # [links] or None, PairStatistics.slots
    seed,  # [1], or None without dropout
    query_rows,
    documents,
    heads,
    head_dim,
    parts,  # blocks of a tile
    size,  # statistics of a head
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
    queries = load_rows(q + own, query, there, q_stride, inside)
    grads = load_rows(grad_output + own, query, there, grad_stride, inside)
    first_document = tl.load(work + 4 * documents + document)
    begin_item, end_item = seen_list(work, link_offsets, document, documents)
    number = 0
    item = begin_item
    while item < end_item:
        _, begin, end = seen_document(work, links, item, document, documents, include_self)
        number += (begin < end).to(tl.int32)
        item += 1
    share = 1.0 / tl.maximum(number, 1)
    factor = scale * LOG2_E
    total = tl.zeros([Q, C], tl.float32)
    item = begin_item
    while item < end_item:
        other, begin, end = seen_document(work, links, item, document, documents, include_self)
        if begin < end:
            slot = head * size + pair_slot(slots, item, other - first_document, query_rows) + query
            sums = tl.load(lse + slot, mask=there, other=0.0)
            deltas = tl.zeros([Q], tl.float32)
            done = begin
            while done < end:
                row, key_there = block_rows(done, end, None, documents, seed, K)
                keys = queries
                values = queries
                if not CHUNKED:
                    keys = load_rows(k, row, key_there, k_stride, inside)
                    values = load_rows(v, row, key_there, v_stride, inside)
                scores = inner_products(
                    queries, keys, q, query, there, q_stride, k, row, key_there, k_stride, head_dim,
                    CHUNKED, Q, K, C, PRECISION,
                )  # fmt: skip
                weights = tl.where(key_there[None, :], tl.exp2(scores * factor - (sums * LOG2_E)[:, None]), 0.0)
                slopes = inner_products(
                    grads, values, grad_output, query, there, grad_stride, v, row, key_there, v_stride, head_dim,
                    CHUNKED, Q, K, C, PRECISION,
                )  # fmt: skip
                if seed is not None:
                    kept = kept_entries(seed, threshold, query, done, head, Q, K)
                    slopes = tl.where(kept, slopes / kept_share, 0.0)
                deltas += tl.sum(weights * slopes, 1)
                done += K
            sums -= tl.log(share)
            total = query_ranges(
                total, queries, grads, sums * LOG2_E, deltas, query, there, begin, end, end, end, grad_output, q, k, v,
                None, seed, head, documents, head_dim, grad_stride, q_stride, k_stride, v_stride, own, inside, factor,
                threshold, kept_share, CHUNKED, Q, K, C, PRECISION,
            )  # fmt: skip
            tl.store(raised + slot, sums, mask=there & (own == 0))
            tl.store(delta + slot, deltas, mask=there & (own == 0))
        item += 1
    target = grad_q + (query[:, None] * heads + head) * head_dim + column[None, :]
    tl.store(target, (total * scale).to(grad_q.dtype.element_ty), mask=there[:, None] & inside[None, :])
