"""Attention's forward kernel in Triton: the online softmax of FlashAttention-2 (Dao 2023), in base 2.

A program takes a tile of queries through blocks of keys. A document that sees itself alone and is short enough has the
whole row of its scores on chip, WHOLE, and nothing is rescaled. Tiles and letters of shapes: `triton_tiles.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from spanbert_kernels.ops.attention import triton_distance as distance
from spanbert_kernels.ops.attention import triton_tiles as tiles
from spanbert_kernels.ops.attention.triton_dropout import dealt_draws, dealt_entries, kept_entries, leave_words
from spanbert_kernels.ops.attention.triton_tiles import KEYS, LOG2_E, QUERIES, UNSPECIALIZED
from spanbert_kernels.ops.triton_arguments import Matrix, Philox
from spanbert_kernels.ops.triton_masks import only_if


class Forward(NamedTuple):
    """What a program has from block to block: its queries, the keys and values of its head, the scores' factor."""

    queries: tiles.Operand
    k: Matrix
    v: Matrix
    tile: tiles.RowTile
    mask: tiles.Mask
    terms: tiles.Terms
    dropout: Philox | None
    numbers: tiles.Numbers
    factor: tl.tensor


class OnlineSoftmax(NamedTuple):
    """Of the keys so far: total `[M, D]` of the values, peak `[M]` of the scores in base 2, mass `[M]`."""

    total: tl.tensor
    peak: tl.tensor
    mass: tl.tensor


@triton.jit
def new_softmax(BLOCK):
    peak = tl.full([BLOCK.M], -float("inf"), tl.float32)
    return OnlineSoftmax(tl.zeros([BLOCK.M, BLOCK.D], tl.float32), peak, tl.zeros([BLOCK.M], tl.float32))


@triton.jit
def forward_step(softmax, program, first, last, slot, BLOCK):
    """A block of keys more."""
    return any_forward_step(softmax, program, first, last, False, BLOCK)


@triton.jit
def exact_forward_step(softmax, program, first, last, slot, BLOCK):
    """The same, with nothing but what is seen in a sum."""
    return any_forward_step(softmax, program, first, last, True, BLOCK)


@triton.jit
def any_forward_step(softmax, program, first, last, EXACT: tl.constexpr, BLOCK):
    tile, dropout, numbers = program.tile, program.dropout, program.numbers
    DEALT: tl.constexpr = program.terms.index is None
    row, there = tiles.block_rows(first, last, program.mask.anchors, numbers.documents, dropout, BLOCK.N, DEALT)
    keys = None
    if not BLOCK.CHUNKED:
        keys = tiles.load_block(program.k, first, row, there, 0, tile.inside)
    values = None
    if not EXACT:
        values = tiles.load_block(program.v, first, row, there, tile.own, tile.inside)
    row = first + row
    keys = tiles.Operand(keys, program.k, row, there)
    near = distance.near_block(program, tile.first, first, BLOCK)
    scores = tiles.inner_products(program.queries, keys, numbers.head_dim, BLOCK) * program.factor
    scores = distance.add_terms(scores, program.queries, keys, near, program, False, BLOCK)
    seen = distance.in_window(there[None, :], tile.row, row, program.terms)
    if program.terms.window is None:
        scores += tl.where(there, 0.0, -float("inf"))[None, :]  # with the factor one operation
    else:
        scores = tl.where(seen, scores, -float("inf"))
    peak = tl.maximum(softmax.peak, tl.max(scores, 1))
    # A maximum of -inf stands for no key and must not meet itself.
    subtracted = tl.where(peak == -float("inf"), 0.0, peak)
    weights = tl.exp2(scores - subtracted[:, None])
    mass = tl.sum(weights, 1)
    if dropout is not None:
        if DEALT:
            draws = dealt_draws(dropout, tile.first, first, tile.head, BLOCK.M, BLOCK.N)
            kept = dealt_entries(dropout, draws, BLOCK.M, BLOCK.N)
            if BLOCK.WORDS:
                leave_words(dropout, draws, program.mask, tile, first, numbers, BLOCK.M)
        else:
            kept = kept_entries(dropout, tile.first, first, tile.head, BLOCK.M, BLOCK.N)
        weights = tl.where(kept, weights, 0.0)
        # Divided here and not at the end: else what is chosen is rounded first, and in halves of words.
        weights = tiles.rescaled(weights, dropout)
    total = softmax.total
    if not BLOCK.WHOLE:
        rescale = tl.exp2(softmax.peak - subtracted)
        mass = softmax.mass * rescale + mass
        total = total * rescale[:, None]
    if EXACT:
        total = distance.seen_product(weights, seen, program.v, row, tile, total)
    else:
        total = tiles.product(weights, values, total, BLOCK)
    return OnlineSoftmax(total, peak, mass)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def attention_forward(
    q,
    k,
    v,
    output,  # [query rows, heads, head_dim]
    lse,  # [heads, query rows]
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
    EXACT: tl.constexpr,
    BLOCK,
):
    numbers = tiles.Numbers(query_rows, num_documents, heads, head_dim, parts, include_self)
    tile = tiles.find_tile(mask, None, numbers, QUERIES, BLOCK.M, BLOCK.D)
    if tile.first >= tile.last:
        return
    if EXACT and not distance.is_flagged(again, BLOCK.M):
        return
    if BLOCK.WHOLE and tiles.is_longer(mask, tile, numbers, QUERIES, BLOCK.N):
        return
    queries = tiles.own_rows(q, tile, BLOCK.D)
    k = tiles.head_of(k, tile.head, BLOCK.D)
    v = tiles.head_of(v, tile.head, BLOCK.D)
    program = Forward(queries, k, v, tile, mask, terms, dropout, numbers, scale * LOG2_E)
    softmax = new_softmax(BLOCK)
    if BLOCK.WHOLE:
        bounds = mask.documents + KEYS * num_documents + tile.document
        softmax = forward_step(softmax, program, tl.load(bounds), tl.load(bounds + num_documents), 0, BLOCK)
    elif EXACT:
        softmax = tiles.over_seen(exact_forward_step, softmax, program, numbers, KEYS, BLOCK.N, BLOCK)
    else:
        softmax = tiles.over_seen(forward_step, softmax, program, numbers, KEYS, BLOCK.N, BLOCK)
        if again is not None:
            distance.flag_not_finite(again, softmax.total)
    seen = softmax.mass != 0.0
    mass = tl.where(seen, softmax.mass, 1.0)
    share = 1.0 / mass  # one division a row, not one an element
    tiles.store_rows(output, tile, head_dim, None, softmax.total * share[:, None])
    sums = tl.where(seen, (softmax.peak + tl.log2(mass)) / LOG2_E, -float("inf"))
    row, there = tiles.rows_again(tile, None, BLOCK.M)
    tl.store(lse + tile.head * query_rows + tile.first + row, sums, mask=only_if(tile.own == 0, there))
