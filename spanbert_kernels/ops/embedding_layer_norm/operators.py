"""The raw operators of embedding_layer_norm, and them under autograd."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from spanbert_kernels.ops.backends import Operation
from spanbert_kernels.ops.operators import Gradient, gradients, raw, save, saved
from spanbert_kernels.ops.philox import Dropout

OPERATION = Operation(
    "embedding_layer_norm",
    ("triton", "eager"),
    summary="rows of up to three tables, their sum, LayerNorm and dropout, in one pass on a GPU",
    instead=("triton", "it is bound by memory, which Triton reads as fast"),
)


class Lookups(NamedTuple):
    """Rows of up to three tables, by number."""

    token_ids: Tensor
    token_table: Tensor
    position_ids: Tensor | None
    position_table: Tensor | None
    type_ids: Tensor | None
    type_table: Tensor | None


@raw(OPERATION)
def embedding_layer_norm_forward(
    lookups: Lookups, weight: Tensor, bias: Tensor | None, dropout: Dropout, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    # The output `[T, H]`, and of the sums' rows the mean and 1 / sqrt(variance + eps), float32 `[T]`.
    rows = lookups.token_ids.shape[0]
    mean, rstd = (weight.new_empty(rows, dtype=torch.float32) for _ in range(2))
    return weight.new_empty(rows, weight.shape[0]), mean, rstd


@raw(OPERATION)
def embedding_layer_norm_backward(
    grad_output: Tensor, lookups: Lookups, weight: Tensor, mean: Tensor, rstd: Tensor, dropout: Dropout
) -> tuple[Tensor, Tensor]:
    # The gradients of the sums and, `[2, H]` in float32, of weight and bias.
    return weight.new_empty(grad_output.shape), weight.new_empty(2, weight.shape[0], dtype=torch.float32)


class EmbeddingLayerNorm(torch.autograd.Function):
    """The compiled kernels under autograd. No row is kept: tables and ids are, which others keep as well."""

    @staticmethod
    def forward(
        ctx: Any,
        token_ids: Tensor,
        token_table: Tensor,
        position_ids: Tensor | None,
        position_table: Tensor | None,
        type_ids: Tensor | None,
        type_table: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        padding_idx: int | None,
        dropout: Dropout,
        eps: float,
        backend: str,
    ) -> Tensor:
        lookups = Lookups(token_ids, token_table, position_ids, position_table, type_ids, type_table)
        output, mean, rstd = embedding_layer_norm_forward(backend, lookups, weight, bias, dropout, eps)
        save(ctx, lookups, weight, mean, rstd, dropout, backend)
        ctx.has_bias, ctx.padding_idx = bias is not None, padding_idx
        normalized: Tensor = output
        return normalized

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        text = 'embedding_layer_norm has no second derivative on its compiled kernels; backend="eager" has it'
        wanted = tuple(ctx.needs_input_grad[1:6:2])
        padding_idx = -1 if ctx.padding_idx is None else ctx.padding_idx
        found = Gradient.apply(text, _gradients, grad_output, wanted, padding_idx, *saved(ctx))
        of_tokens, of_positions, of_types, of_weight, of_bias = found
        tables = (None, of_tokens, None, of_positions, None, of_types)
        return gradients(ctx, *tables, of_weight, of_bias if ctx.has_bias else None)


def _gradients(
    grad_output: Tensor,
    wanted: tuple[bool, ...],
    padding_idx: int,
    lookups: Lookups,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    dropout: Dropout,
    backend: str,
) -> tuple[Tensor | None, ...]:
    of_sum, sums = embedding_layer_norm_backward(backend, grad_output, lookups, weight, mean, rstd, dropout)
    of_weight, of_bias = sums.to(weight.dtype).unbind()
    pairs, paddings = (lookups[0:2], lookups[2:4], lookups[4:6]), (padding_idx, -1, -1)
    tables = [
        torch.ops.aten.embedding_dense_backward(of_sum, ids, table.shape[0], padding, False)
        if want and ids is not None and table is not None
        else None
        for want, (ids, table), padding in zip(wanted, pairs, paddings, strict=True)
    ]
    return (*tables, of_weight, of_bias)
