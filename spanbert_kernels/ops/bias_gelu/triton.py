"""A bias and GELU in Triton.

A program has a block of columns, whose bias it reads once, and several tiles of rows, one after the other. Its sums
for the bias's gradient are added to those of the other programs afterwards, in a fixed order.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from spanbert_kernels.ops.aot import DTYPES, AotConfiguration, configurations_of, meta
from spanbert_kernels.ops.bias_gelu.operators import bias_gelu_backward, bias_gelu_forward
from spanbert_kernels.ops.repeats import start
from spanbert_kernels.ops.triton_arguments import Options, Tiling, contiguous, matrix, on, with_registers

# M: rows of a tile; D: columns, 16 bytes of bfloat16 a thread.
OPTIONS = Options(Tiling(M=4, K=1, D=1024), num_warps=4)
PROGRAMS = 2112  # at most: few write few sums, many fill a GPU
REGISTERS = 176  # of the backward in float32, which the compiler for GPUs of 12.0 does not find by itself
FEWEST_TILES = 4  # of a program of the forward, if there are so many


@triton.jit
def place_of(rows, columns, tile, block, BLOCK):
    """A tile's rows `[M, 1]`, its columns `[1, D]`, and which entries there are."""
    row = (tile.to(tl.int64) * BLOCK.M + tl.arange(0, BLOCK.M))[:, None]
    column = (block.to(tl.int64) * BLOCK.D + tl.arange(0, BLOCK.D))[None, :]
    return row, column, (row < rows) & (column < columns)


@triton.jit
def load_bias(bias, columns, block, BLOCK):
    """The bias of a block of columns, `[1, D]` in float32, zeros without one."""
    column = block.to(tl.int64) * BLOCK.D + tl.arange(0, BLOCK.D)
    values = tl.zeros([BLOCK.D], tl.float32)
    if bias is not None:
        values = tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)
    return values[None, :]


@triton.jit
def distribution(x):
    """The normal distribution function, absolute error below 2e-7, and `exp(-x^2 / 2)`.

    Half of erfc by Abramowitz and Stegun 7.1.26, with a square of a reciprocal root for the reciprocal: about half the
    instructions of `tl.erf` and two divisions.
    """
    bell = tl.exp2(x * x * -0.7213475204444817)
    root = tl.rsqrt(tl.abs(x) * 0.23164189298534365 + 1.0)
    t = root * root
    tail = t * 0.5307027145 - 0.7265760135
    tail = tail * t + 0.7107068705
    tail = tail * t - 0.142248368
    tail = (tail * t + 0.127414796) * t * bell
    return tl.where(x > 0.0, 1.0 - tail, tail), bell


@triton.jit(do_not_specialize=("rows", "tiles", "blocks"))
def gelu_forward(x, bias, output, rows, columns, tiles, blocks, BLOCK):
    block = tl.program_id(0) % blocks
    tile = tl.program_id(0) // blocks * tiles
    stop = tile + tiles
    added = load_bias(bias, columns, block, BLOCK)
    while tile < stop:
        row, column, inside = place_of(rows, columns, tile, block, BLOCK)
        value = tl.load(x.data + row * x.stride + column, mask=inside, other=0.0).to(tl.float32) + added
        normal, _ = distribution(value)
        value *= normal
        tl.store(output + row * columns + column, value.to(output.dtype.element_ty), mask=inside)
        tile += 1


@triton.jit(do_not_specialize=("rows", "tiles", "blocks"))
def gelu_backward(grad_output, x, bias, of_x, sums, rows, columns, tiles, blocks, BLOCK):
    block = tl.program_id(0) % blocks
    tile = tl.program_id(0) // blocks * tiles
    stop = tile + tiles
    added = load_bias(bias, columns, block, BLOCK)
    of_bias = tl.zeros([BLOCK.M, BLOCK.D], tl.float32)
    while tile < stop:
        row, column, inside = place_of(rows, columns, tile, block, BLOCK)
        value = tl.load(x.data + row * x.stride + column, mask=inside, other=0.0).to(tl.float32) + added
        address = grad_output.data + row * grad_output.stride + column
        grad = tl.load(address, mask=inside, other=0.0).to(tl.float32)
        normal, bell = distribution(value)
        grad *= normal + value * bell * 0.3989422804014327
        tl.store(of_x + row * columns + column, grad.to(of_x.dtype.element_ty), mask=inside)
        if sums is not None:
            of_bias += grad
        tile += 1
    if sums is not None:
        column = block.to(tl.int64) * BLOCK.D + tl.arange(0, BLOCK.D)
        target = sums + (tl.program_id(0) // blocks).to(tl.int64) * columns + column
        tl.store(target, tl.sum(of_bias, 0), mask=column < columns)


def _shares(x: Tensor, fewest: int) -> tuple[int, int, int]:
    """Programs of a block of columns, tiles of each, and blocks."""
    rows, columns = x.shape
    tiles, blocks = triton.cdiv(rows, OPTIONS.block.M), triton.cdiv(columns, OPTIONS.block.D)
    each = max(fewest, triton.cdiv(tiles * blocks, PROGRAMS))
    return triton.cdiv(tiles, each), each, blocks


@bias_gelu_forward.triton
def forward(x: Tensor, bias: Tensor | None) -> Tensor:
    output = x.new_empty(x.shape)
    if output.numel() == 0:
        return output
    programs, tiles, blocks = _shares(x, FEWEST_TILES)
    with on(x.device):
        start(gelu_forward, programs * blocks)(
            x=matrix(x),
            bias=contiguous(bias),
            output=output,
            rows=x.shape[0],
            columns=x.shape[1],
            tiles=tiles,
            blocks=blocks,
            **OPTIONS.arguments,
        )
    return output


@bias_gelu_backward.triton
def backward(grad_output: Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    of_x = x.new_empty(x.shape)
    if of_x.numel() == 0:
        return of_x, x.new_zeros(0 if bias is None else x.shape[1], dtype=torch.float32)
    programs, tiles, blocks = _shares(x, 1)
    sums = x.new_empty(0 if bias is None else programs, x.shape[1], dtype=torch.float32)
    wide = x.dtype == torch.float32 and bias is not None
    chosen = with_registers(OPTIONS, REGISTERS) if wide else OPTIONS
    with on(x.device):
        start(gelu_backward, programs * blocks)(
            grad_output=matrix(grad_output),
            x=matrix(x),
            bias=contiguous(bias),
            of_x=of_x,
            sums=None if bias is None else sums,
            rows=x.shape[0],
            columns=x.shape[1],
            tiles=tiles,
            blocks=blocks,
            **chosen.arguments,
        )
    return of_x, sums.new_empty(0) if bias is None else sums.sum(0)


def aot_configurations() -> list[AotConfiguration]:
    """What calls compile, in every dtype; without a bias they compile less of the same."""
    calls: dict[str, Any] = {}
    for name, dtype in DTYPES.items():
        x, bias = meta(2000, 3072, dtype=dtype), meta(3072, dtype=dtype)
        calls[name] = partial(forward, x, bias)
        calls[f"{name}, gradient"] = partial(backward, x, x, bias)
        calls[f"{name}, no bias, seldom"] = partial(forward, x, None)
        calls[f"{name}, no bias, gradient, seldom"] = partial(backward, x, x, None)
    return configurations_of(calls)
