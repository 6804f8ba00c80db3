"""The raw operators of bias_gelu, and them under autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spanbert_kernels.ops.backends import Operation
from spanbert_kernels.ops.operators import Gradient, gradients, raw, save, saved

OPERATION = Operation(
    "bias_gelu",
    ("triton", "eager"),
    summary="a bias and the exact GELU, in one pass on a GPU, as are their gradients",
    instead=("triton", "it is bound by memory, which Triton reads as fast"),
)


@raw(OPERATION)
def bias_gelu_forward(x: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@raw(OPERATION)
def bias_gelu_backward(grad_output: Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    # The gradients of x and, in float32, of the bias, `[0]` without one.
    return x.new_empty(x.shape), x.new_empty(0 if bias is None else x.shape[1], dtype=torch.float32)


class BiasGelu(torch.autograd.Function):
    """The compiled kernels under autograd."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, backend: str) -> Tensor:
        save(ctx, x, bias, backend)
        output: Tensor = bias_gelu_forward(backend, x, bias)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        text = 'bias_gelu has no second derivative on its compiled kernels; backend="eager" has it'
        return gradients(ctx, *Gradient.apply(text, _gradients, grad_output, *saved(ctx)))


def _gradients(grad_output: Tensor, x: Tensor, bias: Tensor | None, backend: str) -> tuple[Tensor, Tensor | None]:
    of_x, of_bias = bias_gelu_backward(backend, grad_output, x, bias)
    return of_x, None if bias is None else of_bias.to(bias.dtype)
