"""What span_score means, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels.ops import philox
from spanbert_kernels.ops.choices import Part
from spanbert_kernels.ops.documents import rows_of_documents
from spanbert_kernels.ops.span_linear import reference as span_linear
from spanbert_kernels.ops.span_score.layer import SecondLayer
from spanbert_kernels.ops.tokens import Tokens


def drop(values: Tensor, rows: Tensor, dropout_p: float, seed: Tensor) -> Tensor:
    """`values [N, O]` of the output rows `rows [N]`, without the entries that the seed drops."""
    columns = torch.arange(values.shape[1], device=values.device)
    kept = philox.keep(seed, dropout_p, torch.zeros_like(columns), rows[:, None], columns)
    return torch.where(kept, values / (1.0 - dropout_p), 0)


def second_layer(inner: Tensor, document: Tensor | None, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`weight [S, O]` and `bias [S]`, or one of each for every document, and zeros for a span of none."""
    if weight.dim() == 2:
        scored = F.linear(inner, weight)
    else:
        assert document is not None
        scored = inner.new_zeros(len(inner), weight.shape[1])
        for number, own in enumerate(weight):  # rows are selected: what is not finite stays with its document
            rows = (document == number).nonzero()[:, 0]
            scored = scored.index_add(0, rows, F.linear(inner[rows], own))
    return scored if bias is None else plus_bias(scored, document, bias)


def plus_bias(scored: Tensor, document: Tensor | None, bias: Tensor) -> Tensor:
    """`scored [N, S]` and `bias [S]`, or that of each span's document, `bias [D, S]`."""
    if bias.dim() == 1:
        return scored + bias
    assert document is not None
    return scored + rows_of_documents(bias, document)


def span_score(
    tokens: Tokens,
    start: Tensor,
    end: Tensor,
    parts: tuple[Part, ...],
    scores: Tensor | None,
    width_embedding: Tensor | None,
    width_index: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    document: Tensor | None,
    rows: Tensor,
    dropout_p: float,
    seed: Tensor | None,
    layer: SecondLayer,
) -> Tensor:
    """The inputs of `span_linear`, the spans' documents and output rows `[N]`, dropout, the layer -> `[N, S]`."""
    inner = span_linear.span_linear(
        tokens, start, end, parts, scores, width_embedding, width_index, weight, bias, activation, document
    )
    if seed is not None:
        inner = drop(inner, rows, dropout_p, seed)
    if layer.epsilon is not None:
        inner = F.layer_norm(inner, inner.shape[1:], layer.norm_weight, layer.norm_bias, layer.epsilon)
    return second_layer(inner, document, layer.weight, layer.bias)
