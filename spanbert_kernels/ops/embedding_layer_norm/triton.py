"""Rows of tables, their sum, LayerNorm and dropout in Triton (`ops/triton_norm.py`): the launches."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from spanbert_kernels.ops import triton_norm
from spanbert_kernels.ops.aot import AotConfiguration, configurations_of, meta
from spanbert_kernels.ops.embedding_layer_norm.operators import (
    Lookups,
    embedding_layer_norm_backward,
    embedding_layer_norm_forward,
)
from spanbert_kernels.ops.philox import Dropout
from spanbert_kernels.ops.repeats import start
from spanbert_kernels.ops.triton_arguments import contiguous, matrix, on, philox_of
from spanbert_kernels.ops.triton_norm import lookup_of, norm_backward, norm_forward, options


def _tables(lookups: Lookups) -> dict[str, Any]:
    """The arguments that take the place of x and its residual."""
    tokens, positions, types = (lookup_of(*lookups[i : i + 2]) for i in (0, 2, 4))
    return {"x": None, "residual": None, "tokens": tokens, "positions": positions, "types": types}


@embedding_layer_norm_forward.triton
def forward(
    lookups: Lookups, weight: Tensor, bias: Tensor | None, dropout: Dropout, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    rows, columns = lookups.token_ids.shape[0], weight.shape[0]
    output = weight.new_empty(rows, columns)
    mean, rstd = (weight.new_empty(rows, dtype=torch.float32) for _ in range(2))
    if output.numel() == 0:
        return output, mean.zero_(), rstd.zero_()
    chosen = options(columns, weight.dtype, dropout.seed is not None)
    with on(weight.device):
        start(norm_forward, triton.cdiv(rows, chosen.block.M))(
            **_tables(lookups),
            weight=weight.contiguous(),
            bias=contiguous(bias),
            dropout=philox_of(dropout),
            output=output,
            means=mean,
            rstds=rstd,
            rows=rows,
            columns=columns,
            eps=eps,
            **chosen.arguments,
        )
    return output, mean, rstd


@embedding_layer_norm_backward.triton
def backward(
    grad_output: Tensor, lookups: Lookups, weight: Tensor, mean: Tensor, rstd: Tensor, dropout: Dropout
) -> tuple[Tensor, Tensor]:
    rows, columns = grad_output.shape
    of_sum = weight.new_empty(rows, columns)
    if of_sum.numel() == 0:
        return of_sum, weight.new_zeros(2, columns, dtype=torch.float32)
    chosen = options(columns, weight.dtype, dropout.seed is not None)
    tiles = triton.cdiv(triton.cdiv(rows, chosen.block.M), triton_norm.PROGRAMS)
    programs = triton.cdiv(rows, chosen.block.M * tiles)
    sums = weight.new_empty(programs, 2, columns, dtype=torch.float32)
    with on(weight.device):
        start(norm_backward, programs)(
            grad_output=matrix(grad_output),
            **_tables(lookups),
            weight=weight.contiguous(),
            means=mean,
            rstds=rstd,
            dropout=philox_of(dropout),
            of_residual=of_sum,
            of_x=None,
            sums=sums,
            rows=rows,
            columns=columns,
            tiles=tiles,
            **chosen.arguments,
        )
    return of_sum, sums.sum(0)


def aot_configurations() -> list[AotConfiguration]:
    """What calls compile: rows of one warp and of several, of all tables."""
    calls: dict[str, Any] = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        for columns in (768, 256, 1024):
            ids, table, weight = (
                meta(2000, dtype=torch.int64),
                meta(500, columns, dtype=dtype),
                meta(columns, dtype=dtype),
            )
            for drops, seed in ((", dropout", meta(1, dtype=torch.int64)), ("", None)):
                everyday = (name, columns, drops) in (("bf16", 768, ", dropout"), ("bf16", 256, ""))
                lookups, dropout = Lookups(ids, table, ids, table, ids, table), Dropout(0.1, seed)
                call, grad = f"{name}, {columns}{drops}{', seldom' * (not everyday)}", meta(2000, columns, dtype=dtype)
                calls[call] = partial(forward, lookups, weight, weight, dropout, 1e-12)
                numbers = meta(2000)
                calls[f"{call}, gradient"] = partial(backward, grad, lookups, weight, numbers, numbers, dropout)
    return configurations_of(calls)
