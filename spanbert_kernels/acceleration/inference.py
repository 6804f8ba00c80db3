"""Encoder layers on packed tokens without autograd, product by product: where they cannot be one call (`fused.py`)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spanbert_kernels.acceleration.attention import Batch, attend
from spanbert_kernels.acceleration.linears import Linears, linears_for
from spanbert_kernels.acceleration.parts import EncoderParts, LayerParts, eps_of
from spanbert_kernels.ops import RelativeTerms

# Rows that go through the feed-forward block together: its wide intermediate then is memory that is used again, not
# fresh from the system. Fewer would cost the products speed.
FEED_FORWARD_ROWS = 2048


class LayerWeights(NamedTuple):
    """The products of a layer: fused query, key and value; attention output; up, and the gate's; down. And its terms by
    distance, whose projections follow from weights alone.
    """

    qkv: Any
    dense: Any
    up: list[Any]
    down: Any
    relative: RelativeTerms | None


class SeparateLayers:
    """The layers of an encoder and their repacked weights; biases and norms are read where they are.

    Attributes:
        stream_dtype: None, hidden states are in the dtype of the weights.
    """

    stream_dtype: torch.dtype | None = None

    def __init__(self, encoder: EncoderParts, linears: Linears) -> None:
        self.encoder = encoder
        self.linears = linears
        self.weights = [_pack(parts, linears) for parts in encoder.distinct]
        self.settings = encoder.table_settings()

    def serve(self, batch: Batch) -> bool:
        """Whether these products take a batch: any."""
        return True

    @staticmethod
    def sources(encoder: EncoderParts) -> list[Tensor]:
        """What was copied: the weights of the products, and what terms by distance are made of."""
        return _weights_of(encoder) + encoder.tables()

    def hold(self, encoder: EncoderParts) -> bool:
        """Whether these are the layers, and the products still those to be taken."""
        return (
            self.encoder is encoder
            and self.linears is linears_for(encoder.layers[0].dense.weight.dtype)
            and self.settings == encoder.table_settings()
        )

    @property
    def products(self) -> str:
        """How it multiplies, in words."""
        return self.linears.name

    @property
    def num_bytes(self) -> int:
        """Memory kept: repacked weights, and tables by distance."""
        tables = [table for each in self.weights for table in (each.relative or ())[1:] if table is not None]
        return sum(each.numel() * each.element_size() for each in _weights_of(self.encoder) + tables)

    def run(self, first: int, last: int, hidden: Tensor, batch: Batch) -> Tensor:
        """Layers first .. last - 1, and the norm after the last of all: `hidden [T, H]` -> `[T, H]`."""
        for place in self.encoder.places[first:last]:
            hidden = run_layer(self.encoder.distinct[place], self.weights[place], self.linears, hidden, batch)
        return _normalized(self.encoder.norm_after(last), hidden)


def _weights_of(encoder: EncoderParts) -> list[Tensor]:
    return [
        module.weight if (weight := module._parameters.get("weight")) is None else weight
        for parts in encoder.distinct
        for module in parts.linears()
    ]


def _pack(parts: LayerParts, linears: Linears) -> LayerWeights:
    with torch.no_grad():
        return LayerWeights(
            linears.pack(parts.projections.weight()),
            linears.pack(parts.dense.weight),
            [linears.pack(weight) for weight in parts.up.weights()],
            linears.pack(parts.down.weight),
            parts.fixed_terms(),
        )


def run_layer(parts: LayerParts, weights: LayerWeights, linears: Linears, hidden: Tensor, batch: Batch) -> Tensor:
    """`hidden [T, H]` -> `[T, H]`."""
    given = _normalized(parts.norm_before(parts.attention_norm), hidden)
    # Joined on every call: three small vectors are cheaper to copy than to watch.
    fused = linears.linear(given, weights.qkv, parts.projections.bias())
    query, key, value = fused.view(-1, 3, parts.heads, parts.head_dim).unbind(1)
    context = attend(parts, query, key, value, batch, weights.relative)
    attended = linears.linear_add(context, hidden, weights.dense, parts.dense.bias)
    attended = _normalized(parts.norm_after(parts.attention_norm), attended)
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
    given = _normalized(parts.norm_before(parts.norm), attended)
    biases = parts.up.biases()
    wide = linears.linear_activation(given, weights.up[0], biases[0], parts.activation)
    if parts.gated:
        wide = wide * linears.linear(given, weights.up[1], biases[1])
    narrow = linears.linear_add(wide, attended, weights.down, parts.down.bias)
    return _normalized(parts.norm_after(parts.norm), narrow)


def _normalized(norm: nn.LayerNorm | None, x: Tensor) -> Tensor:
    return x if norm is None else F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, eps_of(norm))
