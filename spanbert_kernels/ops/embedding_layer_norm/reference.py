"""embedding_layer_norm in plain PyTorch: the definition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels.ops import philox
from spanbert_kernels.ops.embedding_layer_norm.operators import Lookups
from spanbert_kernels.ops.philox import Dropout


def embedding_layer_norm(
    lookups: Lookups, padding_idx: int | None, weight: Tensor, bias: Tensor | None, dropout: Dropout, eps: float
) -> Tensor:
    """`dropout(LayerNorm(sum of rows of tables))`, computed in float32 (float64 for float64) and rounded once.

    Entry (t, c) is dropped by Philox as query = t and key = c of head 0.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    total = F.embedding(lookups.token_ids, lookups.token_table, padding_idx).to(wide)
    for ids, table in (lookups[2:4], lookups[4:6]):
        if ids is not None and table is not None:
            total = total + F.embedding(ids, table).to(wide)
    bias = None if bias is None else bias.to(wide)
    output = F.layer_norm(total, total.shape[1:], weight.to(wide), bias, eps)
    if dropout.seed is not None:
        rows, columns = (torch.arange(size, device=output.device) for size in output.shape)
        keep = philox.keep(dropout.seed, dropout.dropout_p, torch.zeros_like(dropout.seed), rows[:, None], columns)
        output = output * keep / (1 - dropout.dropout_p)
    return output.to(weight.dtype)
