"""Gradients of attention from anchors to anchors in Triton, in the blocks of `triton_anchors.py`.

Queries go through their keys twice, for the sums of their rows and for their gradient, and keep the sums for the keys,
which go through their queries once. What is computed is that of `triton_backward.py`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from spanbert_kernels.ops.attention import triton_tiles as tiles
from spanbert_kernels.ops.attention.triton_anchors import (
    Neighbours,
    add_seen,
    other_documents,
    over_neighbours,
    own_documents,
)
from spanbert_kernels.ops.attention.triton_backward import KeyGradients, RowSums, row_statistics
from spanbert_kernels.ops.attention.triton_dropout import kept_entries
from spanbert_kernels.ops.attention.triton_launch import Loops, loop_options, rows_of
from spanbert_kernels.ops.attention.triton_tiles import LOG2_E, Rows
from spanbert_kernels.ops.attention.work import AttentionWork
from spanbert_kernels.ops.repeats import start
from spanbert_kernels.ops.triton_arguments import Matrix, Philox, on, with_registers

QUERIES: Loops = {
    (16, 64, False): (16, 32, 4, 1),
    (16, 128, False): (16, 32, 4, 1),
    (16, 128, True): (16, 32, 4, 1),
    (32, 64, False): (16, 32, 8, 1),
    (32, 32, True): (16, 16, 4, 1),
}
KEYS: Loops = {
    (16, 64, False): (32, 16, 4, 1),
    (16, 128, False): (32, 16, 4, 1),
    (16, 128, True): (32, 16, 4, 1),
    (32, 32, True): (32, 16, 8, 1),  # of narrower heads, too: all their columns at once spill
}


class AnchorGradients(NamedTuple):
    """What a program has from block to block.

    Attributes:
        left, right: the tile's rows, of q and the gradient of the output, or of k and v.
        left_source, right_source: those of the other side, a head's.
        statistics: of the tile's queries, `[M]`, the log-sum-exp in base 2; of keys to row 0 of the head, as kept.
        factor: of the scores.
    """

    left: tiles.Operand
    right: tiles.Operand
    left_source: Matrix
    right_source: Matrix
    statistics: tiles.Statistics
    tile: tiles.RowTile
    near: Neighbours
    dropout: Philox | None
    numbers: tiles.Numbers
    factor: tl.tensor


@triton.jit
def weights_and_slopes(program, first, last, BLOCK):
    """W and dP of a block of keys `[M, N]`, which of them are seen, and the keys."""
    tile, dropout, numbers = program.tile, program.dropout, program.numbers
    row, there, seen = other_documents(program.near, tile, first, last, dropout, numbers, BLOCK.N)
    keys = tiles.load_block(program.left_source, first, row, there, tile.own, tile.inside)
    values = None
    if not BLOCK.CHUNKED:
        values = tiles.load_block(program.right_source, first, row, there, 0, tile.inside)
    row = first + row
    keys = tiles.Operand(keys, program.left_source, row, there)
    scores = tiles.inner_products(program.left, keys, numbers.head_dim, BLOCK) * program.factor
    weights = tl.where(seen, tl.exp2(scores - program.statistics.lse[:, None]), 0.0)
    values = tiles.Operand(values, program.right_source, row, there)
    slopes = tiles.inner_products(program.right, values, numbers.head_dim, BLOCK)
    if dropout is not None:
        seen_alone = seen & kept_entries(dropout, tile.first, first, tile.head, BLOCK.M, BLOCK.N)
        slopes = tl.where(seen_alone, slopes, 0.0)
    else:
        slopes = tl.where(seen, slopes, 0.0)
    return weights, slopes, seen, keys


@triton.jit
def sums_step(sums, program, first, last, slot, BLOCK):
    """A block of keys more, for the sums of rows."""
    weights, slopes, seen, _ = weights_and_slopes(program, first, last, BLOCK)
    number = sums.number + tl.sum(seen.to(tl.int32), 1)
    return RowSums(sums.mass + tl.sum(weights, 1), sums.moment + tl.sum(weights * slopes, 1), number)


@triton.jit
def query_step(total, program, first, last, slot, BLOCK):
    """A block of keys more, for the gradient `[M, D]`."""
    weights, slopes, seen, keys = weights_and_slopes(program, first, last, BLOCK)
    _, delta, share = program.statistics
    slopes = weights * tl.where(share < 0.0, 0.0, share)[:, None] * (slopes - delta[:, None])
    return add_seen(total, slopes, seen, keys.data, keys.source, keys.row, program.tile, BLOCK)


@triton.jit(do_not_specialize=("num_documents", "heads", "include_self"))
def anchor_query_backward(
    grad_output,
    q,
    k,
    v,
    statistics,  # delta and share are written
    grad_q,  # [documents, heads, head_dim]
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
    grads = tiles.own_rows(grad_output, tile, BLOCK.D)
    k = tiles.head_of(k, tile.head, BLOCK.D)
    v = tiles.head_of(v, tile.head, BLOCK.D)
    place = tile.head * num_documents + tile.row
    lse = tl.load(statistics.lse + place, mask=tile.there, other=0.0) * LOG2_E
    own = tiles.Statistics(lse, lse, lse)
    program = AnchorGradients(queries, grads, k, v, own, tile, near, dropout, numbers, scale * LOG2_E)
    zeros = tl.zeros([BLOCK.M], tl.float32)
    sums = RowSums(zeros, zeros, tl.zeros([BLOCK.M], tl.int32))
    delta, share = row_statistics(over_neighbours(sums_step, sums, program, BLOCK.N, BLOCK), 1, None)
    own = tiles.Statistics(lse, delta, share)
    program = AnchorGradients(queries, grads, k, v, own, tile, near, dropout, numbers, scale * LOG2_E)
    total = over_neighbours(query_step, tl.zeros([BLOCK.M, BLOCK.D], tl.float32), program, BLOCK.N, BLOCK)
    tiles.store_rows(grad_q, tile, head_dim, None, tiles.rescaled(total, dropout) * scale)
    if tile.own == 0:
        tl.store(statistics.delta + place, delta, mask=tile.there)
        tl.store(statistics.share + place, share, mask=tile.there)


@triton.jit
def key_step(total, program, first, last, slot, BLOCK):
    """A block of queries more; scores are `[N, M]`."""
    tile, dropout, numbers, statistics = program.tile, program.dropout, program.numbers, program.statistics
    row, there, seen = other_documents(program.near, tile, first, last, None, numbers, BLOCK.M)
    queries = tiles.load_block(program.left_source, first, row, there, tile.own, tile.inside)
    grads = tiles.load_block(program.right_source, first, row, there, tile.own, tile.inside)
    row = first + row
    lse = tl.load(statistics.lse + row, mask=there, other=0.0) * LOG2_E
    delta = tl.load(statistics.delta + row, mask=there, other=0.0)
    share = tl.load(statistics.share + row, mask=there, other=0.0)
    queries = tiles.Operand(queries, program.left_source, row, there)
    grads = tiles.Operand(grads, program.right_source, row, there)
    scores = tiles.inner_products(program.left, queries, numbers.head_dim, BLOCK) * program.factor
    weights = tl.where(seen, tl.exp2(scores - lse[None, :]) * tl.abs(share)[None, :], 0.0)
    slopes = tiles.inner_products(program.right, grads, numbers.head_dim, BLOCK)
    kept_weights = weights
    if dropout is not None:
        kept = kept_entries(dropout, first, tile.first, tile.head, BLOCK.M, BLOCK.N, True)
        kept_weights = tl.where(kept, weights, 0.0)
        slopes = tl.where(kept, slopes, 0.0)
    of_values = add_seen(total.v, kept_weights, seen, grads.data, grads.source, row, tile, BLOCK)
    # A softmax over one key is 1, whatever its score.
    slopes = tl.where(seen & (share > 0.0)[None, :], weights * (slopes - delta[None, :]), 0.0)
    of_keys = add_seen(total.k, slopes, seen, queries.data, queries.source, row, tile, BLOCK)
    return KeyGradients(of_keys, of_values)


@triton.jit(do_not_specialize=("num_documents", "heads", "include_self"))
def anchor_key_backward(
    grad_output,
    q,
    k,
    v,
    statistics,
    grad_k,  # [documents, heads, head_dim]
    grad_v,
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
    tile, near = own_documents(documents, numbers, BLOCK.N, BLOCK.D)
    keys = tiles.own_rows(k, tile, BLOCK.D)
    values = tiles.own_rows(v, tile, BLOCK.D)
    q = tiles.head_of(q, tile.head, BLOCK.D)
    grad_output = tiles.head_of(grad_output, tile.head, BLOCK.D)
    place = tile.head * num_documents
    own = tiles.Statistics(statistics.lse + place, statistics.delta + place, statistics.share + place)
    program = AnchorGradients(keys, values, q, grad_output, own, tile, near, dropout, numbers, scale * LOG2_E)
    zeros = tl.zeros([BLOCK.N, BLOCK.D], tl.float32)
    total = over_neighbours(key_step, KeyGradients(zeros, zeros), program, BLOCK.M, BLOCK)
    tiles.store_rows(grad_k, tile, head_dim, None, tiles.rescaled(total.k, dropout) * scale)
    tiles.store_rows(grad_v, tile, head_dim, None, tiles.rescaled(total.v, dropout))


def launch_anchors_backward(
    grad_output: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    work: AttentionWork,
    scale: float,
    dropout: Philox | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v, all rows of them, where there is a row."""
    grads = grad_q, grad_k, grad_v = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    shared: dict[str, Any] = {
        **rows_of(grad_output=grad_output, q=q, k=k, v=v),
        "statistics": tiles.Statistics(lse, torch.empty_like(lse), torch.empty_like(lse)),
        "documents": work.documents,
        "dropout": dropout,
        "num_documents": q.shape[0],
        "heads": q.shape[1],
        "head_dim": q.shape[2],
        "include_self": int(work.include_self),
        "scale": scale,
    }

    def launch(kernel: Any, rows: str, loops: Loops, **results: Tensor) -> None:
        options = loop_options(q, loops)
        if dropout is None:  # the compiler takes fewer by itself, and spills
            block = options.block
            narrow = block.PRECISION == "tf32" and block.D <= 64 and not block.CHUNKED
            options = with_registers(options, 168 if narrow else 255)
        programs = triton.cdiv(q.shape[0], getattr(options.block, rows)) * q.shape[1]
        targets = {name: Rows(each, each.stride(0), each.stride(1)) for name, each in results.items()}
        start(kernel, programs, triton.cdiv(q.shape[2], options.block.D))(**shared, **targets, **options.arguments)

    with on(q.device):
        launch(anchor_query_backward, "M", QUERIES, grad_q=grad_q)
        launch(anchor_key_backward, "N", KEYS, grad_k=grad_k, grad_v=grad_v)
    return grads
