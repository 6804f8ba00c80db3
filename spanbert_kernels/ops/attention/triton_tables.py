"""Gradients of the tables by distance in Triton, without atomics.

A program has a run of distances, N of them, and a head, and takes a piece of all blocks of queries, the same one
whatever the GPU: the pairs of a block at these distances lie in a band of M + N keys. Scores and slopes are made again
for the band; each query's are taken from where its own part begins, `[M, N]`, and added up by distance. What lies
beyond the tables' reach has a run of its own at either end, whose rows are all one row of the tables.

`table_backward` leaves sums by distance for each piece; `rows_of_distances` adds those that have a table's row in
common, one distance after the other.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from spanbert_kernels.ops.attention import triton_distance as distance
from spanbert_kernels.ops.attention import triton_tiles as tiles
from spanbert_kernels.ops.attention.triton_dropout import kept_entries
from spanbert_kernels.ops.attention.triton_tiles import LOG2_E, UNSPECIALIZED
from spanbert_kernels.ops.triton_arguments import Matrix, Philox
from spanbert_kernels.ops.triton_masks import only_if


class DistanceSums(NamedTuple):
    """Where sums by distance go, float32 `[pieces, heads, distances]` and `[.., head_dim]`; None without the table."""

    bias: tl.tensor
    keys: tl.tensor
    queries: tl.tensor


class DistanceRun(NamedTuple):
    """A run of distances.

    Attributes:
        low: the first one.
        turn: -1 beyond the reach before the query, 1 behind it, 0 within.
        keys, queries: those of the tables, `[N, D]`.
    """

    low: tl.tensor
    turn: tl.tensor
    keys: tiles.Operand
    queries: tiles.Operand


class TableProgram(NamedTuple):
    """What a program reads: a head's rows, its statistics from row 0 on, and the rest of the call."""

    q: Matrix
    k: Matrix
    v: Matrix
    grad_output: Matrix
    statistics: tiles.Statistics
    terms: tiles.Terms
    dropout: Philox | None
    tile: tiles.RowTile
    numbers: tiles.Numbers
    factor: tl.tensor


class QueryBlock(NamedTuple):
    """Rows of queries, and the first and the last of their document's."""

    row: tl.tensor
    there: tl.tensor
    first: tl.tensor
    begin: tl.tensor
    end: tl.tensor


@triton.jit
def operand(source, row, there, tile):
    return tiles.Operand(tiles.load_rows(source, row, there, tile.own, tile.inside), source, row, there)


