"""What all attention kernels in Triton share: a program's tile, the rows that it sees, products, dropout.

A program takes a tile of one document's rows and a head through the rows on the other side: of all keys that its
queries see, or of all queries that see its keys. The rows of a cluster lie in one range, or in two where a document
does not see itself; with links there is a range for each. Nothing that a document does not see is read into its tiles,
so no Inf or NaN can reach it by a weight of 0.

Letters of shapes: M and N rows of a block of queries and of keys, D columns of a head, padded to a power of two. A head
that is wider is CHUNKED: a program makes D columns of the results and goes through all for its scores.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from spanbert_kernels.ops.attention.triton_dropout import dealt_rows
from spanbert_kernels.ops.attention.work import TILE_ROWS
from spanbert_kernels.ops.triton_arguments import Matrix

PIECE = tl.constexpr(TILE_ROWS)  # rows of a tile in the work's lists
LOG2_E = tl.constexpr(1.4426950408889634)
# The sides, by the first of their bounds in AttentionWork.documents.
QUERIES = tl.constexpr(0)
KEYS = tl.constexpr(2)
# What varies from batch to batch.
UNSPECIALIZED = ("query_rows", "num_documents", "heads", "parts", "include_self", "size", "places", "pieces", "runs")


class Rows(NamedTuple):
    """`[rows, heads, head_dim]`, whose last dimension is dense: the data, and the strides of the other two."""

    data: Tensor
    stride: int
    head_stride: int


class Mask(NamedTuple):
    """What the rows of one side see on the other, or are seen by.

    Attributes:
        documents: `AttentionWork.documents`, int64 `[6, documents]`.
        tiles: int32 `[tiles, 2]`, of the one side.
        offsets, links: int64 `[documents + 1]` and `[links]`; absent: the whole cluster.
        slots: int64 `[links]`, where each document that is seen has a softmax of its own: those of `PairStatistics`.
        anchors: the bounds of the other side's rows in `documents`, where these are anchors, else None.
    """

    documents: Tensor
    tiles: Tensor
    offsets: Tensor | None
    links: Tensor | None
    slots: Tensor | None
    anchors: Tensor | None


class Statistics(NamedTuple):
    """Of rows of queries, float32 `[heads, size]`: log-sum-exp and what the backward finds out (`triton_backward.py`).

    `size` is the number of query rows, or larger, where each document that is seen has a softmax of its own.
    """

    lse: Tensor
    delta: Tensor | None
    share: Tensor | None


class Terms(NamedTuple):
    """What hangs on a key's distance from its query (`triton_distance.py`).

    Attributes:
        window: a query sees the keys up to so many rows before and behind it; None: all.
        index, reach: int32 `[2 * reach + 1]`, the tables' row for each distance; None without tables.
        rows: of the tables.
        bias: by distance, `[heads, 2 * reach + 1]`, or None.
        keys, queries: `[rows, heads, head_dim]`, or None.
    """

    window: int | None
    index: Tensor | None  # type: ignore[assignment]  # tuples have a method of that name
    reach: int | None
    rows: int | None
    bias: Tensor | None
    keys: Tensor | None
    queries: Tensor | None


NO_TERMS = Terms(None, None, None, None, None, None, None)


class AttentionTiling(NamedTuple):
    """How a program cuts its work, known when a kernel is compiled.

    Attributes:
        M, N, D: rows of queries and of keys, and columns.
        PRECISION: of a product in float32, Triton's `input_precision`.
        CHUNKED: heads have more than D columns.
        WHOLE: N rows are all keys of a document that sees itself alone.
        INTERPRETED: whether loops and products have the form that the interpreter takes.
        WORDS: the forward leaves the backward what dropout keeps (`triton_dropout.py`).
        OVER: documents of up to so many rows are another kernel's.
    """

    M: int
    N: int
    D: int
    PRECISION: str
    CHUNKED: bool = False
    WHOLE: bool = False
    INTERPRETED: bool = False
    WORDS: bool = False
    OVER: int = 0


class Numbers(NamedTuple):
    """Numbers of query rows, documents, heads and columns, blocks of a tile, and whether a document sees itself."""

    query_rows: int
    documents: int
    heads: int
    head_dim: int
    parts: int
    include_self: int


class RowTile(NamedTuple):
    """A program's rows, of one document and head, and columns of the results.

    Attributes:
        document, head: their numbers.
        first, last: the first row, and the one behind the document's last; the same where there is no row.
        row, there: the rows in their order, and which of them there are.
        own: the first column.
        inside: which columns there are.
    """

    document: tl.tensor
    head: tl.tensor
    first: tl.tensor
    last: tl.tensor
    row: tl.tensor
    there: tl.tensor
    own: tl.tensor
    inside: tl.tensor


class Operand(NamedTuple):
    """Rows of a product over all columns of a head.

    Attributes:
        data: `[rows, D]`, where these are all columns.
        source: the head's, `[1, D]` pointers to its row 0.
        row, there: the rows, and which of them there are.
    """

    data: tl.tensor
    source: Matrix
    row: tl.tensor
    there: tl.tensor


class Ranges(NamedTuple):
    """Two ranges of rows, begin : own_begin and own_end : end."""

    begin: tl.tensor
    own_begin: tl.tensor
    own_end: tl.tensor
    end: tl.tensor


@triton.jit
def block_rows(first, last, anchors, documents, dropout, ROWS: tl.constexpr, DEALT: tl.constexpr = False):
    """The rows of a block counted from `first`, and which of them there are: those below `last`, of anchors those of a
    document.

    With dropout the rows are turned so that four that share a draw stand at a multiple of four, and with DEALT they are
    in the order of `dealt_rows`. They are counted from the first one because numbers of 64 bits for each of them would
    be most of what a step does.
    """
    row = tl.arange(0, ROWS)
    if dropout is not None:
        if DEALT:
            row = dealt_rows(ROWS)
        row = (row - (first & 3).to(tl.int32)) & (ROWS - 1)
    there = row < tl.minimum(last - first, ROWS).to(tl.int32)
    if anchors is not None:
        begin = tl.load(anchors + first + row, mask=there, other=0)
        there = there & (begin < tl.load(anchors + documents + first + row, mask=there, other=0))
    return row, there


@triton.jit
def find_tile(
    mask, dropout, numbers, SIDE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEALT: tl.constexpr = False
):
    """A program's tile; with dropout of keys as `block_rows` turns them.

    Of those that it takes together the first one's program has all rows, the others none.
    """
    program = tl.program_id(0).to(tl.uint32)
    heads = numbers.heads.to(tl.uint32)
    number = program // heads
    head = (program % heads).to(tl.int64)
    part = 0
    if ROWS < PIECE:
        part = (number % numbers.parts.to(tl.uint32)).to(tl.int32)
        number = number // numbers.parts.to(tl.uint32)
    tile = mask.tiles + 2 * number.to(tl.int32)
    bounds = mask.documents + SIDE * numbers.documents
    document = tl.load(tile).to(tl.int64)
    real = document >= 0
    document = tl.maximum(document, 0)
    piece = tl.load(tile + 1)
    first = tl.load(bounds + document) + piece + part * ROWS
    last = tl.load(bounds + numbers.documents + document)
    if ROWS > PIECE:
        real = real & (piece % ROWS == 0)
    last = tl.where(real, last, first)
    row, there = block_rows(first, last, None, 0, dropout, ROWS, DEALT)
    own = tl.program_id(1) * COLUMNS
    inside = own + tl.arange(0, COLUMNS) < numbers.head_dim
    return RowTile(document, head, first, last, first + row, there, own, inside)


@triton.jit
def is_longer(mask, tile, numbers, SIDE: tl.constexpr, ROWS: tl.constexpr):
    """Whether the tile's document has more than so many rows."""
    begin = tl.load(mask.documents + SIDE * numbers.documents + tile.document)
    return tile.last - begin > ROWS


