"""Attention from anchors to anchors in Triton, of whole clusters.

Every document has one row on either side, and those of a cluster lie side by side. So a program takes M documents that
follow each other, of whatever clusters, through all documents of these clusters, N at a time, and each query sees those
of its own. Nothing hangs on how large a cluster is.

What a query does not see has a weight of 0, and 0 times Inf or NaN is NaN: a block of values that holds some is added
row by row (`triton_distance.seen_product`). Letters of shapes: `triton_tiles.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from spanbert_kernels.ops.attention import triton_distance as distance
from spanbert_kernels.ops.attention import triton_tiles as tiles
from spanbert_kernels.ops.attention.operators import new_lse
from spanbert_kernels.ops.attention.triton_dropout import kept_entries
from spanbert_kernels.ops.attention.triton_forward import OnlineSoftmax, new_softmax
from spanbert_kernels.ops.attention.triton_launch import Loops, loop_options, rows_of
from spanbert_kernels.ops.attention.triton_tiles import LOG2_E, Rows
from spanbert_kernels.ops.attention.work import AttentionWork
from spanbert_kernels.ops.philox import Dropout
from spanbert_kernels.ops.repeats import start
from spanbert_kernels.ops.triton_arguments import Matrix, Philox, on, philox_of
from spanbert_kernels.ops.triton_masks import only_if

# The fewest rows that a product takes are more than most clusters have.
ANCHORS: Loops = {
    (16, 64, False): (16, 32, 4, 1),
    (16, 128, False): (16, 32, 4, 1),
    (16, 128, True): (16, 32, 4, 1),
    (32, 64, False): (16, 32, 8, 1),
    (32, 32, True): (16, 16, 4, 1),
}


class Neighbours(NamedTuple):
    """Of a program's documents those that they see, or are seen by: it is the same.

    Attributes:
        begin, end: int32 `[rows]`, of each its cluster's documents, counted from the tile's first; none where it has no
            row.
        own: its own number, likewise.
        first, last: the first of all clusters', and the one behind their last.
        bounds: `AttentionWork.documents`' of all documents.
    """

    begin: tl.tensor
    end: tl.tensor
    own: tl.tensor
    first: tl.tensor
    last: tl.tensor
    bounds: tl.tensor


class AnchorQueries(NamedTuple):
    """What a program has from block to block: its queries, the keys and values of its head, the scores' factor."""

    queries: tiles.Operand
    k: Matrix
    v: Matrix
    tile: tiles.RowTile
    near: Neighbours
    dropout: Philox | None
    numbers: tiles.Numbers
    factor: tl.tensor


