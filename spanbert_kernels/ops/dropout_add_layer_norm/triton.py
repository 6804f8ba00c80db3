"""Dropout, addition and LayerNorm in Triton.

A program has whole rows in its registers: what it reads of a row, it reads once. One of the backward takes several
tiles of rows, one after the other, and adds up their parts of the weight's gradient; those sums, one a program, are
added afterwards in a fixed order. Dropout: Philox4x32-10 of (seed, 0, row, column), four columns a draw
(`ops/philox.py`).
"""

from __future__ import annotations

import functools
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from spanbert_kernels.ops.aot import AotConfiguration, configurations_of, meta
from spanbert_kernels.ops.dropout_add_layer_norm.operators import (
    LARGEST_ROW,
    dropout_add_layer_norm_backward,
    dropout_add_layer_norm_forward,
)
from spanbert_kernels.ops.philox import Dropout
from spanbert_kernels.ops.repeats import start
from spanbert_kernels.ops.triton_arguments import Options, contiguous, matrix, on, philox_of
from spanbert_kernels.ops.triton_philox import philox_words

NOTHING_DROPPED = Dropout(0.0, None)
WIDEST_OF_A_WARP = LARGEST_ROW // 8  # columns
PROGRAMS = 1056  # of the backward at most: few write few sums, many fill a GPU


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