@triton.jit
def head_of(rows, head, COLUMNS: tl.constexpr):
    """A head of Rows, as `[1, COLUMNS]` pointers to its row 0."""
    return Matrix(rows.data + head * rows.head_stride + tl.arange(0, COLUMNS)[None, :], rows.stride)


@triton.jit
def load_rows(source, row, there, column, inside):
    """`[rows, D]` from a column on, zeros where there is no row or column."""
    place = source.data + column + row[:, None] * source.stride
    return tl.load(place, mask=there[:, None] & inside[None, :], other=0.0)


@triton.jit
def load_block(source, first, row, there, column, inside):
    """The same of rows counted from `first`, whose places fit into 32 bits: `rows_of`."""
    return load_rows(Matrix(source.data + first * source.stride, source.stride), row, there, column, inside)


@triton.jit
def own_rows(rows, tile, COLUMNS: tl.constexpr):
    """The tile's rows."""
    source = head_of(rows, tile.head, COLUMNS)
    values = load_block(source, tile.first, (tile.row - tile.first).to(tl.int32), tile.there, tile.own, tile.inside)
    return Operand(values, source, tile.row, tile.there)


@triton.jit
def rows_again(tile, dropout, ROWS: tl.constexpr, DEALT: tl.constexpr = False):
    """The tile's rows counted from its first one, and which of them there are: `row` and `there` by another way.

    The compiler would keep what is the same through a loop, for which registers are short.
    """
    return block_rows(tile.first, tile.last, None, 0, dropout, ROWS, DEALT)


