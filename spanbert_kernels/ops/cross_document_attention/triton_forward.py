"""Forward kernels of cross_document_attention in Triton, beyond the joint softmax, which is `attention`'s.

A program takes a tile of one document's queries and a head through the documents that they see, one by one: for the
mass of the joint softmax on each of them, or with a softmax of its own for each. Everything is made from the rows
themselves, block by block, so no memory grows with queries x keys. Tiles and letters of shapes: attention's
`triton_tiles.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spanbert_kernels.ops.attention import triton_tiles as tiles
from spanbert_kernels.ops.attention.triton_forward import Forward, forward_step, new_softmax
from spanbert_kernels.ops.attention.triton_tiles import KEYS, LOG2_E, QUERIES, UNSPECIALIZED, Numbers, Operand, Ranges
from spanbert_kernels.ops.triton_masks import only_if


@triton.jit
def seen_list(mask, document, documents):
    """Where the list of the documents that a document sees begins and ends: in its links, or they are its cluster."""
    if mask.offsets is None:
        begin = tl.load(mask.documents + 4 * documents + document)
        end = tl.load(mask.documents + 5 * documents + document)
    else:
        begin = tl.load(mask.offsets + document)
        end = tl.load(mask.offsets + document + 1)
    return begin, end


@triton.jit
def seen_document(mask, item, document, numbers):
    """An item of that list: the document and its rows of keys, none where it is passed over."""
    if mask.links is None:
        other = item
        seen = (item != document) | (numbers.include_self > 0)
    else:
        other = tl.load(mask.links + item)
        seen = other >= 0
        other = tl.maximum(other, 0)
    bounds = mask.documents + KEYS * numbers.documents + other
    begin = tl.load(bounds)
    return other, begin, tl.where(seen, tl.load(bounds + numbers.documents), begin)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def weights_forward(
    q,
    k,
    lse,  # [heads, query rows]
    weights,  # [query rows, heads, places], zeros
    mask,  # of queries
    query_rows,
    num_documents,
    heads,
    head_dim,
    parts,  # blocks of a tile
    include_self,
    places,  # documents of the largest cluster
    scale,
    BLOCK,
):
    numbers = Numbers(query_rows, num_documents, heads, head_dim, parts, include_self)
    tile = tiles.find_tile(mask, None, numbers, QUERIES, BLOCK.M, BLOCK.D)
    if tile.first >= tile.last:
        return
    queries = tiles.own_rows(q, tile, BLOCK.D)
    k = tiles.head_of(k, tile.head, BLOCK.D)
    sums = tl.load(lse + tile.head * query_rows + tile.row, mask=tile.there, other=0.0) * LOG2_E
    first_document = tl.load(mask.documents + 4 * num_documents + tile.document)
    target = weights + (tile.row * heads + tile.head) * places - first_document
    total = tl.zeros([BLOCK.M], tl.float32)
    begin_item, end_item = seen_list(mask, tile.document, num_documents)
    item = begin_item
    while item < end_item:
        other, begin, end = seen_document(mask, item, tile.document, numbers)
        mass = tl.zeros([BLOCK.M], tl.float32)
        seen = begin < end
        while begin < end:
            row, there = tiles.block_rows(begin, end, None, 0, None, BLOCK.N)
            keys = None
            if not BLOCK.CHUNKED:
                keys = tiles.load_block(k, begin, row, there, 0, tile.inside)
            scores = tiles.inner_products(queries, Operand(keys, k, begin + row, there), head_dim, BLOCK)
            scores = tl.exp2(scores * (scale * LOG2_E) - sums[:, None])
            mass += tl.sum(tl.where(there[None, :], scores, 0.0), 1)
            begin += BLOCK.N
        total += mass
        tl.store(target + other, mass, mask=only_if(seen, tile.there))
        item += 1
    # What the log-sum-exp was rounded by is the same for all: it goes out with their sum.
    total = tl.where(total == 0.0, 1.0, total)
    tl.debug_barrier()
    item = begin_item
    while item < end_item:
        other, begin, end = seen_document(mask, item, tile.document, numbers)
        mass = tl.load(target + other, mask=only_if(begin < end, tile.there), other=0.0)
        tl.store(target + other, mass / total, mask=only_if(begin < end, tile.there))
        item += 1


@triton.jit
def pair_slot(slots, item, place, query_rows):
    """Where query row 0 would have its statistic of a document in `seen_list`, which has a place in the cluster."""
    slot = place.to(tl.int64) * query_rows
    if slots is not None:
        slot = tl.load(slots + item)
    return slot


@triton.jit(do_not_specialize=UNSPECIALIZED)
def pairwise_forward(
    q,
    k,
    v,
    output,  # [query rows, heads, head_dim]
    lse,  # [heads, size], -inf
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
    k = tiles.head_of(k, tile.head, BLOCK.D)
    v = tiles.head_of(v, tile.head, BLOCK.D)
    terms = tiles.Terms(None, None, None, None, None, None, None)
    program = Forward(queries, k, v, tile, mask, terms, dropout, numbers, scale * LOG2_E)
    first_document = tl.load(mask.documents + 4 * num_documents + tile.document)
    value = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
    number = 0
    item, end_item = seen_list(mask, tile.document, num_documents)
    while item < end_item:
        other, begin, end = seen_document(mask, item, tile.document, numbers)
        if begin < end:
            ranges = Ranges(begin, end, end, end)
            softmax = tiles.over_ranges(forward_step, new_softmax(BLOCK), program, ranges, BLOCK.N, BLOCK)
            value += softmax.total / softmax.mass[:, None]
            number += 1
            slot = tile.head * size + pair_slot(mask.slots, item, other - first_document, query_rows)
            sums = (softmax.peak + tl.log2(softmax.mass)) / LOG2_E
            tl.store(lse + slot + tile.row, sums, mask=only_if(tile.own == 0, tile.there))
        item += 1
    tiles.store_rows(output, tile, head_dim, None, value / tl.maximum(number, 1))
