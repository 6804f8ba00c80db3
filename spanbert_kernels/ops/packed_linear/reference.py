"""packed_linear in plain PyTorch: the definition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels.ops.choices import Precision


def packed_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, precision: Precision
) -> Tensor:
    """`x [T, in]`, `weight [out, in]`, `bias [out]`, `residual [T, out]` -> `[T, out]`."""
    if precision == "float32" or weight.dtype == x.dtype == torch.bfloat16:
        projected = F.linear(x, weight, bias)
        return projected if residual is None else projected + residual
    sums = F.linear(rounded(x.float(), precision), weight.float())
    for part in (bias, residual):
        sums = sums if part is None else sums + part.float()
    return sums.to(x.dtype)


def rounded(x: Tensor, precision: Precision, chunk: int | None = None) -> Tensor:
    """What enters a product in place of `x [rows, columns]`: for int8, steps a row, or a row and chunk of columns."""
    if precision == "float32":
        return x
    if precision == "bfloat16":
        return x.bfloat16().to(x.dtype)
    pieces = x.split(chunk or max(1, x.shape[1]), dim=1)
    return torch.cat([numbers * step for numbers, step in map(quantized, pieces)], dim=1)


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers of at most 127 and the step of each row `[rows, 1]`, whose product is x, rounded."""
    largest = x.abs().amax(dim=1, keepdim=True) if x.shape[1] else x.new_zeros(len(x), 1)
    step = torch.where(largest > 0, largest / 127, 1.0)
    return (x / step).round(), step
