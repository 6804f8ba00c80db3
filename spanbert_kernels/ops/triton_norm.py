"""LayerNorm of rows that are made on the way, in Triton: of a sum after dropout, or of rows of tables, before it.

A program has whole rows in its registers: what it reads of a row, it reads once. One of the backward takes several
tiles of rows, one after the other, and adds up their parts of the weight's gradient; those sums, one a program, are
added afterwards in a fixed order. Dropout: Philox4x32-10 of (seed, 0, row, column), four columns a draw
(`ops/philox.py`).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple  # noqa: F401  (Any stands in comments that are types)

import torch
import triton
import triton.language as tl
from torch import Tensor

from spanbert_kernels.ops.dropout_add_layer_norm.operators import LARGEST_ROW
from spanbert_kernels.ops.triton_arguments import Options, dense_rows
from spanbert_kernels.ops.triton_philox import philox_words

WARPS = (1, 2, 4, 8)  # of a row
# Where nothing is dropped, the compilers for some GPUs take fewer than float32, or the widest rows, need.
REGISTERS = 255
WIDEST_OF_A_WARP = LARGEST_ROW // 8  # columns
PROGRAMS = 1056  # of the backward at most: few write few sums, many fill a GPU


class Lookup(NamedTuple):
    """Rows of a table, by number.

    Attributes:
        ids: int32 or int64 `[T]`.
        table: `[rows, H]`.
        stride: elements from one row of it to the next.
        size: its rows; an id outside gives zeros.
    """

    ids: Tensor
    table: Tensor
    stride: int
    size: int


def lookup_of(ids: Tensor | None, table: Tensor | None) -> Lookup | None:
    """For a kernel, None without a table."""
    if ids is None or table is None:
        return None
    table = dense_rows(table)
    return Lookup(ids.contiguous(), table, table.stride(0), table.shape[0])


class RowTiling(NamedTuple):
    """M rows, a warp each or several, of at most CHUNKS times D columns."""

    M: int
    D: int
    CHUNKS: int


@triton.jit
def load_chunk(matrix, row, column, inside):
    """Columns of rows `[M]`, `[M, D]` in float32, zeros outside."""
    address = matrix.data + row[:, None] * matrix.stride + column[None, :]
    return tl.load(address, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def load_columns(vector, row, column, columns):
    """A vector's entries for each of the rows `[M]`, `[M, D]` in float32, zeros outside."""
    address = vector + row[:, None] * 0 + column[None, :]
    return tl.load(address, mask=(column < columns)[None, :], other=0.0).to(tl.float32)


