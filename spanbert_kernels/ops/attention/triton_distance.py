"""What hangs on a key's distance from its query, in attention's Triton kernels: windows, and terms of the logits.

The pairs of a block of queries and one of keys have M + N - 1 distances, one after the other, from `low` on: so the
tables' rows for them are loaded, `[Y, D]`, multiplied by the queries or the keys, and each pair takes its own product
by a gather along distances; a bias is loaded for each pair. The same gather the other way round, `banded`, lays slopes
out by distance: each row has at most one pair at a distance, so there is nothing to add up.

A window hides pairs within a block. Their weight is 0, and 0 times Inf or NaN is NaN: where that came out, a second
launch, EXACT, begins again and adds row by row, only what is seen (`seen_product`).

Letters of shapes: `triton_tiles.py`; L and R are rows of a block's own side and of the other, Y its distances.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from spanbert_kernels.ops.attention import triton_tiles as tiles
from spanbert_kernels.ops.attention.triton_tiles import LOG2_E
from spanbert_kernels.ops.triton_arguments import Matrix
from spanbert_kernels.ops.triton_masks import only_if


class Near(NamedTuple):
    """What the pairs of two blocks take from tables.

    Attributes:
        low: the smallest distance.
        row: `[Y]`, the tables' rows.
        keys, queries: those of the tables of these names, `[Y, D]`.
    """

    low: tl.tensor
    row: tl.tensor
    keys: tiles.Operand
    queries: tiles.Operand


@triton.jit
def place_of(terms, distance):
    """A distance's among those with an entry of their own."""
    return tl.minimum(tl.maximum(distance, -terms.reach), terms.reach) + terms.reach


@triton.jit
def bias_of(terms, distance, head):
    """The bias at distances, in base 2."""
    return tl.load(terms.bias + head * (2 * terms.reach + 1) + place_of(terms, distance)).to(tl.float32) * LOG2_E


@triton.jit
def table_rows(terms, low, COUNT: tl.constexpr):
    """The tables' rows `[COUNT]` for distances from `low` on. On a GPU nobody has looked at the index."""
    place = place_of(terms, (low + tl.arange(0, COUNT)).to(tl.int32))
    return tl.minimum(tl.maximum(tl.load(terms.index + place), 0), terms.rows - 1).to(tl.int64)


@triton.jit
def table_operand(table, row, tile, numbers, BLOCK):
    """Rows of a table as a side of a product, and of its own columns."""
    source = table + tile.head * numbers.head_dim + tl.arange(0, BLOCK.D)[None, :]
    source = Matrix(source, numbers.heads * numbers.head_dim)
    there = row >= 0
    return tiles.Operand(tiles.load_rows(source, row, there, tile.own, tile.inside), source, row, there)


@triton.jit
def near_block(program, query_first, key_first, BLOCK):
    """What a block of queries and one of keys take from tables; what there is no table for holds something else."""
    terms, tile, numbers = program.terms, program.tile, program.numbers
    low = key_first - query_first - (BLOCK.M - 1)
    row = low
    keys = low
    queries = low
    if terms.index is not None:
        row = table_rows(terms, low, triton.next_power_of_2(BLOCK.M + BLOCK.N))
        if terms.keys is not None:
            keys = table_operand(terms.keys, row, tile, numbers, BLOCK)
        if terms.queries is not None:
            queries = table_operand(terms.queries, row, tile, numbers, BLOCK)
    return Near(low, row, keys, queries)


@triton.jit
def distances(left, right, KEYS_LEFT: tl.constexpr):
    """Of keys from queries, `[L, R]`."""
    distance = right.to(tl.int32)[None, :] - left.to(tl.int32)[:, None]
    if KEYS_LEFT:
        distance = -distance
    return distance


