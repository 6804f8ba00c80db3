"""The gradient of queries in one way through the keys, in Triton: of 16-bit inputs, without terms by distance.

delta is known behind the last key alone. So a block's dS is made with delta as it is so far, and beside the sum of
W (dP - delta) K that of W K is kept: when delta moves on, the difference times the latter goes off the former. What a
product rounds is thus small wherever dS is, as in `triton_backward.py`, whose formulas and letters these are.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from spanbert_kernels.ops.attention import triton_tiles as tiles
from spanbert_kernels.ops.attention.triton_backward import (
    Backward,
    RowSums,
    count_rows,
    marked,
    new_sums,
    row_statistics,
    weights_and_slopes,
)
from spanbert_kernels.ops.attention.triton_tiles import KEYS, LOG2_E, QUERIES, UNSPECIALIZED


class OnlineGradient(NamedTuple):
    """Of the keys so far: sums `[M, D]` of W (dP - delta) K and of W K, and those of rows, whose delta so far it is."""

    total: tl.tensor
    weighted: tl.tensor
    delta: tl.tensor
    sums: RowSums


@triton.jit
def online_step(state, program, first, last, slot, BLOCK):
    """A block of keys more: what is there was made with the delta before it, and is moved on to the new one."""
    block = weights_and_slopes(program, first, last, BLOCK)
    mass = state.sums.mass + tl.sum(block.weights, 1)
    moment = state.sums.moment + tl.sum(block.weights * block.slopes, 1)
    number = state.sums.number + count_rows(first, last, block.keys.there, program.mask.anchors, BLOCK.N)
    delta = moment / tl.where(mass == 0.0, 1.0, mass)
    slopes = block.weights * (block.slopes - delta[:, None])
    total = state.total + (state.delta - delta)[:, None] * state.weighted
    total = tiles.product(slopes, block.keys.data, total, BLOCK)
    weighted = tiles.product(block.weights, block.keys.data, state.weighted, BLOCK)
    return OnlineGradient(total, weighted, delta, RowSums(mass, moment, number))


@triton.jit(do_not_specialize=UNSPECIALIZED)
def online_query_backward(
    grad_output,
    q,
    k,
    v,
    lse,  # [heads, query rows]
    statistics,  # written: pairs, `[heads, query rows, 2]`
    grad_q,  # [query rows, heads, head_dim]
    mask,  # of queries
    dropout,  # None without
    query_rows,
    num_documents,
    heads,
    head_dim,
    parts,  # blocks of a tile
    include_self,
    scale,
    BLOCK,
):
    numbers = tiles.Numbers(query_rows, num_documents, heads, head_dim, parts, include_self)
    tile = tiles.find_tile(mask, None, numbers, QUERIES, BLOCK.M, BLOCK.D)
    if tile.first >= tile.last:
        return
    if BLOCK.OVER > 0 and not tiles.is_longer(mask, tile, numbers, QUERIES, BLOCK.OVER):
        return
    queries = tiles.own_rows(q, tile, BLOCK.D)
    grads = tiles.own_rows(grad_output, tile, BLOCK.D)
    k = tiles.head_of(k, tile.head, BLOCK.D)
    v = tiles.head_of(v, tile.head, BLOCK.D)
    place = tile.head * query_rows + tile.row
    lse = tl.load(lse + place, mask=tile.there, other=0.0) * LOG2_E
    terms = tiles.Terms(None, None, None, None, None, None, None)
    own = tiles.Statistics(lse, None, None)
    program = Backward(queries, grads, k, v, own, tile, mask, terms, dropout, numbers, scale * LOG2_E)
    zeros = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
    sums = new_sums(tile, BLOCK)
    state = OnlineGradient(zeros, zeros, sums.mass, sums)
    state = tiles.over_seen(online_step, state, program, numbers, KEYS, BLOCK.N, BLOCK)
    delta, share = row_statistics(state.sums, 1, None)
    row, there = tiles.rows_again(tile, None, BLOCK.M)
    place = 2 * (tile.head * query_rows + tile.first + row)
    tl.store(statistics + place, lse - tl.log2(tl.abs(share)), mask=there)
    tl.store(statistics + place + 1, marked(delta, share < 0.0), mask=there)
    total = state.total * tl.where(share < 0.0, 0.0, share)[:, None]
    tiles.store_rows(grad_q, tile, head_dim, None, tiles.rescaled(total, dropout) * scale)
