"""The raw operators of dropout_add_layer_norm, and them under autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spanbert_kernels.ops.backends import Operation
from spanbert_kernels.ops.operators import Gradient, gradients, raw, save, saved
from spanbert_kernels.ops.philox import Dropout

OPERATION = Operation(
    "dropout_add_layer_norm",
    ("triton", "cpu", "eager"),
    summary="dropout, addition of a residual and LayerNorm, in one pass",
    instead=("triton", "it is bound by memory, which Triton reads as fast"),
)
LARGEST_ROW = 6144  # columns that Triton's kernels take

# Entry (t, c) of x is dropped by Philox as query = t and key = c of head 0.


@raw(OPERATION)
def dropout_add_layer_norm_forward(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, dropout: Dropout, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    # The output `[T, H]`, and of the sums' rows the mean and 1 / sqrt(variance + eps), float32 `[T]` (or float64).
    wide = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape), x.new_empty(x.shape[:1], dtype=wide), x.new_empty(x.shape[:1], dtype=wide)


@raw(OPERATION)
def dropout_add_layer_norm_backward(
    grad_output: Tensor, x: Tensor, residual: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, dropout: Dropout
) -> tuple[Tensor, Tensor, Tensor]:
    # The gradients of the residual, of x (`[0, H]` where nothing is dropped: it is the residual's) and, `[2, H]` in
    # float32 or float64, of weight and bias.
    wide = torch.promote_types(x.dtype, torch.float32)
    of_x = x.new_empty(0 if dropout.seed is None else x.shape[0], x.shape[1])
    return x.new_empty(x.shape), of_x, x.new_empty(2, x.shape[1], dtype=wide)


class DropoutAddLayerNorm(torch.autograd.Function):
    """The compiled kernels under autograd. The sum is not kept: x and residual are, which others keep as well."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        dropout: Dropout,
        eps: float,
        backend: str,
    ) -> Tensor:
        output, mean, rstd = dropout_add_layer_norm_forward(backend, x, residual, weight, bias, dropout, eps)
        save(ctx, x, residual, weight, mean, rstd, dropout, backend)
        ctx.has_bias = bias is not None
        normalized: Tensor = output
        return normalized

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        text = 'dropout_add_layer_norm has no second derivative on its compiled kernels; backend="eager" has it'
        of_x, of_residual, of_weight, of_bias = Gradient.apply(text, _gradients, grad_output, *saved(ctx))
        return gradients(ctx, of_x, of_residual, of_weight, of_bias if ctx.has_bias else None)


def _gradients(
    grad_output: Tensor,
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    mean: Tensor,
    rstd: Tensor,
    dropout: Dropout,
    backend: str,
) -> tuple[Tensor, ...]:
    of_residual, of_x, sums = dropout_add_layer_norm_backward(
        backend, grad_output, x, residual, weight, mean, rstd, dropout
    )
    of_weight, of_bias = sums.to(weight.dtype).unbind()
    return (of_residual if dropout.seed is None else of_x), of_residual, of_weight, of_bias
