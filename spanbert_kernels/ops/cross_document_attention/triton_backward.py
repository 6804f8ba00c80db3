"""The backward of pairwise attention in Triton, as far as the queries.

A document's softmax is one n-th of the output, n the number of documents seen. With its share divided by n the weights
come out divided, and everything is as in the joint softmax, but that each document has a log-sum-exp, a delta and a
share of its own. `pairwise_backward` leaves them for document_attention's `key_backward`. The formulas are those of
document_attention's `triton_backward.py`, letters of shapes those of its `triton_forward.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spanbert_kernels.ops.cross_document_attention.triton_forward import pair_slot, seen_document, seen_list
from spanbert_kernels.ops.document_attention.triton_backward import query_ranges, row_statistics
from spanbert_kernels.ops.document_attention.triton_forward import LOG2_E, find_tile, load_rows


@triton.jit(do_not_specialize=["query_rows", "documents", "heads", "parts", "size", "include_self", "threshold"])
def pairwise_backward(
    grad_output,  # [query rows, heads, head_dim], like q, k and v of any row and head stride
    q,
    k,
    v,
    lse,  # [heads, size]
    delta,  # [heads, size]
    share,  # [heads, size]
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
    softmaxes = 0
    item = begin_item
    while item < end_item:
        _, begin, end = seen_document(work, links, item, document, documents, include_self)
        softmaxes += (begin < end).to(tl.int32)
        item += 1
    factor = scale * LOG2_E
    total = tl.zeros([Q, C], tl.float32)
    item = begin_item
    while item < end_item:
        other, begin, end = seen_document(work, links, item, document, documents, include_self)
        if begin < end:
            slot = head * size + pair_slot(slots, item, other - first_document, query_rows) + query
            sums = tl.load(lse + slot, mask=there, other=0.0) * LOG2_E
            mass = tl.zeros([Q], tl.float32)
            moment = tl.zeros([Q], tl.float32)
            number = tl.zeros([K], tl.int32)
            deltas = mass
            shares = mass
            for step in tl.static_range(2):
                total, mass, moment, number = query_ranges(
                    total, mass, moment, number, queries, grads, sums, deltas, shares, query, there, begin, end, end,
                    end, grad_output, q, k, v, None, seed, head, documents, head_dim, grad_stride, q_stride, k_stride,
                    v_stride, own, inside, factor, threshold, kept_share, CHUNKED, Q, K, C, PRECISION, step == 0,
                )  # fmt: skip
                if step == 0:
                    deltas, shares = row_statistics(mass, moment, number, softmaxes)
            tl.store(delta + slot, deltas, mask=there & (own == 0))
            tl.store(share + slot, shares, mask=there & (own == 0))
        item += 1
    target = grad_q + (query[:, None] * heads + head) * head_dim + column[None, :]
    tl.store(target, (total * scale).to(grad_q.dtype.element_ty), mask=there[:, None] & inside[None, :])
