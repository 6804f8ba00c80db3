"""Encoder layers on packed tokens without autograd, product by product: where they cannot be one call (`fused.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spanbert_kernels.acceleration.attention import attend
from spanbert_kernels.acceleration.linears import Linears, linears_for
from spanbert_kernels.acceleration.structure import LayerParts
from spanbert_kernels.nn.packing import Packing

# Rows that go through the feed-forward block together: its wide intermediate then is memory that is used again, not
# fresh from the system. Fewer would cost the products speed.
FEED_FORWARD_ROWS = 2048


class LayerWeights(NamedTuple):
    """The four products of a layer: fused query, key and value; attention output; up; down."""

    qkv: Any
    dense: Any
    up: Any
    down: Any


class SeparateLayers:
    """The layers of an encoder and their repacked weights; biases and norms are read where they are.

    Attributes:
        stream_dtype: None, hidden states are in the dtype of the weights.
    """

    stream_dtype: torch.dtype | None = None

    def __init__(self, layers: Sequence[LayerParts], linears: Linears) -> None:
        self.layers = layers
        self.linears = linears
        self.weights = [_pack(parts, linears) for parts in layers]

    @staticmethod
    def sources(layers: Sequence[LayerParts]) -> list[Tensor]:
        """What was copied: the weights of the products."""
        return [
            module.weight if (weight := module._parameters.get("weight")) is None else weight
            for parts in layers
            for module in parts.products()
        ]

    def hold(self, layers: Sequence[LayerParts]) -> bool:
        """Whether these are the layers, and the products still those to be taken."""
        return self.layers is layers and self.linears is linears_for(layers[0].query.weight.dtype)

    @property
    def products(self) -> str:
        """How it multiplies, in words."""
        return self.linears.name

    @property
    def num_bytes(self) -> int:
        """Memory kept: repacked weights."""
        return sum(weight.numel() * weight.element_size() for weight in self.sources(self.layers))

    def run(self, first: int, last: int, hidden: Tensor, packing: Packing) -> Tensor:
        """Layers first .. last - 1: `hidden [T, H]` -> `[T, H]`."""
        for parts, weights in zip(self.layers[first:last], self.weights[first:last], strict=True):
            hidden = run_layer(parts, weights, self.linears, hidden, packing)
        return hidden


def _pack(parts: LayerParts, linears: Linears) -> LayerWeights:
    with torch.no_grad():
        return LayerWeights(
            linears.pack(torch.cat([each.weight for each in parts.projections()])),
            linears.pack(parts.attention_dense.weight),
            linears.pack(parts.up.weight),
            linears.pack(parts.down.weight),
        )


def run_layer(parts: LayerParts, weights: LayerWeights, linears: Linears, hidden: Tensor, packing: Packing) -> Tensor:
    """`hidden [T, H]` -> `[T, H]`."""
    attention = parts.attention
    fused = linears.linear(hidden, weights.qkv, _fused_bias(parts))
    query, key, value = fused.view(-1, 3, attention.num_attention_heads, attention.attention_head_size).unbind(1)
    context = attend(query, key, value, packing, scale=attention.scaling)
    attended = linears.linear_add(context, hidden, weights.dense, parts.attention_dense.bias)
    attended = _layer_norm(parts.attention_norm, attended)
    rows = attended.shape[0]
    if rows <= FEED_FORWARD_ROWS:
        return _feed_forward(parts, weights, linears, attended)
    output = torch.empty_like(attended)
    # Blocks of nearly equal size: a short last block would cost almost as much as a full one.
    blocks = -(-rows // FEED_FORWARD_ROWS)
    step = -(-rows // blocks)
    for start in range(0, rows, step):
        output[start : start + step] = _feed_forward(parts, weights, linears, attended[start : start + step])
    return output


def _feed_forward(parts: LayerParts, weights: LayerWeights, linears: Linears, attended: Tensor) -> Tensor:
    wide = linears.linear_activation(attended, weights.up, parts.up.bias, parts.activation)
    return _layer_norm(parts.norm, linears.linear_add(wide, attended, weights.down, parts.down.bias))


def _fused_bias(parts: LayerParts) -> Tensor | None:
    """Joined on every call: three small vectors are cheaper to copy than to watch."""
    biases = [linear.bias for linear in (parts.query, parts.key, parts.value)]
    if all(bias is None for bias in biases):
        return None
    weight = parts.query.weight
    return torch.cat([weight.new_zeros(weight.shape[0]) if bias is None else bias for bias in biases])


def _layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
