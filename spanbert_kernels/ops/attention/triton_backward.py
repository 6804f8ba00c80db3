"""Attention's backward kernels in Triton: gradients without atomics, in a fixed order of additions.

With P the softmax weights, dP = dO V^T behind dropout and delta = rowsum(P dP): dS = P (dP - delta), dQ = scale dS K,
dK = scale dS^T Q, dV = P^T dO (FlashAttention-2, Dao 2023). P is W = exp(S - lse), made again, times share = 1 /
rowsum(W): a lse of 1000 is rounded by 3e-5, so W does not add up to 1, and where one weight is nearly 1, dS is a
difference far smaller than that. In delta = rowsum(dO * O) the rounding of O to 16 bits would be left in it.

So queries go through the keys twice, `query_backward` with SUMS for delta and share, then without for dQ, before
`key_backward` goes from a tile of keys through all queries that see it. A softmax over one key is 1 whatever its score
and has no dS: its share is negative.

The scale is kept out of dS, which is rounded to the dtype of the inputs. Letters of shapes: `triton_tiles.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from spanbert_kernels.ops.attention import triton_tiles as tiles
from spanbert_kernels.ops.attention.triton_tiles import KEYS, LOG2_E, QUERIES, UNSPECIALIZED
from spanbert_kernels.ops.triton_arguments import Matrix, Philox


class Backward(NamedTuple):
    """What a program has from block to block.

    Attributes:
        left, right: the tile's rows, of q and the gradient of the output, or of k and v.
        left_source, right_source: those of the other side, a head's.
        statistics: of the tile's queries, `[M]`, the log-sum-exp in base 2; of keys to row 0 of the head.
        factor: of the scores.
    """

    left: tiles.Operand
    right: tiles.Operand
    left_source: Matrix
    right_source: Matrix
    statistics: tiles.Statistics
    tile: tiles.RowTile
    mask: tiles.Mask
    dropout: Philox | None
    numbers: tiles.Numbers
    factor: tl.tensor


class RowSums(NamedTuple):
    """Of the keys so far: mass `[M]` of W, moment `[M]` of W dP, number `[N]` of keys."""

    mass: tl.tensor
    moment: tl.tensor
    number: tl.tensor


@triton.jit
def new_sums(BLOCK):
    zeros = tl.zeros([BLOCK.M], tl.float32)
    return RowSums(zeros, zeros, tl.zeros([BLOCK.N], tl.int32))


@triton.jit
def weights_and_slopes(program, first, last, BLOCK):
    """W and dP of a block of keys, these keys, and which of them there are."""
    tile, dropout, numbers, statistics = program.tile, program.dropout, program.numbers, program.statistics
    row, there = tiles.block_rows(first, last, program.mask.anchors, numbers.documents, dropout, BLOCK.N)
    keys = tiles.load_rows(program.left_source, row, there, tile.own, tile.inside)
    values = None
    if not BLOCK.CHUNKED:
        values = tiles.load_rows(program.right_source, row, there, 0, tile.inside)
    scores = tiles.inner_products(
        program.left, tiles.Operand(keys, program.left_source, row, there), numbers.head_dim, BLOCK
    )
    weights = tl.where(there[None, :], tl.exp2(scores * program.factor - statistics.lse[:, None]), 0.0)
    slopes = tiles.inner_products(
        program.right, tiles.Operand(values, program.right_source, row, there), numbers.head_dim, BLOCK
    )
    if dropout is not None:
        kept = tiles.kept_entries(dropout, tile.row, first, tile.head, BLOCK.N)
        slopes = tl.where(kept, tiles.rescaled(slopes, dropout), 0.0)
    return weights, slopes, keys, there


@triton.jit
def sums_step(sums, program, first, last, slot, BLOCK):
    """A block of keys more, for the sums of rows."""
    weights, slopes, _, there = weights_and_slopes(program, first, last, BLOCK)
    mass = sums.mass + tl.sum(weights, 1)
    return RowSums(mass, sums.moment + tl.sum(weights * slopes, 1), sums.number + there.to(tl.int32))


@triton.jit
def gradient_step(total, program, first, last, slot, BLOCK):
    """A block of keys more, for the gradient `[M, D]`."""
    weights, slopes, keys, _ = weights_and_slopes(program, first, last, BLOCK)
    _, delta, share = program.statistics
    slopes = weights * tl.where(share < 0.0, 0.0, share)[:, None] * (slopes - delta[:, None])
    return tiles.product(slopes, keys, total, BLOCK)


@triton.jit
def row_statistics(sums, softmaxes):
    """`delta`, and `share` for the mean of so many softmaxes."""
    mass = tl.where(sums.mass == 0.0, 1.0, sums.mass)
    share = 1.0 / (mass * softmaxes)
    return sums.moment / mass, tl.where(tl.sum(sums.number, 0) == 1, -share, share)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def query_backward(
    grad_output,
    q,
    k,
    v,
    statistics,  # delta and share are written with SUMS, else read
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
    SUMS: tl.constexpr,
    BLOCK,
):
    numbers = tiles.Numbers(query_rows, num_documents, heads, head_dim, parts, include_self)
    tile = tiles.find_tile(mask, None, numbers, QUERIES, BLOCK.M, BLOCK.D)
    if tile.first >= tile.last:
        return
    queries = tiles.own_rows(q, tile, BLOCK.D)
    grads = tiles.own_rows(grad_output, tile, BLOCK.D)
    k = tiles.head_of(k, tile.head, BLOCK.D)
    v = tiles.head_of(v, tile.head, BLOCK.D)
    place = tile.head * query_rows + tile.row
    lse = tl.load(statistics.lse + place, mask=tile.there, other=0.0) * LOG2_E
    factor = scale * LOG2_E
    if SUMS:
        own = tiles.Statistics(lse, None, None)
        program = Backward(queries, grads, k, v, own, tile, mask, dropout, numbers, factor)
        sums = tiles.over_seen(sums_step, new_sums(BLOCK), program, numbers, KEYS, BLOCK.N, BLOCK)
        delta, share = row_statistics(sums, 1)
        row, there = tiles.rows_again(tile, None, BLOCK.M)
        place = tile.head * query_rows + tile.first + row
        tl.store(statistics.delta + place, delta, mask=there)
        tl.store(statistics.share + place, share, mask=there)
    else:
        delta = tl.load(statistics.delta + place, mask=tile.there, other=0.0)
        own = tiles.Statistics(lse, delta, tl.load(statistics.share + place, mask=tile.there, other=0.0))
        program = Backward(queries, grads, k, v, own, tile, mask, dropout, numbers, factor)
        total = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
        total = tiles.over_seen(gradient_step, total, program, numbers, KEYS, BLOCK.N, BLOCK)
        tiles.store_rows(grad_q, tile, heads, head_dim, None, total * scale)


class KeyGradients(NamedTuple):
    """Of the queries so far, `[N, D]`: dK without the scale, and dV."""

    k: tl.tensor
    v: tl.tensor


@triton.jit
def key_step(total, program, first, last, slot, BLOCK):
    """A block of queries more, whose statistics begin at a slot.

    Scores are `[N, M]`, which makes them left sides of products as they are.
    """
    tile, dropout, numbers, statistics = program.tile, program.dropout, program.numbers, program.statistics
    row, there = tiles.block_rows(first, last, program.mask.anchors, numbers.documents, None, BLOCK.M)
    queries = tiles.load_rows(program.left_source, row, there, tile.own, tile.inside)
    grads = tiles.load_rows(program.right_source, row, there, tile.own, tile.inside)
    lse = tl.load(statistics.lse + slot + row, mask=there, other=float("inf")) * LOG2_E  # no weight without a query
    delta = tl.load(statistics.delta + slot + row, mask=there, other=0.0)
    share = tl.load(statistics.share + slot + row, mask=there, other=0.0)
    scores = tiles.inner_products(
        program.left, tiles.Operand(queries, program.left_source, row, there), numbers.head_dim, BLOCK
    )
    weights = tl.exp2(scores * program.factor - lse[None, :]) * tl.abs(share)[None, :]
    if dropout is not None:
        # Less than 0 where it is dropped: one tile in place of two.
        weights = tl.where(
            tl.trans(tiles.kept_entries(dropout, row, tile.first, tile.head, BLOCK.N)), weights, -weights
        )
    total_v = tiles.product(tl.where(weights < 0, 0.0, weights), grads, total.v, BLOCK)
    slopes = tiles.inner_products(
        program.right, tiles.Operand(grads, program.right_source, row, there), numbers.head_dim, BLOCK
    )
    slopes = tl.where(weights < 0, 0.0, tiles.rescaled(slopes, dropout))
    slopes = tl.where(share[None, :] < 0, 0.0, tl.abs(weights) * (slopes - delta[None, :]))
    return KeyGradients(tiles.product(slopes, queries, total.k, BLOCK), total_v)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def key_backward(
    grad_output,
    q,
    k,
    v,
    statistics,
    grad_k,  # [key rows, heads, head_dim]
    grad_v,
    mask,  # of keys
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
    numbers = tiles.Numbers(query_rows, num_documents, heads, head_dim, parts, include_self)
    tile = tiles.find_tile(mask, dropout, numbers, KEYS, BLOCK.N, BLOCK.D)
    if tile.first >= tile.last:
        return
    place = tile.head * size
    if mask.links is None:
        # A softmax for each document of the cluster, or one for all.
        number = tile.document - tl.load(mask.documents + 4 * num_documents + tile.document)
        place += tl.where(size > query_rows, number * query_rows, 0)
    program = Backward(
        tiles.own_rows(k, tile, BLOCK.D),
        tiles.own_rows(v, tile, BLOCK.D),
        tiles.head_of(q, tile.head, BLOCK.D),
        tiles.head_of(grad_output, tile.head, BLOCK.D),
        tiles.Statistics(statistics.lse + place, statistics.delta + place, statistics.share + place),
        tile,
        mask,
        dropout,
        numbers,
        scale * LOG2_E,
    )
    zeros = tl.zeros([BLOCK.N, BLOCK.D], tl.float32)
    total = tiles.over_seen(key_step, KeyGradients(zeros, zeros), program, numbers, QUERIES, BLOCK.M, BLOCK)
    tiles.store_rows(grad_k, tile, heads, head_dim, dropout, total.k * scale)
    tiles.store_rows(grad_v, tile, heads, head_dim, dropout, tiles.rescaled(total.v, dropout))
