"""Attention's backward kernels in Triton: gradients without atomics, in a fixed order of additions.

With P the softmax weights, dP = dO V^T behind dropout and delta = rowsum(P dP): dS = P (dP - delta), dQ = scale dS K,
dK = scale dS^T Q, dV = P^T dO (FlashAttention-2, Dao 2023). P is W = exp(S - lse), made again, times share = 1 /
rowsum(W): a lse of 1000 is rounded by 3e-5, so W does not add up to 1, and where one weight is nearly 1, dS is a
difference far smaller than that. In delta = rowsum(dO * O) the rounding of O to 16 bits would be left in it.

So queries go through the keys twice, `query_backward` with SUMS for delta and share, then without for dQ (or once, in
`triton_online.py`), before `key_backward` goes from a tile of keys through all queries that see it. A softmax over one
key is 1 whatever its score and has no dS: its share is negative.

The scale is kept out of dS, which is rounded to the dtype of the inputs, and so is what dropout divides by, also out of
delta. Letters of shapes: `triton_tiles.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from spanbert_kernels.ops.attention import triton_distance as distance
from spanbert_kernels.ops.attention import triton_tiles as tiles
from spanbert_kernels.ops.attention.triton_dropout import (
    dealt_draws,
    dealt_entries,
    kept_entries,
    left_entries,
    left_for_keys,
)
from spanbert_kernels.ops.attention.triton_tiles import KEYS, LOG2_E, QUERIES, UNSPECIALIZED
from spanbert_kernels.ops.triton_arguments import Matrix, Philox

ALONE = tl.constexpr(-0x3F5EF2)  # the bits of a NaN that no arithmetic makes


class Backward(NamedTuple):
    """What a program has from block to block.

    Attributes:
        left, right: the tile's rows, of q and the gradient of the output, or of k and v.
        left_source, right_source: those of the other side, a head's.
        statistics: of the tile's queries, `[M]`, the log-sum-exp in base 2; of keys to row 0 of the head, where there
            may be pairs alone: the log-sum-exp in base 2, less that of share, and delta, which is `marked`.
        factor: of the scores.
    """

    left: tiles.Operand
    right: tiles.Operand
    left_source: Matrix
    right_source: Matrix
    statistics: tiles.Statistics
    tile: tiles.RowTile
    mask: tiles.Mask
    terms: tiles.Terms
    dropout: Philox | None
    numbers: tiles.Numbers
    factor: tl.tensor


class Slopes(NamedTuple):
    """Of a block of keys: weights W and dP `[M, N]`, the keys, which pairs of them are seen, and the tables' rows."""

    weights: tl.tensor
    slopes: tl.tensor
    keys: tiles.Operand
    seen: tl.tensor
    near: distance.Near


class RowSums(NamedTuple):
    """Of the keys so far: mass `[M]` of W, moment `[M]` of W dP, number of keys."""

    mass: tl.tensor
    moment: tl.tensor
    number: tl.tensor


@triton.jit
def new_sums(tile, BLOCK):
    zeros = tl.zeros([BLOCK.M], tl.float32)
    return RowSums(zeros, zeros, (tile.first * 0).to(tl.int32))


@triton.jit
def count_rows(first, last, there, anchors, ROWS: tl.constexpr):
    """How many of a block there are."""
    count = tl.minimum(last - first, ROWS).to(tl.int32)
    if anchors is not None:
        count = tl.sum(there.to(tl.int32), 0)
    return count


