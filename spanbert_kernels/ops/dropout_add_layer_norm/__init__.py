"""What stands at the end of a transformer's sub-layers: dropout, the residual, LayerNorm."""

from __future__ import annotations

import torch
from torch import Tensor

from spanbert_kernels.ops import checks
from spanbert_kernels.ops.choices import Backend
from spanbert_kernels.ops.dropout_add_layer_norm import reference
from spanbert_kernels.ops.dropout_add_layer_norm.operators import LARGEST_ROW, OPERATION, DropoutAddLayerNorm

__all__ = ["dropout_add_layer_norm"]


def dropout_add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    dropout_p: float = 0.0,
    eps: float = 1e-12,
    seed: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """`LayerNorm(dropout(x) + residual)` in one pass, keeping neither the sum nor a mask for the backward.

    Args:
        x: `[T, H]`, float32, bfloat16, float16 or float64, any strides.
        residual: `[T, H]`, like x.
        weight: `[H]`, like x.
        bias: `[H]`, like x.
        dropout_p: share of x's entries dropped, in [0, 1); the others are divided by `1 - dropout_p`.
        eps: added to the variance, not negative; BERT's is the default.
        seed: int64 tensor with one number; by default drawn from torch's generator, once per call.
        backend: the backend to use; by default the best one here.

    Returns:
        `[T, H]` in the dtype of x, computed in float32 (float64 for float64) and rounded once.

    Raises:
        ValueError: shapes that do not fit, a dropout outside [0, 1), a negative eps.
        TypeError: dtypes or devices that differ.

    Source: Ba et al. 2016, Layer Normalization; the place in the layer is that of Vaswani et al. 2017. Dropout:
    `ops/philox.py`.

    Example:
        >>> x, residual = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 6.0]])
        >>> dropout_add_layer_norm(x, residual, torch.ones(2), torch.tensor([0.0, 1.0])).tolist()
        [[-1.0, 2.0]]
    """
    checks.check_floating("x", x, 2, "[T, H]")
    for name, tensor, shape in (
        ("residual", residual, x.shape),
        ("weight", weight, x.shape[1:]),
        *([] if bias is None else [("bias", bias, x.shape[1:])]),
    ):
        checks.check_floating(name, tensor, len(shape), "[T, H]" if len(shape) == 2 else "[H]")
        checks.check_same(name, tensor, "x", x)
        if tensor.shape != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {list(tensor.shape)}")
    dropout = checks.check_dropout(dropout_p, seed, "x", x)
    checks.check_number("eps", eps)
    if eps < 0:
        raise ValueError(f"eps must not be negative, got {eps}")
    wide = x.shape[1] > LARGEST_ROW
    chosen = OPERATION.choose(x, backend, (("triton", f"it takes rows of at most {LARGEST_ROW} columns"),) * wide)
    if chosen == "eager":
        with torch.autocast(x.device.type, enabled=False):
            return reference.dropout_add_layer_norm(x, residual, weight, bias, dropout, eps)
    output: Tensor = DropoutAddLayerNorm.apply(x, residual, weight, bias, dropout, float(eps), chosen)
    return output