@triton.jit
def store_rows(target, tile, head_dim, dropout, values, DEALT: tl.constexpr = False):
    """Write the tile's rows of Rows, of keys with dropout as `block_rows` turns them."""
    row, there = rows_again(tile, dropout, values.shape[0], DEALT)
    column = tl.arange(0, values.shape[1])
    start = target.data + tile.first * target.stride + tile.head * target.head_stride + tile.own
    place = start + (row[:, None] * target.stride + column[None, :])
    inside = column < head_dim - tile.own
    tl.store(place, values.to(target.data.dtype.element_ty), mask=there[:, None] & inside[None, :])


@triton.jit
def product(left, right, total, BLOCK):
    """`total + left @ right`; the left side is rounded to the right one's dtype."""
    if BLOCK.INTERPRETED:  # the interpreter has no products in bfloat16
        total = tl.dot(left.to(tl.float32), right.to(tl.float32), total, input_precision=BLOCK.PRECISION)
    else:
        total = tl.dot(left.to(right.dtype), right, total, input_precision=BLOCK.PRECISION)
    return total


@triton.jit
def rounded(x, dtype: tl.constexpr, BLOCK):
    """In the dtype that `product` takes, before it is transposed; not in the interpreter, whose bfloat16 is cut off."""
    if not BLOCK.INTERPRETED:
        x = x.to(dtype)
    return x


@triton.jit
def inner_products(left, right, head_dim, BLOCK):
    """Of two operands, over all columns of a head."""
    total = tl.zeros([left.row.shape[0], right.row.shape[0]], tl.float32)
    if BLOCK.CHUNKED:
        done = 0
        while done < head_dim:
            inside = done + tl.arange(0, BLOCK.D) < head_dim
            x = load_rows(left.source, left.row, left.there, done, inside)
            y = load_rows(right.source, right.row, right.there, done, inside)
            total = product(x, tl.trans(y), total, BLOCK)
            done += BLOCK.D
    else:
        total = product(left.data, tl.trans(right.data), total, BLOCK)
    return total


@triton.jit
def rescaled(x, dropout):
    """What dropout keeps, as large as all of it was."""
    if dropout is not None:
        x = x * (1.0 / dropout.keep_prob)
    return x


