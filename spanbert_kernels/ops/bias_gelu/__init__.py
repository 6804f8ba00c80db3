"""What stands between the two products of a transformer's feed-forward block: a bias and the exact GELU."""

from __future__ import annotations

import torch
from torch import Tensor

from spanbert_kernels.ops import checks
from spanbert_kernels.ops.bias_gelu import reference
from spanbert_kernels.ops.bias_gelu.operators import OPERATION, BiasGelu
from spanbert_kernels.ops.choices import Backend

__all__ = ["bias_gelu"]


def bias_gelu(x: Tensor, bias: Tensor | None = None, *, backend: Backend | None = None) -> Tensor:
    """`GELU(x + bias)` in one pass, and in one more the gradients of both.

    Args:
        x: `[T, I]`, float32, bfloat16, float16 or float64, any strides.
        bias: `[I]`, like x.
        backend: the backend to use; by default the best one here.

    Returns:
        `[T, I]` in the dtype of x: `(x + bias) Phi(x + bias)` with the normal distribution function, computed in
        float32 (float64 for float64) and rounded once.

    Raises:
        ValueError: shapes that do not fit.
        TypeError: dtypes or devices that differ.

    Source: Hendrycks and Gimpel 2016, Gaussian Error Linear Units.

    Example:
        >>> bias_gelu(torch.tensor([[-1.0, 2.0]]), torch.tensor([1.0, -2.0])).tolist()
        [[0.0, 0.0]]
    """
    checks.check_floating("x", x, 2, "[T, I]")
    if bias is not None:
        checks.check_floating("bias", bias, 1, "[I]")
        checks.check_same("bias", bias, "x", x)
        if bias.shape != x.shape[1:]:
            raise ValueError(f"bias must be {list(x.shape[1:])}, got {list(bias.shape)}")
    chosen = OPERATION.choose(x, backend)
    if chosen == "eager":
        with torch.autocast(x.device.type, enabled=False):
            return reference.bias_gelu(x, bias)
    output: Tensor = BiasGelu.apply(x, bias, chosen)
    return output