@triton.jit
def kept_share(dropout, row, first, BLOCK):
    """What entries of rows `[M]` are multiplied by, `[M, D]` from column `first` on: 0 where they are dropped.

    A thread draws twice, for the eight columns that it reads: no word changes its thread.
    """
    seed = tl.load(dropout.seed)
    zeros = tl.zeros([BLOCK.M, BLOCK.D // 8], tl.uint32)
    query = zeros + row.to(tl.uint32)[:, None]
    draw = zeros + (2 * tl.arange(0, BLOCK.D // 8) + first // 4).to(tl.uint32)[None, :]
    a, b, c, d = philox_words(seed, draw, query, zeros)
    e, f, g, h = philox_words(seed, draw + 1, query, zeros)
    even = tl.join(tl.join(a, e), tl.join(c, g))
    odd = tl.join(tl.join(b, f), tl.join(d, h))
    words = tl.reshape(tl.join(even, odd), [BLOCK.M, BLOCK.D])
    return tl.where(words >= tl.cast(dropout.threshold, tl.uint32), 1.0 / dropout.keep_prob, 0.0)


@triton.jit
def looked_up(lookup, row, there, column, columns):
    """Rows `[M]` of a table in float32, `[M, D]`."""
    number = tl.load(lookup.ids + row, mask=there, other=0).to(tl.int64)
    known = there & (number >= 0) & (number < lookup.size)
    address = lookup.table + number[:, None] * lookup.stride + column[None, :]
    return tl.load(address, mask=known[:, None] & (column < columns)[None, :], other=0.0).to(tl.float32)


@triton.jit
def summed_lookups(tokens, positions, types, row, there, column, columns):
    """The sum of rows of the tables that there are."""
    total = looked_up(tokens, row, there, column, columns)
    if positions is not None:
        total += looked_up(positions, row, there, column, columns)
    if types is not None:
        total += looked_up(types, row, there, column, columns)
    return total


@triton.jit
def moments(totals, level, columns, eps, BLOCK):
    """The mean `[M]` and the reciprocal deviation of rows in chunks, `level` being the sum of the chunks."""
    mean = tl.sum(level, 1) / columns
    squares = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
    for i in tl.static_range(BLOCK.CHUNKS):
        column = i * BLOCK.D + tl.arange(0, BLOCK.D)
        centered = tl.where((column < columns)[None, :], totals[i] - mean[:, None], 0.0)
        squares += centered * centered
    return mean, 1.0 / tl.sqrt(tl.sum(squares, 1) / columns + eps)


@triton.jit
def normal_chunk(total, mean, rstd, weight, bias, row, column, columns):
    """Columns of normalized rows."""
    normal = (total - mean[:, None]) * rstd[:, None] * load_columns(weight, row, column, columns)
    if bias is not None:
        normal += load_columns(bias, row, column, columns)
    return normal


@triton.jit(do_not_specialize=("rows",))
def norm_forward(
    x,  # [T, H], or None
    residual,  # [T, H], or None
    tokens,  # rows of tables instead: None, or a Lookup
    positions,  # None, or a Lookup
    types,  # None, or a Lookup
    weight,  # [H]
    bias,  # [H], or None
    dropout,  # None without
    output,  # [T, H]
    means,  # [T], or None
    rstds,  # [T], or None
    rows,
    columns,
    eps,
    BLOCK,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK.M + tl.arange(0, BLOCK.M)
    there = row < rows
    totals = ()  # type: Any
    level = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
    for i in tl.static_range(BLOCK.CHUNKS):
        column = i * BLOCK.D + tl.arange(0, BLOCK.D)
        inside = there[:, None] & (column < columns)[None, :]
        if tokens is None:
            total = load_chunk(x, row, column, inside)
            if dropout is not None:
                total *= kept_share(dropout, row, i * BLOCK.D, BLOCK)
            total += load_chunk(residual, row, column, inside)
        else:
            total = summed_lookups(tokens, positions, types, row, there, column, columns)
        level += total
        totals += (total,)
    mean, rstd = moments(totals, level, columns, eps, BLOCK)
    for i in tl.static_range(BLOCK.CHUNKS):
        column = i * BLOCK.D + tl.arange(0, BLOCK.D)
        normal = normal_chunk(totals[i], mean, rstd, weight, bias, row, column, columns)
        if tokens is not None and dropout is not None:
            normal *= kept_share(dropout, row, i * BLOCK.D, BLOCK)
        target = output + row[:, None] * columns + column[None, :]
        tl.store(target, normal.to(output.dtype.element_ty), mask=there[:, None] & (column < columns)[None, :])
    if means is not None:
        tl.store(means + row, mean, mask=there)
        tl.store(rstds + row, rstd, mask=there)


@triton.jit(do_not_specialize=("rows", "tiles"))
def norm_backward(
    grad_output,  # [T, H]
    x,  # [T, H], or None
    residual,  # [T, H], or None
    tokens,  # rows of tables instead: None, or a Lookup
    positions,  # None, or a Lookup
    types,  # None, or a Lookup
    weight,  # [H]
    means,  # [T]
    rstds,  # [T]
    dropout,  # None without
    of_residual,  # [T, H]: that of the sum
    of_x,  # [T, H], or None: that of x, where dropout makes it another
    sums,  # [programs, 2, H]: of the gradients of weight and bias
    rows,
    columns,
    tiles,  # of a program
    BLOCK,
):
    of_weight = ()  # type: Any
    of_bias = ()  # type: Any
    for _ in tl.static_range(BLOCK.CHUNKS):
        of_weight += (tl.zeros([BLOCK.M, BLOCK.D], tl.float32),)
        of_bias += (tl.zeros([BLOCK.M, BLOCK.D], tl.float32),)
    tile = tl.program_id(0) * tiles
    stop = tile + tiles
    while tile < stop:
        row = tile.to(tl.int64) * BLOCK.M + tl.arange(0, BLOCK.M)
        there = row < rows
        mean = tl.load(means + row, mask=there, other=0.0)
        rstd = tl.load(rstds + row, mask=there, other=0.0)
        along = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
        level = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
        normals = ()  # type: Any
        grads = ()  # type: Any
        shares = ()  # type: Any
        sums_of_weight = ()  # type: Any
        sums_of_bias = ()  # type: Any
        for i in tl.static_range(BLOCK.CHUNKS):
            column = i * BLOCK.D + tl.arange(0, BLOCK.D)
            inside = there[:, None] & (column < columns)[None, :]
            grad = load_chunk(grad_output, row, column, inside)
            if tokens is None:
                total = load_chunk(x, row, column, inside)
                if dropout is not None:
                    share = kept_share(dropout, row, i * BLOCK.D, BLOCK)
                    total *= share
                    shares += (share,)
                total += load_chunk(residual, row, column, inside)
            else:
                total = summed_lookups(tokens, positions, types, row, there, column, columns)
                if dropout is not None:
                    grad *= kept_share(dropout, row, i * BLOCK.D, BLOCK)
            normal = tl.where(inside, (total - mean[:, None]) * rstd[:, None], 0.0)
            sums_of_weight += (of_weight[i] + grad * normal,)
            sums_of_bias += (of_bias[i] + grad,)
            grad = grad * load_columns(weight, row, column, columns)
            along += grad * normal
            level += grad
            normals += (normal,)
            grads += (grad,)
        of_weight = sums_of_weight
        of_bias = sums_of_bias
        slope = tl.sum(along, 1) / columns
        mean_grad = tl.sum(level, 1) / columns
        for i in tl.static_range(BLOCK.CHUNKS):
            column = i * BLOCK.D + tl.arange(0, BLOCK.D)
            inside = there[:, None] & (column < columns)[None, :]
            grad = (grads[i] - mean_grad[:, None] - normals[i] * slope[:, None]) * rstd[:, None]
            place = row[:, None] * columns + column[None, :]
            tl.store(of_residual + place, grad.to(of_residual.dtype.element_ty), mask=inside)
            if tokens is None and dropout is not None:
                tl.store(of_x + place, (grad * shares[i]).to(of_x.dtype.element_ty), mask=inside)
        tile += 1
    target = sums + tl.program_id(0).to(tl.int64) * 2 * columns
    for i in tl.static_range(BLOCK.CHUNKS):
        column = i * BLOCK.D + tl.arange(0, BLOCK.D)
        tl.store(target + column, tl.sum(of_weight[i], 0), mask=column < columns)
        tl.store(target + columns + column, tl.sum(of_bias[i], 0), mask=column < columns)


@functools.cache
def options(columns: int, dtype: torch.dtype, drops: bool) -> Options:
    """A row of a warp or several; a thread reads 16 bytes of bfloat16 at a time, and at most three times as many."""
    warps = next(warps for warps in WARPS if columns <= warps * WIDEST_OF_A_WARP)
    chunk = 256 * warps
    tiling = RowTiling(max(1, 4 // warps), chunk, max(1, triton.cdiv(columns, chunk)))
    short = not drops and (dtype == torch.float32 or warps == WARPS[-1])
    return Options(tiling, num_warps=max(4, warps), maxnreg=REGISTERS if short else None)