@triton.jit(do_not_specialize=("rows",))
def norm_forward(
    x,  # [T, H]
    residual,  # [T, H]
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
        total = load_chunk(x, row, column, inside)
        if dropout is not None:
            total *= kept_share(dropout, row, i * BLOCK.D, BLOCK)
        total += load_chunk(residual, row, column, inside)
        level += total
        totals += (total,)
    mean = tl.sum(level, 1) / columns
    squares = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
    for i in tl.static_range(BLOCK.CHUNKS):
        column = i * BLOCK.D + tl.arange(0, BLOCK.D)
        centered = tl.where((column < columns)[None, :], totals[i] - mean[:, None], 0.0)
        squares += centered * centered
    rstd = 1.0 / tl.sqrt(tl.sum(squares, 1) / columns + eps)
    for i in tl.static_range(BLOCK.CHUNKS):
        column = i * BLOCK.D + tl.arange(0, BLOCK.D)
        normal = (totals[i] - mean[:, None]) * rstd[:, None] * load_columns(weight, row, column, columns)
        if bias is not None:
            normal += load_columns(bias, row, column, columns)
        target = output + row[:, None] * columns + column[None, :]
        tl.store(target, normal.to(output.dtype.element_ty), mask=there[:, None] & (column < columns)[None, :])
    if means is not None:
        tl.store(means + row, mean, mask=there)
        tl.store(rstds + row, rstd, mask=there)


@triton.jit(do_not_specialize=("rows", "tiles"))
def norm_backward(
    grad_output,  # [T, H]
    x,  # [T, H]
    residual,  # [T, H]
    weight,  # [H]
    means,  # [T]
    rstds,  # [T]
    dropout,  # None without
    of_residual,  # [T, H]
    of_x,  # [T, H], or None without dropout
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
            total = load_chunk(x, row, column, inside)
            if dropout is not None:
                share = kept_share(dropout, row, i * BLOCK.D, BLOCK)
                total *= share
                shares += (share,)
            total += load_chunk(residual, row, column, inside)
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
            if dropout is not None:
                tl.store(of_x + place, (grad * shares[i]).to(of_x.dtype.element_ty), mask=inside)
        tile += 1
    target = sums + tl.program_id(0).to(tl.int64) * 2 * columns
    for i in tl.static_range(BLOCK.CHUNKS):
        column = i * BLOCK.D + tl.arange(0, BLOCK.D)
        tl.store(target + column, tl.sum(of_weight[i], 0), mask=column < columns)
        tl.store(target + columns + column, tl.sum(of_bias[i], 0), mask=column < columns)


@functools.cache
def options(columns: int) -> Options:
    """A row of a warp or several; a thread reads 16 bytes of bfloat16 at a time, and at most three times as many."""
    warps = next(warps for warps in (1, 2, 4, 8) if columns <= warps * WIDEST_OF_A_WARP)
    chunk = 256 * warps
    return Options(RowTiling(max(1, 4 // warps), chunk, max(1, triton.cdiv(columns, chunk))), num_warps=max(4, warps))


def _normalize(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dropout: Dropout,
    eps: float,
    statistics: tuple[Tensor | None, Tensor | None],
) -> Tensor:
    """The output; `statistics`, where they are wanted, are filled."""
    rows, columns = x.shape
    output = x.new_empty(rows, columns)
    chosen = options(columns)
    with on(x.device):
        start(norm_forward, triton.cdiv(rows, chosen.block.M))(
            x=matrix(x),
            residual=matrix(residual),
            weight=weight.contiguous(),
            bias=contiguous(bias),
            dropout=philox_of(dropout),
            output=output,
            means=statistics[0],
            rstds=statistics[1],
            rows=rows,
            columns=columns,
            eps=eps,
            **chosen.arguments,
        )
    return output


@dropout_add_layer_norm_forward.triton
def forward(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, dropout: Dropout, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    mean, rstd = (x.new_empty(x.shape[0], dtype=torch.float32) for _ in range(2))
    if x.numel() == 0:
        return x.new_empty(x.shape), mean.zero_(), rstd.zero_()
    return _normalize(x, residual, weight, bias, dropout, eps, (mean, rstd)), mean, rstd


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """`LayerNorm(x + residual)` of arguments that were checked, without autograd and what that would keep."""
    if x.numel() == 0:
        return x.new_empty(x.shape)
    return _normalize(x, residual, weight, bias, NOTHING_DROPPED, eps, (None, None))


@dropout_add_layer_norm_backward.triton
def backward(
    grad_output: Tensor, x: Tensor, residual: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, dropout: Dropout
) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = x.shape
    of_residual, drops = x.new_empty(rows, columns), dropout.seed is not None
    of_x = x.new_empty(rows if drops else 0, columns)
    if of_residual.numel() == 0:
        return of_residual, of_x, x.new_zeros(2, columns, dtype=torch.float32)
    chosen = options(columns)
    tiles = triton.cdiv(triton.cdiv(rows, chosen.block.M), PROGRAMS)
    programs = triton.cdiv(rows, chosen.block.M * tiles)
    sums = x.new_empty(programs, 2, columns, dtype=torch.float32)
    with on(x.device):
        start(norm_backward, programs)(
            grad_output=matrix(grad_output),
            x=matrix(x),
            residual=matrix(residual),
            weight=weight.contiguous(),
            means=mean,
            rstds=rstd,
            dropout=philox_of(dropout),
            of_residual=of_residual,
            of_x=of_x if drops else None,
            sums=sums,
            rows=rows,
            columns=columns,
            tiles=tiles,
            **chosen.arguments,
        )
    return of_residual, of_x, sums.sum(0)


def aot_configurations() -> list[AotConfiguration]:
    """What calls compile: rows of one warp and of several, of each number of chunks."""
    calls: dict[str, Any] = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        for columns in (768, 256, 1024, LARGEST_ROW):
            x, weight, numbers = meta(2000, columns, dtype=dtype), meta(columns, dtype=dtype), meta(2000)
            for drops, seed in ((", dropout", meta(1, dtype=torch.int64)), ("", None)):
                # In every test run the one that has most of all, and the one that has least.
                everyday = (name, columns, drops) in (("bf16", 768, ", dropout"), ("bf16", 256, ""))
                dropout, call = Dropout(0.1, seed), f"{name}, {columns}{drops}{', seldom' * (not everyday)}"
                calls[call] = partial(forward, x, x, weight, weight, dropout, 1e-12)
                calls[f"{call}, gradient"] = partial(backward, x, x, x, weight, numbers, numbers, dropout)
    x, weight = meta(2000, 768, dtype=torch.bfloat16), meta(768, dtype=torch.bfloat16)
    calls["no statistics"] = partial(add_layer_norm, x, x, weight, weight, 1e-12)
    return configurations_of(calls)
