"""packed_linear in plain PyTorch: the definition."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def unpack(panels: Tensor, out_features: int) -> Tensor:
    """`[panels, in, width]` -> the weight `[out, in]`."""
    return panels.transpose(1, 2).flatten(0, 1)[:out_features]


def packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """`x [T, in]`, `weight [out, in]`, `bias [out]`, `residual [T, out]` -> `[T, out]`."""
    projected = F.linear(x, weight, bias)
    return projected if residual is None else projected + residual