@triton.jit
def add_band(total, source, run, block, shift, BLOCK):
    """A band more, of the run's distances moved by `shift`."""
    tile, terms, dropout, numbers = source.tile, source.terms, source.dropout, source.numbers
    BAND: tl.constexpr = BLOCK.M + BLOCK.N
    low = run.low + shift
    first = block.first + low
    key, _ = tiles.block_rows(first, block.end, None, 0, dropout, BAND)
    key = first + key
    there = (key >= block.begin) & (key < block.end)
    queries = operand(source.q, block.row, block.there, tile)
    grads = operand(source.grad_output, block.row, block.there, tile)
    keys = operand(source.k, key, there, tile)
    values = operand(source.v, key, there, tile)
    query_number = tl.arange(0, BLOCK.M)[:, None]
    number = tl.arange(0, BLOCK.N)[None, :]
    place = query_number + number
    lane = 0
    if dropout is not None:
        lane = (first & 3).to(tl.int32)
    place = (place + lane) & (BAND - 1)
    scores = tl.gather(tiles.inner_products(queries, keys, numbers.head_dim, BLOCK), place, 1)
    if terms.keys is not None:
        scores += tiles.inner_products(queries, run.keys, numbers.head_dim, BLOCK)
    if terms.queries is not None:
        scores += tl.gather(tiles.inner_products(keys, run.queries, numbers.head_dim, BLOCK), place, 0)
    scores *= source.factor
    if terms.bias is not None:
        scores += distance.bias_of(terms, (low + number).to(tl.int32), tile.head)
    statistics = source.statistics
    lse = tl.load(statistics.lse + block.row, mask=block.there, other=float("inf")) * LOG2_E
    delta = tl.load(statistics.delta + block.row, mask=block.there, other=0.0)
    share = tl.load(statistics.share + block.row, mask=block.there, other=0.0)
    far = low + number
    key = block.row[:, None] + far
    seen = (key >= block.begin) & (key < block.end) & block.there[:, None] & (share[:, None] > 0)
    seen = seen & ((run.turn != 0) | (far <= terms.reach))
    if terms.window is not None:
        seen = seen & (tl.abs(far) <= terms.window)
    slopes = tiles.inner_products(grads, values, numbers.head_dim, BLOCK)
    if dropout is not None:
        kept = kept_entries(dropout, block.first, first, tile.head, BLOCK.M, BAND)
        slopes = tl.where(kept, slopes, 0.0)
    slopes = tl.gather(slopes, place, 1)
    weights = tl.exp2(scores - lse[:, None]) * share[:, None]
    slopes = tl.where(seen, weights * (slopes - delta[:, None]), 0.0)
    total_bias = total.bias
    total_keys = total.keys
    total_queries = total.queries
    if terms.bias is not None:
        total_bias += tl.sum(slopes, 0)
    slopes = tiles.rounded(slopes, source.q.data.dtype.element_ty, BLOCK)
    if terms.keys is not None:
        total_keys = tiles.product(tl.trans(slopes), queries.data, total_keys, BLOCK)
    if terms.queries is not None:
        # By keys: of each the query at a distance.
        order = (tl.arange(0, BAND) - lane) & (BAND - 1)
        asked = order[:, None] - number
        slopes = tl.gather(slopes, asked & (BLOCK.M - 1), 0)
        slopes = tl.where((asked >= 0) & (asked < BLOCK.M), slopes, 0.0)
        total_queries = tiles.product(tl.trans(slopes), keys.data, total_queries, BLOCK)
    return DistanceSums(total_bias, total_keys, total_queries)


@triton.jit
def new_sums(terms, BLOCK):
    """Zeros; where there is no table, those that are never added to."""
    bias = tl.zeros([BLOCK.N], tl.float32)
    keys = bias
    queries = bias
    if terms.keys is not None:
        keys = tl.zeros([BLOCK.N, BLOCK.D], tl.float32)
    if terms.queries is not None:
        queries = tl.zeros([BLOCK.N, BLOCK.D], tl.float32)
    return DistanceSums(bias, keys, queries)


