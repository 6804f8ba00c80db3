"""What span_linear means, in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels.ops.choices import Part
from spanbert_kernels.ops.span_pool import reference as span_pool


def activate(values: Tensor, activation: str) -> Tensor:
    """`gelu` is the exact one, `x Phi(x)`."""
    if activation == "relu":
        return F.relu(values)
    return F.gelu(values) if activation == "gelu" else values


def span_linear(
    hidden: Tensor,
    start: Tensor,
    end: Tensor,
    parts: tuple[Part, ...],
    scores: Tensor | None,
    width_embedding: Tensor | None,
    width_index: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
) -> Tensor:
    """The inputs of `span_pool`, then `weight [O, D]`, `bias [O]` -> `[N, O]`."""
    pooled = span_pool.span_pool(hidden, start, end, parts, scores, width_embedding, width_index)
    return activate(F.linear(pooled, weight, bias), activation)
