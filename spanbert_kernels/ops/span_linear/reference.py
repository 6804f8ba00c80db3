"""What span_linear means, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels.ops.choices import Part
from spanbert_kernels.ops.documents import rows_of_documents
from spanbert_kernels.ops.span_pool import reference as span_pool
from spanbert_kernels.ops.tokens import Tokens


def activate(values: Tensor, activation: str) -> Tensor:
    """`gelu` is the exact one, `x Phi(x)`."""
    if activation == "relu":
        return F.relu(values)
    return F.gelu(values) if activation == "gelu" else values


def pooled(
    tokens: Tokens,
    start: Tensor,
    end: Tensor,
    parts: tuple[Part, ...],
    scores: Tensor | None,
    width_embedding: Tensor | None,
    width_index: Tensor | None,
) -> Tensor:
    """`span_pool`, of each part from its own tokens."""
    inputs = (scores, width_embedding, width_index)
    if len(tokens.tensors) == 1:
        return span_pool.span_pool(tokens.tensors[0], start, end, parts, *inputs)
    return torch.cat([span_pool.span_pool(tokens.of(part), start, end, (part,), *inputs) for part in parts], 1)


def span_linear(
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
    document: Tensor | None = None,
) -> Tensor:
    """The inputs of `span_pool`, then `weight [O, D]`, `bias [O]` -> `[N, O]`.

    With `bias [D, O]` a span of `document [N]` takes a row of it.
    """
    vectors = pooled(tokens, start, end, parts, scores, width_embedding, width_index)
    if bias is None or document is None or bias.dim() == 1:
        return activate(F.linear(vectors, weight, bias), activation)
    return activate(F.linear(vectors, weight) + rows_of_documents(bias, document), activation)