@triton.jit
def count_bands(run, block, terms, BLOCK):
    """Bands of a block of queries that have pairs at the run's distances, or at those that go on from it."""
    before = block.first + BLOCK.M - 1 - block.begin
    behind = block.end - 1 - block.first
    if terms.window is not None:
        before = tl.minimum(before, terms.window)
        behind = tl.minimum(behind, terms.window)
    within = ((run.low <= behind) & (run.low + BLOCK.N > -before)).to(tl.int64)
    beyond = tl.maximum(tl.where(run.turn < 0, before, behind) - terms.reach, 0)
    return tl.where(run.turn == 0, within, (beyond + BLOCK.N - 1) // BLOCK.N)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def table_backward(
    grad_output,
    q,
    k,
    v,
    statistics,
    sums,  # [pieces, heads, runs * N], and with head_dim columns
    mask,  # of queries
    terms,
    dropout,  # None without
    query_rows,
    num_documents,
    heads,
    head_dim,
    parts,  # blocks of a tile
    include_self,
    size,  # blocks of queries
    pieces,
    runs,
    scale,
    BLOCK,
):
    numbers = tiles.Numbers(query_rows, num_documents, heads, head_dim, parts, include_self)
    program = tl.program_id(0)
    head = (program % heads).to(tl.int64)
    turn = program // heads % runs
    piece = program // heads // runs
    own = tl.program_id(1) * BLOCK.D
    inside = own + tl.arange(0, BLOCK.D) < head_dim
    empty = tl.arange(0, BLOCK.M).to(tl.int64)
    tile = tiles.RowTile(head, head, head, head, empty, empty < 0, own, inside)
    low = -terms.reach + (turn - 1) * BLOCK.N  # of the first run beyond the reach, too
    low = tl.where(turn == runs - 1, terms.reach + 1, low)
    row = distance.table_rows(terms, low, BLOCK.N)
    keys = row
    queries = row
    if terms.keys is not None:
        keys = distance.table_operand(terms.keys, row, tile, numbers, BLOCK)
    if terms.queries is not None:
        queries = distance.table_operand(terms.queries, row, tile, numbers, BLOCK)
    direction = tl.where(turn == 0, -1, tl.where(turn == runs - 1, 1, 0))
    run = DistanceRun(low, direction, keys, queries)
    place = head * query_rows
    source = TableProgram(
        tiles.head_of(q, head, BLOCK.D),
        tiles.head_of(k, head, BLOCK.D),
        tiles.head_of(v, head, BLOCK.D),
        tiles.head_of(grad_output, head, BLOCK.D),
        tiles.Statistics(statistics.lse + place, statistics.delta + place, statistics.share + place),
        terms,
        dropout,
        tile,
        numbers,
        scale * LOG2_E,
    )
    total = new_sums(terms, BLOCK)
    number = piece
    while number < size:
        entry = mask.tiles + 2 * (number // parts)
        document = tl.load(entry).to(tl.int64)
        real = document >= 0
        document = tl.maximum(document, 0)
        begin = tl.load(mask.documents + document)
        end = tl.load(mask.documents + num_documents + document)
        first = begin + tl.load(entry + 1) + number % parts * BLOCK.M
        rows = first + tl.arange(0, BLOCK.M)
        block = QueryBlock(rows, rows < end, first, begin, end)
        bands = tl.where(real & (first < end), count_bands(run, block, terms, BLOCK), 0)
        band = bands * 0
        while band < bands:
            total = add_band(total, source, run, block, direction * band * BLOCK.N, BLOCK)
            band += 1
        number += pieces
    start = ((piece.to(tl.int64) * heads + head) * runs + turn) * BLOCK.N + tl.arange(0, BLOCK.N)
    if terms.bias is not None:
        tl.store(sums.bias + start, tiles.rescaled(total.bias, dropout), mask=only_if(own == 0, start >= 0))
    start = start[:, None] * head_dim + own + tl.arange(0, BLOCK.D)[None, :]
    if terms.keys is not None:
        tl.store(sums.keys + start, tiles.rescaled(total.keys, dropout) * scale, mask=inside[None, :])
    if terms.queries is not None:
        tl.store(sums.queries + start, tiles.rescaled(total.queries, dropout) * scale, mask=inside[None, :])


@triton.jit(do_not_specialize=("heads", "columns", "distances"))
def rows_of_distances(
    sums,  # [heads, distances, columns]
    gradient,  # [rows, heads, columns]
    index,  # [2 * reach + 1]
    reach,
    rows,
    heads,
    columns,
    distances,
    skipped,  # distances before -reach
    BLOCK,
):
    """Add up what has a row in common: M rows of the gradient, N distances at a time, D columns."""
    head = tl.program_id(1)
    row = tl.program_id(0) * BLOCK.M + tl.arange(0, BLOCK.M)
    column = tl.program_id(2) * BLOCK.D + tl.arange(0, BLOCK.D)
    inside = column < columns
    total = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
    first = 0
    while first < distances:
        number = first + tl.arange(0, BLOCK.N)
        there = number < distances
        place = tl.minimum(tl.maximum(number - skipped, 0), 2 * reach)
        mine = tl.minimum(tl.maximum(tl.load(index + place), 0), rows - 1)
        start = (head.to(tl.int64) * distances + number)[:, None] * columns + column[None, :]
        values = tl.load(sums + start, mask=there[:, None] & inside[None, :], other=0.0)
        chosen = ((row[:, None] == mine[None, :]) & there[None, :]).to(tl.float32)
        total = tl.dot(chosen, values, total, input_precision="ieee")
        first += BLOCK.N
    start = (row.to(tl.int64)[:, None] * heads + head) * columns + column[None, :]
    tl.store(gradient + start, total.to(gradient.dtype.element_ty), mask=(row < rows)[:, None] & inside[None, :])
