"""What span_score means, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels.ops import philox
from spanbert_kernels.ops.choices import Part
from spanbert_kernels.ops.span_linear import reference as span_linear


def drop(values: Tensor, rows: Tensor, dropout_p: float, seed: Tensor) -> Tensor:
    """`values [N, O]` of the output rows `rows [N]`, without the entries that the seed drops."""
    columns = torch.arange(values.shape[1], device=values.device)
    kept = philox.keep(seed, dropout_p, torch.zeros_like(columns), rows[:, None], columns)
    return torch.where(kept, values / (1.0 - dropout_p), 0)


def span_score(
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
    rows: Tensor,
    dropout_p: float,
    seed: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None,
) -> Tensor:
    """The inputs of `span_linear`, the spans' output rows `[N]`, `out_weight [S, O]`, `out_bias [S]` -> `[N, S]`."""
    inner = span_linear.span_linear(
        hidden, start, end, parts, scores, width_embedding, width_index, weight, bias, activation
    )
    if seed is not None:
        inner = drop(inner, rows, dropout_p, seed)
    return F.linear(inner, out_weight, out_bias)
