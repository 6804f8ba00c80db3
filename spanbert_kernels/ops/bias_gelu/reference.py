"""bias_gelu in plain PyTorch: the definition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def bias_gelu(x: Tensor, bias: Tensor | None) -> Tensor:
    """`GELU(x + bias)` of `[T, I]`, the exact one, computed in float32 (float64 for float64) and rounded once."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return F.gelu(wide if bias is None else wide + bias.to(wide.dtype)).to(x.dtype)