@triton.jit
def add_terms(scores, left, right, near, program, KEYS_LEFT: tl.constexpr, BLOCK):
    """Scores in base 2 of two operands, with their terms; with KEYS_LEFT those on the left are keys."""
    terms = program.terms
    if terms.index is not None:
        distance = distances(left.row, right.row, KEYS_LEFT)
        place = distance - near.low.to(tl.int32)
        if terms.bias is not None:
            scores += bias_of(terms, distance, program.tile.head)
        if KEYS_LEFT:
            if terms.queries is not None:
                scores += along(left, near.queries, place, program, BLOCK)
            if terms.keys is not None:
                scores += across(near.keys, right, place, program, BLOCK)
        else:
            if terms.keys is not None:
                scores += along(left, near.keys, place, program, BLOCK)
            if terms.queries is not None:
                scores += across(near.queries, right, place, program, BLOCK)
    return scores


@triton.jit
def along(left, table, place, program, BLOCK):
    """The products of each own row with a table's row for each pair."""
    return tl.gather(tiles.inner_products(left, table, program.numbers.head_dim, BLOCK), place, 1) * program.factor


@triton.jit
def across(table, right, place, program, BLOCK):
    """The same of the other side's rows."""
    return tl.gather(tiles.inner_products(table, right, program.numbers.head_dim, BLOCK), place, 0) * program.factor


@triton.jit
def banded(slopes, near, left, first, dropout, KEYS_LEFT: tl.constexpr):
    """Slopes `[L, R]` by distance, `[L, Y]`: of each own row that of the row at a distance, 0 where there is none.

    `first`: the other side's first row; with `dropout` these are turned as `block_rows` does.
    """
    ROWS: tl.constexpr = slopes.shape[1]
    distance = near.low.to(tl.int32) + tl.arange(0, near.row.shape[0])[None, :]
    if KEYS_LEFT:
        distance = -distance
    number = (left.to(tl.int32) - first.to(tl.int32))[:, None] + distance
    place = number
    if dropout is not None:
        place += (first & 3).to(tl.int32)
    return tl.where((number >= 0) & (number < ROWS), tl.gather(slopes, place & (ROWS - 1), 1), 0.0)


@triton.jit
def in_window(seen, left, right, terms):
    """Those of the pairs `[L, R]`, or `[1, R]`, in the window."""
    if terms.window is not None:
        seen = seen & (tl.abs(distances(left, right, False)) <= terms.window)
    return seen


@triton.jit
def seen_alone(x, seen, terms):
    """Of a matrix, 0 in the place of what a window hides."""
    if terms.window is not None:
        x = tl.where(seen, x, 0.0)
    return x


@triton.jit
def own_flags(flags, ROWS: tl.constexpr):
    """A program's, of its rows."""
    program = (tl.program_id(0) * tl.num_programs(1) + tl.program_id(1)).to(tl.int64)
    return flags + program * ROWS + tl.arange(0, ROWS)


@triton.jit
def not_finite(x):
    """Whether a matrix holds Inf or NaN."""
    return tl.max(tl.max((x - x != 0.0).to(tl.int32), 1), 0) > 0


@triton.jit
def flag_not_finite(flags, x):
    """Note of each row of a matrix whether it holds Inf or NaN.

    Of each, because the compiler for GPUs of 10.0 has no layout for one number that hangs on a product.
    """
    tl.store(own_flags(flags, x.shape[0]), tl.max((x - x != 0.0).to(tl.int8), 1))


@triton.jit
def is_flagged(flags, ROWS: tl.constexpr):
    """Whether any row of a program is."""
    return tl.max(tl.load(own_flags(flags, ROWS)).to(tl.int32), 0) > 0


@triton.jit
def seen_product(left, seen, source, row, tile, total):
    """`total + left @ right` of rows `[N]` of a source, each for those rows on the left that see it alone."""
    column = tl.arange(0, left.shape[1])
    end = tl.max(tl.max(tl.where(seen, column[None, :] + 1, 0), 1), 0)
    place = 0
    while place < end:
        mine = column == place
        factor = tl.sum(tl.where(mine[None, :], left, 0.0), 1)
        sees = tl.max((mine[None, :] & seen).to(tl.int32), 1) > 0
        there = tl.max(sees.to(tl.int32), 0) > 0
        start = source.data + tile.own + tl.sum(tl.where(mine, row, 0), 0) * source.stride
        right = tl.load(start, mask=only_if(there, tile.inside[None, :]), other=0.0).to(tl.float32)
        total += tl.where(sees[:, None], factor[:, None] * right, 0.0)
        place += 1
    return total
