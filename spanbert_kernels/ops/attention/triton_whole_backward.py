"""The backward of short documents that see themselves alone, in Triton: their scores are one tile.

All gradients are made from that, with five products in place of seven, and nothing is read twice. The formulas are
those of `triton_backward.py`; letters of shapes: `triton_tiles.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from spanbert_kernels.ops.attention import triton_tiles as tiles
from spanbert_kernels.ops.attention.triton_dropout import dealt_draws, dealt_entries
from spanbert_kernels.ops.attention.triton_tiles import LOG2_E, QUERIES, UNSPECIALIZED, Numbers


@triton.jit(do_not_specialize=UNSPECIALIZED)
def whole_backward(
    grad_output,
    q,
    k,
    v,
    lse,  # [heads, T]
    grad_q,  # [T, heads, head_dim]
    grad_k,
    grad_v,
    mask,
    dropout,  # None without
    query_rows,
    num_documents,
    heads,
    head_dim,
    parts,  # 1
    include_self,
    scale,
    BLOCK,  # M rows of the scores at a time
):
    numbers = Numbers(query_rows, num_documents, heads, head_dim, parts, include_self)
    tile = tiles.find_tile(mask, dropout, numbers, QUERIES, BLOCK.N, BLOCK.D, True)
    first, last = tile.first, tile.last
    if first >= last:
        return
    if tiles.is_longer(mask, tile, numbers, QUERIES, BLOCK.N):
        return
    q = tiles.head_of(q, tile.head, BLOCK.D)
    grad_output = tiles.head_of(grad_output, tile.head, BLOCK.D)
    keys = tiles.own_rows(k, tile, BLOCK.D).data
    values = tiles.own_rows(v, tile, BLOCK.D).data
    total_k = tl.zeros([BLOCK.N, BLOCK.D], tl.float32)
    total_v = tl.zeros([BLOCK.N, BLOCK.D], tl.float32)
    slope_scale = tl.where(last - first == 1, 0.0, scale)  # a softmax over one key is 1 whatever its score
    column = tl.arange(0, BLOCK.D)
    for part in tl.range(0, BLOCK.N // BLOCK.M):
        query = first + part * BLOCK.M + tl.arange(0, BLOCK.M)
        there = query < last
        queries = tiles.load_rows(q, query, there, 0, tile.inside)
        grads = tiles.load_rows(grad_output, query, there, 0, tile.inside)
        sums = tl.load(lse + tile.head * query_rows + query, mask=there, other=float("inf")) * LOG2_E
        empty = tl.zeros([BLOCK.M, BLOCK.N], tl.float32)
        scores = tiles.product(queries, tl.trans(keys), empty, BLOCK) * (scale * LOG2_E)
        weights = tl.where(tile.there[None, :], tl.exp2(scores - sums[:, None]), 0.0)
        mass = tl.sum(weights, 1)
        weights *= (1.0 / tl.where(mass == 0.0, 1.0, mass))[:, None]
        kept_weights = weights
        if dropout is not None:
            # Less than 0 where it is dropped: one tile in place of two.
            draws = dealt_draws(dropout, first + part * BLOCK.M, first, tile.head, BLOCK.M, BLOCK.N)
            kept = dealt_entries(dropout, draws, BLOCK.M, BLOCK.N)
            weights = tl.where(kept, weights, -weights)
            kept_weights = tl.where(weights < 0, 0.0, weights)
        total_v = tiles.product(tl.trans(tiles.rounded(kept_weights, grads.dtype, BLOCK)), grads, total_v, BLOCK)
        slopes = tiles.product(grads, tl.trans(values), empty, BLOCK)
        if dropout is not None:
            slopes = tl.where(weights < 0, 0.0, slopes)
            weights = tl.abs(weights)
        delta = tl.sum(weights * slopes, 1)
        slopes = tiles.rounded(weights * (slopes - delta[:, None]), keys.dtype, BLOCK)
        total_k = tiles.product(tl.trans(slopes), queries, total_k, BLOCK)
        total_q = tiles.product(slopes, keys, tl.zeros([BLOCK.M, BLOCK.D], tl.float32), BLOCK)
        total_q = tiles.rescaled(total_q, dropout) * slope_scale
        place = grad_q.data + query[:, None] * grad_q.stride + tile.head * grad_q.head_stride + column[None, :]
        tl.store(place, total_q.to(grad_q.data.dtype.element_ty), mask=there[:, None] & tile.inside[None, :])
    tiles.store_rows(grad_k, tile, head_dim, dropout, tiles.rescaled(total_k, dropout) * slope_scale, True)
    tiles.store_rows(grad_v, tile, head_dim, dropout, tiles.rescaled(total_v, dropout), True)
