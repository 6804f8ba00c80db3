"""dropout_add_layer_norm in plain PyTorch: the definition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels.ops import philox
from spanbert_kernels.ops.philox import Dropout


def dropout_add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, dropout: Dropout, eps: float
) -> Tensor:
    """`LayerNorm(dropout(x) + residual)` of `[T, H]`, computed in float32 (float64 for float64) and rounded once.

    Entry (t, c) is dropped by Philox as query = t and key = c of head 0.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    kept = x.to(wide)
    if dropout.seed is not None:
        rows, columns = (torch.arange(size, device=x.device) for size in x.shape)
        keep = philox.keep(dropout.seed, dropout.dropout_p, torch.zeros_like(dropout.seed), rows[:, None], columns)
        kept = kept * keep / (1 - dropout.dropout_p)
    total = kept + residual.to(wide)
    bias = None if bias is None else bias.to(wide)
    return F.layer_norm(total, total.shape[1:], weight.to(wide), bias, eps).to(x.dtype)