@triton.jit
def linked_rows(mask, bounds, place, documents):
    """The rows of the document at a place in the links, none where it is passed over."""
    other = tl.load(mask.links + place)
    begin = tl.load(bounds + tl.maximum(other, 0))
    return begin, tl.where(other >= 0, tl.load(bounds + documents + tl.maximum(other, 0)), begin)


@triton.jit
def cluster_rows(mask, bounds, document, numbers):
    """The rows of a document's cluster, with or without its own."""
    clusters = mask.documents + 4 * numbers.documents
    begin = tl.load(bounds + tl.load(clusters + document))
    end = tl.load(bounds + numbers.documents + tl.load(clusters + numbers.documents + document) - 1)
    own_begin = tl.where(numbers.include_self > 0, end, tl.load(bounds + document))
    own_end = tl.where(numbers.include_self > 0, end, tl.load(bounds + numbers.documents + document))
    return Ranges(begin, own_begin, own_end, end)


@triton.jit
def window_ranges(ranges, tile, window, ROWS: tl.constexpr):
    """Of the rows of the tile's document, which lie in one range, those in the window of any of the tile's rows."""
    end = tl.minimum(ranges.end, tl.minimum(tile.first + ROWS, tile.last) + window)
    return Ranges(tl.maximum(ranges.begin, tile.first - window), end, end, end)


@triton.jit
def count_blocks(begin, end, ROWS: tl.constexpr):
    return ((tl.maximum(end - begin, 0) + ROWS - 1) // ROWS).to(tl.int32)


@triton.jit
def block_bounds(block, before, ranges, ROWS: tl.constexpr):
    """The first row of a block and the row behind its range, `before` blocks being of the first range."""
    first = tl.where(block < before, ranges.begin + block * ROWS, ranges.own_end + (block - before) * ROWS)
    return first, tl.where(block < before, ranges.own_begin, ranges.end)


@triton.jit
def over_ranges(STEP: tl.constexpr, state, program, ranges, ROWS: tl.constexpr, BLOCK):
    """`state` after a STEP with each block of two ranges: its first row and the row behind the range."""
    before = count_blocks(ranges.begin, ranges.own_begin, ROWS)
    blocks = before + count_blocks(ranges.own_end, ranges.end, ROWS)
    if BLOCK.INTERPRETED:
        block = 0
        while block < blocks:
            first, last = block_bounds(block, before, ranges, ROWS)
            state = STEP(state, program, first, last, 0, BLOCK)
            block += 1
    else:
        # The same loop, in the form that the compiler pipelines.
        for block in tl.range(0, blocks):
            first, last = block_bounds(block, before, ranges, ROWS)
            state = STEP(state, program, first, last, 0, BLOCK)
    return state


@triton.jit
def over_seen(STEP: tl.constexpr, state, program, numbers, SIDE: tl.constexpr, ROWS: tl.constexpr, BLOCK):
    """`state` after a STEP with each block of rows on the other side, SIDE, that belong to the program's tile."""
    mask, document = program.mask, program.tile.document
    bounds = mask.documents + SIDE * numbers.documents
    if mask.links is None:
        ranges = cluster_rows(mask, bounds, document, numbers)
        if program.terms.window is not None:
            ranges = window_ranges(ranges, program.tile, program.terms.window, program.tile.row.shape[0])
        state = over_ranges(STEP, state, program, ranges, ROWS, BLOCK)
    else:
        # One loop over the blocks of all links: loops in loops cost registers.
        place = tl.load(mask.offsets + document)
        behind = tl.load(mask.offsets + document + 1)
        done = (place * 0).to(tl.int32)  # of the rows of a link
        while place < behind:
            begin, end = linked_rows(mask, bounds, place, numbers.documents)
            slot = place * 0
            if mask.slots is not None:
                slot = tl.load(mask.slots + place)
            first = begin + done
            # Where it goes on is known before the step, which need not hold `begin` then.
            more = first + ROWS < end
            place = tl.where(more, place, place + 1)
            done = tl.where(more, done + ROWS, 0)
            state = STEP(state, program, first, end, slot, BLOCK)
    return state
