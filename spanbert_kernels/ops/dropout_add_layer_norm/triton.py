"""Dropout, addition and LayerNorm in Triton (`ops/triton_norm.py`): the launches, and what they compile."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from spanbert_kernels.ops import triton_norm
from spanbert_kernels.ops.aot import AotConfiguration, configurations_of, meta
from spanbert_kernels.ops.dropout_add_layer_norm.operators import (
    LARGEST_ROW,
    dropout_add_layer_norm_backward,
    dropout_add_layer_norm_forward,
)
from spanbert_kernels.ops.philox import Dropout
from spanbert_kernels.ops.repeats import start
from spanbert_kernels.ops.triton_arguments import contiguous, matrix, on, philox_of
from spanbert_kernels.ops.triton_norm import norm_backward, norm_forward, options

NOTHING_DROPPED = Dropout(0.0, None)
NO_TABLES = {"tokens": None, "positions": None, "types": None}


def _normalize(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dropout: Dropout,
    eps: float,
    statistics: tuple[Tensor | None, Tensor | None],
) -> Tensor:
    """The output, in the residual's dtype; `statistics`, where they are wanted, are filled."""
    rows, columns = x.shape
    output = residual.new_empty(rows, columns)
    chosen = options(columns, weight.dtype, dropout.seed is not None)
    with on(x.device):
        start(norm_forward, triton.cdiv(rows, chosen.block.M))(
            x=matrix(x),
            residual=matrix(residual),
            **NO_TABLES,
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
    """`LayerNorm(x + residual)` of arguments that were checked, without autograd and what that would keep.

    Under autocast x is a product's, of 16 bits, and the others are not; the output is like the residual.
    """
    if x.numel() == 0:
        return residual.new_empty(x.shape)
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
    chosen = options(columns, weight.dtype, dropout.seed is not None)
    tiles = triton.cdiv(triton.cdiv(rows, chosen.block.M), triton_norm.PROGRAMS)
    programs = triton.cdiv(rows, chosen.block.M * tiles)
    sums = x.new_empty(programs, 2, columns, dtype=torch.float32)
    with on(x.device):
        start(norm_backward, programs)(
            grad_output=matrix(grad_output),
            x=matrix(x),
            residual=matrix(residual),
            **NO_TABLES,
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
    wide, wide_weight = meta(2000, 768), meta(768)
    calls["no statistics, autocast, seldom"] = partial(add_layer_norm, x, wide, wide_weight, wide_weight, 1e-12)
    return configurations_of(calls)
