"""The backward of pairwise attention in Triton, as far as the queries.

A document's softmax is one n-th of the output, n the number of documents seen. With its share divided by n the weights
come out divided, and everything is as in the joint softmax, but that each document has a log-sum-exp, a delta and a
share of its own. `pairwise_backward` leaves them for attention's `key_backward`. The formulas are those of attention's
`triton_backward.py`, letters of shapes those of its `triton_tiles.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spanbert_kernels.ops.attention import triton_tiles as tiles
from spanbert_kernels.ops.attention.triton_backward import Backward, gradient_step, new_sums, row_statistics, sums_step
from spanbert_kernels.ops.attention.triton_tiles import LOG2_E, QUERIES, UNSPECIALIZED, Numbers, Ranges, Statistics
from spanbert_kernels.ops.cross_document_attention.triton_forward import pair_slot, seen_document, seen_list
from spanbert_kernels.ops.triton_masks import only_if


@triton.jit(do_not_specialize=UNSPECIALIZED)
def pairwise_backward(
    grad_output,
    q,
    k,
    v,
    statistics,
    grad_q,  # [query rows, heads, head_dim]
    mask,  # of queries
    dropout,  # None without
    query_rows,
    num_documents,
    heads,
    head_dim,
    parts,  # blocks of a tile
    include_self,
    size,  # statistics of a head
    scale,
    BLOCK,
):
    numbers = Numbers(query_rows, num_documents, heads, head_dim, parts, include_self)
    tile = tiles.find_tile(mask, None, numbers, QUERIES, BLOCK.M, BLOCK.D)
    if tile.first >= tile.last:
        return
    queries = tiles.own_rows(q, tile, BLOCK.D)
    grads = tiles.own_rows(grad_output, tile, BLOCK.D)
    k = tiles.head_of(k, tile.head, BLOCK.D)
    v = tiles.head_of(v, tile.head, BLOCK.D)
    first_document = tl.load(mask.documents + 4 * num_documents + tile.document)
    begin_item, end_item = seen_list(mask, tile.document, num_documents)
    softmaxes = 0
    item = begin_item
    while item < end_item:
        _, begin, end = seen_document(mask, item, tile.document, numbers)
        softmaxes += (begin < end).to(tl.int32)
        item += 1
    factor = scale * LOG2_E
    terms = tiles.Terms(None, None, None, None, None, None, None)
    total = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
    item = begin_item
    while item < end_item:
        other, begin, end = seen_document(mask, item, tile.document, numbers)
        if begin < end:
            ranges = Ranges(begin, end, end, end)
            slot = tile.head * size + pair_slot(mask.slots, item, other - first_document, query_rows) + tile.row
            lse = tl.load(statistics.lse + slot, mask=tile.there, other=0.0) * LOG2_E
            own = Statistics(lse, None, None)
            program = Backward(queries, grads, k, v, own, tile, mask, terms, dropout, numbers, factor)
            sums = tiles.over_ranges(sums_step, new_sums(tile, BLOCK), program, ranges, BLOCK.N, BLOCK)
            delta, share = row_statistics(sums, softmaxes, None)
            own = Statistics(lse, delta, share)
            program = Backward(queries, grads, k, v, own, tile, mask, terms, dropout, numbers, factor)
            total = tiles.over_ranges(gradient_step, total, program, ranges, BLOCK.N, BLOCK)
            tl.store(statistics.delta + slot, delta, mask=only_if(tile.own == 0, tile.there))
            tl.store(statistics.share + slot, share, mask=only_if(tile.own == 0, tile.there))
        item += 1
    tiles.store_rows(grad_q, tile, head_dim, None, tiles.rescaled(total, dropout) * scale)
