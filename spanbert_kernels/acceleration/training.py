"""One encoder layer on packed tokens, through the layer's own modules: autograd, any device and dtype, autocast."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from spanbert_kernels.acceleration.attention import attend
from spanbert_kernels.acceleration.structure import LayerParts
from spanbert_kernels.nn.packing import Packing
from spanbert_kernels.ops import products


def run_layer(parts: LayerParts, hidden: Tensor, packing: Packing) -> Tensor:
    """`hidden [T, H]` -> `[T, H]`, recomputed in the backward where gradient checkpointing is on."""
    layer = parts.layer
    if layer.training and getattr(layer, "gradient_checkpointing", False):
        return layer._gradient_checkpointing_func(partial(_compute, parts, packing), hidden)
    return _compute(parts, packing, hidden)


def _compute(parts: LayerParts, packing: Packing, hidden: Tensor) -> Tensor:
    attention, layer = parts.attention, parts.layer
    heads = (-1, attention.num_attention_heads, attention.attention_head_size)
    query, key, value = (_linear(part, hidden).view(heads) for part in (parts.query, parts.key, parts.value))
    dropout_p = parts.attention_dropout.p if attention.training else 0.0
    context = attend(query, key, value, packing, scale=attention.scaling, dropout_p=dropout_p)
    dense = parts.attention_output_dropout(_linear(parts.attention_dense, context))
    attended = parts.attention_norm(dense + hidden)
    if layer.chunk_size_feed_forward == 0:
        return _feed_forward(parts, attended)
    rows = layer.chunk_size_feed_forward * packing.batch
    return torch.cat([_feed_forward(parts, part) for part in attended.split(rows)])


def _feed_forward(parts: LayerParts, attended: Tensor) -> Tensor:
    wide = parts.activation(_linear(parts.up, attended))
    output: Tensor = parts.norm(parts.output_dropout(_linear(parts.down, wide)) + attended)
    return output


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    """Nothing else than a product: layers whose modules have hooks or are of another class do not come here."""
    return products.linear(x, module.weight, module.bias)