@triton.jit
def own_documents(documents, numbers, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A program's rows as a tile, and their neighbours. It has rows of empty documents, too, which have none."""
    program = tl.program_id(0).to(tl.uint32)
    head = (program % numbers.heads.to(tl.uint32)).to(tl.int64)
    first = (program // numbers.heads.to(tl.uint32)).to(tl.int64) * ROWS
    count = numbers.documents
    row, there = tiles.block_rows(first, count, None, 0, None, ROWS)
    own = tl.program_id(1) * COLUMNS
    inside = own + tl.arange(0, COLUMNS) < numbers.head_dim
    tile = tiles.RowTile(head, head, first, head * 0 + count, first + row, there, own, inside)
    _, real = tiles.block_rows(first, count, documents, count, None, ROWS)
    begin = tl.load(documents + 4 * count + tile.row, mask=real, other=count)
    end = tl.load(documents + 5 * count + tile.row, mask=real, other=0)
    low = tl.min(begin, 0)
    high = tl.max(end, 0)
    begin = (begin - first).to(tl.int32)
    end = (end - first).to(tl.int32)
    return tile, Neighbours(begin, end, row, low, high, documents)


@triton.jit
def other_documents(near, tile, first, last, dropout, numbers, ROWS: tl.constexpr):
    """A block of them: the rows counted from `first` and which of them there are, and which each own row sees."""
    row, there = tiles.block_rows(first, last, near.bounds, numbers.documents, dropout, ROWS)
    number = row + (first - tile.first).to(tl.int32)  # 64 bits for each pair would be too many
    seen = there[None, :] & (number[None, :] >= near.begin[:, None]) & (number[None, :] < near.end[:, None])
    return row, there, seen & ((number[None, :] != near.own[:, None]) | (numbers.include_self > 0))


@triton.jit
def over_neighbours(STEP: tl.constexpr, state, program, ROWS: tl.constexpr, BLOCK):
    """`state` after a STEP with each block of them."""
    last = program.near.last
    return tiles.over_ranges(STEP, state, program, tiles.Ranges(program.near.first, last, last, last), ROWS, BLOCK)


@triton.jit
def add_seen(total, left, seen, data, source, row, tile, BLOCK):
    """`total + left @ data`, in which what is not seen has no part whatever it holds."""
    if distance.not_finite(data.to(tl.float32)):
        total = distance.seen_product(left, seen, source, row, tile, total)
    else:
        total = tiles.product(left, data, total, BLOCK)
    return total


@triton.jit
def anchor_step(softmax, program, first, last, slot, BLOCK):
    """A block of keys more."""
    tile, dropout, numbers = program.tile, program.dropout, program.numbers
    row, there, seen = other_documents(program.near, tile, first, last, dropout, numbers, BLOCK.N)
    keys = None
    if not BLOCK.CHUNKED:
        keys = tiles.load_block(program.k, first, row, there, 0, tile.inside)
    values = tiles.load_block(program.v, first, row, there, tile.own, tile.inside)
    row = first + row
    keys = tiles.Operand(keys, program.k, row, there)
    scores = tiles.inner_products(program.queries, keys, numbers.head_dim, BLOCK) * program.factor
    scores = tl.where(seen, scores, -float("inf"))
    peak = tl.maximum(softmax.peak, tl.max(scores, 1))
    # A maximum of -inf stands for no key and must not meet itself.
    subtracted = tl.where(peak == -float("inf"), 0.0, peak)
    weights = tl.exp2(scores - subtracted[:, None])
    rescale = tl.exp2(softmax.peak - subtracted)
    mass = softmax.mass * rescale + tl.sum(weights, 1)
    if dropout is not None:
        kept = kept_entries(dropout, tile.first, first, tile.head, BLOCK.M, BLOCK.N)
        weights = tiles.rescaled(tl.where(kept, weights, 0.0), dropout)
    total = add_seen(softmax.total * rescale[:, None], weights, seen, values, program.v, row, tile, BLOCK)
    return OnlineSoftmax(total, peak, mass)


@triton.jit(do_not_specialize=("num_documents", "heads", "include_self"))
def anchors_forward(
    q,
    k,
    v,
    output,  # [documents, heads, head_dim]
    lse,  # [heads, documents]
    documents,  # int64 [6, documents]
    dropout,  # None without
    num_documents,
    heads,
    head_dim,
    include_self,
    scale,
    BLOCK,
):
    numbers = tiles.Numbers(num_documents, num_documents, heads, head_dim, 1, include_self)
    tile, near = own_documents(documents, numbers, BLOCK.M, BLOCK.D)
    queries = tiles.own_rows(q, tile, BLOCK.D)
    k = tiles.head_of(k, tile.head, BLOCK.D)
    v = tiles.head_of(v, tile.head, BLOCK.D)
    program = AnchorQueries(queries, k, v, tile, near, dropout, numbers, scale * LOG2_E)
    softmax = over_neighbours(anchor_step, new_softmax(BLOCK), program, BLOCK.N, BLOCK)
    seen = softmax.mass != 0.0
    tiles.store_rows(output, tile, head_dim, None, softmax.total / tl.where(seen, softmax.mass, 1.0)[:, None])
    sums = tl.where(seen, (softmax.peak + tl.log2(tl.where(seen, softmax.mass, 1.0))) / LOG2_E, -float("inf"))
    row, there = tiles.rows_again(tile, None, BLOCK.M)
    tl.store(lse + tile.head * num_documents + tile.first + row, sums, mask=only_if(tile.own == 0, there))


def is_between_anchors(work: AttentionWork) -> bool:
    """Of whole clusters."""
    return work.anchor_queries and work.anchor_keys and work.clustered and work.links is None


def launch_anchors(
    q: Tensor, k: Tensor, v: Tensor, work: AttentionWork, scale: float, dropout: Dropout
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of every row, those of empty documents too, where there is a row."""
    output, lse = q.new_empty(q.shape), new_lse(q)
    options = loop_options(q, ANCHORS)
    programs = triton.cdiv(q.shape[0], options.block.M) * q.shape[1]
    with on(q.device):
        start(anchors_forward, programs, triton.cdiv(q.shape[2], options.block.D))(
            **rows_of(q=q, k=k, v=v),
            output=Rows(output, output.stride(0), output.stride(1)),
            lse=lse,
            documents=work.documents,
            dropout=philox_of(dropout),
            num_documents=q.shape[0],
            heads=q.shape[1],
            head_dim=q.shape[2],
            include_self=int(work.include_self),
            scale=scale,
            **options.arguments,
        )
    return output, lse