@triton.jit
def weights_and_slopes(program, first, last, BLOCK):
    """W and dP of a block of keys."""
    tile, dropout, numbers, statistics = program.tile, program.dropout, program.numbers, program.statistics
    DEALT: tl.constexpr = program.terms.index is None
    row, there = tiles.block_rows(first, last, program.mask.anchors, numbers.documents, dropout, BLOCK.N, DEALT)
    keys = tiles.load_block(program.left_source, first, row, there, tile.own, tile.inside)
    values = None
    if not BLOCK.CHUNKED:
        values = tiles.load_block(program.right_source, first, row, there, 0, tile.inside)
    row = first + row
    keys = tiles.Operand(keys, program.left_source, row, there)
    near = distance.near_block(program, tile.first, first, BLOCK)
    scores = tiles.inner_products(program.left, keys, numbers.head_dim, BLOCK) * program.factor
    scores = distance.add_terms(scores, program.left, keys, near, program, False, BLOCK)
    seen = distance.in_window(there[None, :], tile.row, row, program.terms)
    weights = tl.where(seen, tl.exp2(scores - statistics.lse[:, None]), 0.0)
    values = tiles.Operand(values, program.right_source, row, there)
    slopes = tiles.inner_products(program.right, values, numbers.head_dim, BLOCK)
    if dropout is not None:
        if BLOCK.WORDS:
            kept = left_entries(dropout, program.mask, tile, first, numbers, BLOCK.M)
        elif DEALT:
            draws = dealt_draws(dropout, tile.first, first, tile.head, BLOCK.M, BLOCK.N)
            kept = dealt_entries(dropout, draws, BLOCK.M, BLOCK.N)
        else:
            kept = kept_entries(dropout, tile.first, first, tile.head, BLOCK.M, BLOCK.N)
        slopes = tl.where(kept, slopes, 0.0)
    return Slopes(weights, distance.seen_alone(slopes, seen, program.terms), keys, seen, near)


@triton.jit
def sums_step(sums, program, first, last, slot, BLOCK):
    """A block of keys more, for the sums of rows."""
    block = weights_and_slopes(program, first, last, BLOCK)
    mass = sums.mass + tl.sum(block.weights, 1)
    moment = sums.moment + tl.sum(block.weights * block.slopes, 1)
    number = sums.number + count_rows(first, last, block.keys.there, program.mask.anchors, BLOCK.N)
    return RowSums(mass, moment, number)


@triton.jit
def gradient_step(total, program, first, last, slot, BLOCK):
    """A block of keys more, for the gradient `[M, D]`."""
    return any_gradient_step(total, program, first, last, False, BLOCK)


@triton.jit
def exact_gradient_step(total, program, first, last, slot, BLOCK):
    """The same, with nothing but what is seen in a sum."""
    return any_gradient_step(total, program, first, last, True, BLOCK)


@triton.jit
def any_gradient_step(total, program, first, last, EXACT: tl.constexpr, BLOCK):
    weights, slopes, keys, seen, near = weights_and_slopes(program, first, last, BLOCK)
    _, delta, share = program.statistics
    slopes = weights * tl.where(share < 0.0, 0.0, share)[:, None] * (slopes - delta[:, None])
    slopes = distance.seen_alone(slopes, seen, program.terms)
    if EXACT:
        total = distance.seen_product(slopes, seen, keys.source, keys.row, program.tile, total)
    else:
        total = tiles.product(slopes, keys.data, total, BLOCK)
    if program.terms.keys is not None:
        own = distance.banded(slopes, near, program.tile.row, first, program.dropout, False)
        total = tiles.product(own, near.keys.data, total, BLOCK)
    return total


@triton.jit
def row_statistics(sums, softmaxes, window):
    """`delta`, and `share` for the mean of so many softmaxes."""
    mass = tl.where(sums.mass == 0.0, 1.0, sums.mass)
    share = 1.0 / (mass * softmaxes)
    alone = sums.number == 1
    if window is not None:
        alone = alone | (window == 0)
    return sums.moment / mass, tl.where(alone, -share, share)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def query_backward(
    grad_output,
    q,
    k,
    v,
    statistics,  # delta and share are written with SUMS, else read
    grad_q,  # [query rows, heads, head_dim]
    mask,  # of queries
    terms,
    again,  # by row of a program, whether its sums are to be made EXACT; None without a window
    dropout,  # None without
    query_rows,
    num_documents,
    heads,
    head_dim,
    parts,  # blocks of a tile
    include_self,
    scale,
    SUMS: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK,
):
    numbers = tiles.Numbers(query_rows, num_documents, heads, head_dim, parts, include_self)
    tile = tiles.find_tile(mask, None, numbers, QUERIES, BLOCK.M, BLOCK.D)
    if tile.first >= tile.last:
        return
    if EXACT and not distance.is_flagged(again, BLOCK.M):
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
        program = Backward(queries, grads, k, v, own, tile, mask, terms, dropout, numbers, factor)
        sums = tiles.over_seen(sums_step, new_sums(tile, BLOCK), program, numbers, KEYS, BLOCK.N, BLOCK)
        delta, share = row_statistics(sums, 1, terms.window)
        row, there = tiles.rows_again(tile, None, BLOCK.M)
        place = tile.head * query_rows + tile.first + row
        tl.store(statistics.delta + place, delta, mask=there)
        tl.store(statistics.share + place, share, mask=there)
    else:
        delta = tl.load(statistics.delta + place, mask=tile.there, other=0.0)
        own = tiles.Statistics(lse, delta, tl.load(statistics.share + place, mask=tile.there, other=0.0))
        program = Backward(queries, grads, k, v, own, tile, mask, terms, dropout, numbers, factor)
        total = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
        if EXACT:
            total = tiles.over_seen(exact_gradient_step, total, program, numbers, KEYS, BLOCK.N, BLOCK)
        else:
            total = tiles.over_seen(gradient_step, total, program, numbers, KEYS, BLOCK.N, BLOCK)
            if again is not None:
                distance.flag_not_finite(again, total)
        tiles.store_rows(grad_q, tile, head_dim, None, tiles.rescaled(total, dropout) * scale)


