"""Forward kernels of cross_document_attention in Triton, beyond the joint softmax, which is document_attention's.

A program takes a tile of one document's queries and a head through the documents that they see, one by one: for the
mass of the joint softmax on each of them, or with a softmax of its own for each. Everything is made from the rows
themselves, block by block, so no memory grows with queries x keys. Letters of shapes: document_attention's
`triton_forward.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spanbert_kernels.ops.document_attention.triton_forward import (
    LOG2_E,
    block_rows,
    find_tile,
    forward_ranges,
    inner_products,
    load_rows,
)


@triton.jit
def seen_list(work, link_offsets, document, documents):
    """Where the list of the documents that a document sees begins and ends: in its links, or they are its cluster."""
    if link_offsets is None:
        begin = tl.load(work + 4 * documents + document)
        end = tl.load(work + 5 * documents + document)
    else:
        begin = tl.load(link_offsets + document)
        end = tl.load(link_offsets + document + 1)
    return begin, end


@triton.jit
def seen_document(work, links, item, document, documents, include_self):
    """An item of that list: the document and its rows of keys, none where it is passed over."""
    if links is None:
        other = item
        seen = (item != document) | (include_self > 0)
    else:
        other = tl.load(links + item)
        seen = other >= 0
        other = tl.maximum(other, 0)
    begin = tl.load(work + 2 * documents + other)
    return other, begin, tl.where(seen, tl.load(work + 3 * documents + other), begin)


@triton.jit(do_not_specialize=["query_rows", "documents", "heads", "parts", "places", "include_self"])
def weights_forward(
    q,  # [query rows, heads, head_dim], like k of any row and head stride
    k,
    lse,  # [heads, query rows]
    weights,  # [query rows, heads, places], zeros
    work,  # [6, documents], AttentionWork.documents
    link_offsets,  # [documents + 1] or None
    links,
    tiles,  # [tiles, 2] of queries
    query_rows,
    documents,
    heads,
    head_dim,
    parts,  # blocks of a tile
    places,  # documents of the largest cluster
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    include_self,
    scale,
    CHUNKED: tl.constexpr,
    Q: tl.constexpr,
    K: tl.constexpr,
    C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    document, head, first, last = find_tile(tiles, work, documents, heads, parts, Q)
    if first >= last:
        return
    inside = tl.arange(0, C) < head_dim
    query = first + tl.arange(0, Q)
    there = query < last
    q += head * q_head_stride + tl.arange(0, C)[None, :]
    k += head * k_head_stride + tl.arange(0, C)[None, :]
    queries = load_rows(q, query, there, q_stride, inside)
    sums = tl.load(lse + head * query_rows + query, mask=there, other=0.0) * LOG2_E
    first_document = tl.load(work + 4 * documents + document)
    target = weights + (query * heads + head) * places - first_document
    total = tl.zeros([Q], tl.float32)
    begin_item, end_item = seen_list(work, link_offsets, document, documents)
    item = begin_item
    while item < end_item:
        other, begin, end = seen_document(work, links, item, document, documents, include_self)
        mass = tl.zeros([Q], tl.float32)
        seen = begin < end
        while begin < end:
            row, key_there = block_rows(begin, end, None, documents, None, K)
            keys = queries
            if not CHUNKED:
                keys = load_rows(k, row, key_there, k_stride, inside)
            scores = inner_products(
                queries, keys, q, query, there, q_stride, k, row, key_there, k_stride, head_dim,
                CHUNKED, Q, K, C, PRECISION,
            )  # fmt: skip
            scores = tl.exp2(scores * (scale * LOG2_E) - sums[:, None])
            mass += tl.sum(tl.where(key_there[None, :], scores, 0.0), 1)
            begin += K
        total += mass
        tl.store(target + other, mass, mask=there & seen)
        item += 1
    # What the log-sum-exp was rounded by is the same for all: it goes out with their sum.
    total = tl.where(total == 0.0, 1.0, total)
    tl.debug_barrier()
    item = begin_item
    while item < end_item:
        other, begin, end = seen_document(work, links, item, document, documents, include_self)
        mass = tl.load(target + other, mask=there & (begin < end), other=0.0)
        tl.store(target + other, mass / total, mask=there & (begin < end))
        item += 1


@triton.jit
def pair_slot(slots, item, place, query_rows):
    """Where query row 0 would have its statistic of a document in `seen_list`, which has a place in the cluster."""
    slot = place.to(tl.int64) * query_rows
    if slots is not None:
        slot = tl.load(slots + item)
    return slot


@triton.jit(do_not_specialize=["query_rows", "documents", "heads", "parts", "size", "include_self", "threshold"])
def pairwise_forward(
    q,  # [query rows, heads, head_dim], like k and v of any row and head stride
    k,
    v,
    output,  # [query rows, heads, head_dim]
    lse,  # [heads, size], -inf
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
    q += head * q_head_stride + tl.arange(0, C)[None, :]
    k += head * k_head_stride + tl.arange(0, C)[None, :]
    v += head * v_head_stride + tl.arange(0, C)[None, :]
    queries = load_rows(q + own, query, there, q_stride, inside)
    first_document = tl.load(work + 4 * documents + document)
    value = tl.zeros([Q, C], tl.float32)
    number = 0
    item, end_item = seen_list(work, link_offsets, document, documents)
    while item < end_item:
        other, begin, end = seen_document(work, links, item, document, documents, include_self)
        if begin < end:
            total = tl.zeros([Q, C], tl.float32)
            peak = tl.full([Q], -float("inf"), tl.float32)
            mass = tl.zeros([Q], tl.float32)
            total, peak, mass = forward_ranges(
                total, peak, mass, queries, query, there, begin, end, end, end, q, k, v, None, seed, head, documents,
                head_dim, q_stride, k_stride, v_stride, own, inside, scale * LOG2_E, threshold,
                CHUNKED, Q, K, C, PRECISION,
            )  # fmt: skip
            value += total / mass[:, None]
            number += 1
            target = lse + head * size + pair_slot(slots, item, other - first_document, query_rows) + query
            tl.store(target, (peak + tl.log2(mass)) / LOG2_E, mask=there & (own == 0))
        item += 1
    value = value / (tl.maximum(number, 1) * kept_share)
    target = output + (query[:, None] * heads + head) * head_dim + column[None, :]
    tl.store(target, value.to(output.dtype.element_ty), mask=there[:, None] & inside[None, :])