@triton.jit
def marked(delta, alone):
    """delta, or what says that the softmax is over one key."""
    return tl.where(alone, ALONE, delta.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)


@triton.jit
def is_marked(delta):
    return delta.to(tl.int32, bitcast=True) == ALONE


class KeyGradients(NamedTuple):
    """Of the queries so far, `[N, D]`: dK without the scale, and dV."""

    k: tl.tensor
    v: tl.tensor


@triton.jit
def statistics_of_queries(statistics, place, there):
    """Of a block: the log-sum-exp in base 2, delta, what weights are multiplied by, and whether there is one key.

    Pairs are zeros without a query: its weights are no zeros, but its rows are.
    """
    if statistics.share is None:
        pair = statistics.lse + 2 * place[:, None] + tl.arange(0, 2)[None, :]
        lse, delta = tl.split(tl.load(pair, mask=there[:, None], other=0.0))
        share = delta
        alone = there
    else:
        lse = tl.load(statistics.lse + place, mask=there, other=float("inf")) * LOG2_E  # no weight without a query
        delta = tl.load(statistics.delta + place, mask=there, other=0.0)
        share = tl.load(statistics.share + place, mask=there, other=0.0)
        alone = share < 0.0
        share = tl.abs(share)
    return lse, delta, share, alone


@triton.jit
def have_one_key(program, SIDE: tl.constexpr):
    """Whether the queries that see the tile see nothing else: without links either all of them do or none."""
    mask, numbers = program.mask, program.numbers
    bounds = mask.documents + SIDE * numbers.documents
    begin, own_begin, own_end, end = tiles.cluster_rows(mask, bounds, program.tile.document, numbers)
    first = tl.where(begin < own_begin, begin, own_end)
    return is_marked(tl.load(program.statistics.lse + 2 * first + 1, mask=first < end, other=0.0))


@triton.jit
def key_step(total, program, first, last, slot, BLOCK):
    """A block of queries more, whose statistics begin at a slot.

    Scores are `[N, M]`, which makes them left sides of products as they are.
    """
    return any_key_step(total, program, first, last, slot, False, BLOCK)


@triton.jit
def exact_key_step(total, program, first, last, slot, BLOCK):
    """The same, with nothing but what is seen in a sum."""
    return any_key_step(total, program, first, last, slot, True, BLOCK)


@triton.jit
def any_key_step(total, program, first, last, slot, EXACT: tl.constexpr, BLOCK):
    tile, terms, dropout, statistics = program.tile, program.terms, program.dropout, program.statistics
    numbers = program.numbers
    row, there = tiles.block_rows(first, last, program.mask.anchors, numbers.documents, None, BLOCK.M)
    queries = tiles.load_block(program.left_source, first, row, there, tile.own, tile.inside)
    grads = tiles.load_block(program.right_source, first, row, there, tile.own, tile.inside)
    lse, delta, share, alone = statistics_of_queries(statistics, slot + first + row, there)
    row = first + row
    queries = tiles.Operand(queries, program.left_source, row, there)
    grads = tiles.Operand(grads, program.right_source, row, there)
    near = distance.near_block(program, first, tile.first, BLOCK)
    scores = tiles.inner_products(program.left, queries, numbers.head_dim, BLOCK) * program.factor
    scores = distance.add_terms(scores, program.left, queries, near, program, True, BLOCK)
    seen = distance.in_window(there[None, :], tile.row, row, terms)
    weights = tl.exp2(scores - lse[None, :])
    if statistics.share is not None:
        weights *= share[None, :]
    weights = distance.seen_alone(weights, seen, terms)
    slopes = tiles.inner_products(program.right, grads, numbers.head_dim, BLOCK)
    kept_weights = weights
    if dropout is not None:
        if BLOCK.WORDS:
            kept = left_for_keys(dropout, program.mask, tile, row, there, numbers, BLOCK.M)
        else:
            kept = kept_entries(dropout, first, tile.first, tile.head, BLOCK.M, BLOCK.N, True)
        kept_weights = tl.where(kept, weights, 0.0)
        slopes = tl.where(kept, slopes, 0.0)
    if EXACT:
        total_v = distance.seen_product(kept_weights, seen, grads.source, row, tile, total.v)
    else:
        total_v = tiles.product(kept_weights, grads.data, total.v, BLOCK)
    slopes = weights * (slopes - delta[None, :])
    if statistics.share is not None:
        slopes = tl.where(alone[None, :], 0.0, slopes)
    slopes = distance.seen_alone(slopes, seen, terms)
    if EXACT:
        total_k = distance.seen_product(slopes, seen, queries.source, row, tile, total.k)
    else:
        total_k = tiles.product(slopes, queries.data, total.k, BLOCK)
    if terms.queries is not None:
        own = distance.banded(slopes, near, tile.row, first, None, True)
        total_k = tiles.product(own, near.queries.data, total_k, BLOCK)
    return KeyGradients(total_k, total_v)


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
    terms,
    again,  # by row of a program, whether its sums are to be made EXACT; None without a window
    dropout,  # None without
    query_rows,
    num_documents,
    heads,
    head_dim,
    parts,  # blocks of a tile
    include_self,
    size,  # statistics of a head
    scale,
    EXACT: tl.constexpr,
    BLOCK,
):
    numbers = tiles.Numbers(query_rows, num_documents, heads, head_dim, parts, include_self)
    tile = tiles.find_tile(mask, dropout, numbers, KEYS, BLOCK.N, BLOCK.D)
    if tile.first >= tile.last:
        return
    if BLOCK.OVER > 0 and not tiles.is_longer(mask, tile, numbers, KEYS, BLOCK.OVER):
        return
    if EXACT and not distance.is_flagged(again, BLOCK.N):
        return
    place = tile.head * size
    if mask.links is None:
        # A softmax for each document of the cluster, or one for all.
        number = tile.document - tl.load(mask.documents + 4 * num_documents + tile.document)
        place += tl.where(size > query_rows, number * query_rows, 0)
    own = tiles.Statistics(statistics.lse + 2 * place, None, None)
    if statistics.share is not None:
        own = tiles.Statistics(statistics.lse + place, statistics.delta + place, statistics.share + place)
    program = Backward(
        tiles.own_rows(k, tile, BLOCK.D),
        tiles.own_rows(v, tile, BLOCK.D),
        tiles.head_of(q, tile.head, BLOCK.D),
        tiles.head_of(grad_output, tile.head, BLOCK.D),
        own,
        tile,
        mask,
        terms,
        dropout,
        numbers,
        scale * LOG2_E,
    )
    zeros = tl.zeros([BLOCK.N, BLOCK.D], tl.float32)
    total = KeyGradients(zeros, zeros)
    if EXACT:
        total = tiles.over_seen(exact_key_step, total, program, numbers, QUERIES, BLOCK.M, BLOCK)
    else:
        total = tiles.over_seen(key_step, total, program, numbers, QUERIES, BLOCK.M, BLOCK)
        if again is not None:
            distance.flag_not_finite(again, total.k + total.v)
    total_k = total.k
    if statistics.share is None:
        total_k = tl.where(have_one_key(program, QUERIES), 0.0, total_k)
    tiles.store_rows(grad_k, tile, head_dim, dropout, tiles.rescaled(total_k, dropout) * scale)
    tiles.store_rows(grad_v, tile, head_dim, dropout, tiles.rescaled(total.v, dropout))
