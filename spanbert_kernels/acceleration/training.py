"""One encoder layer on packed tokens, through the layer's own modules: autograd, any device and dtype, autocast."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from spanbert_kernels import ops
from spanbert_kernels.acceleration.structure import LayerParts
from spanbert_kernels.nn.packing import Packing


def run_layer(parts: LayerParts, hidden: Tensor, packing: Packing) -> Tensor:
    """`hidden [T, H]` -> `[T, H]`, recomputed in the backward where gradient checkpointing is on."""
    layer = parts.layer
    if layer.training and getattr(layer, "gradient_checkpointing", False):
        return layer._gradient_checkpointing_func(partial(_compute, parts, packing), hidden)
    return _compute(parts, packing, hidden)


def _compute(parts: LayerParts, packing: Packing, hidden: Tensor) -> Tensor:
    attention, layer = parts.attention, parts.layer
    heads = (-1, attention.num_attention_heads, attention.attention_head_size)
    context = ops.document_attention(
        parts.query(hidden).view(heads),
        parts.key(hidden).view(heads),
        parts.value(hidden).view(heads),
        packing.documents,
        dropout_p=parts.attention_dropout.p if attention.training else 0.0,
        scale=attention.scaling,
    )
    assert isinstance(context, Tensor)
    attended = layer.attention.output(context.flatten(1), hidden)
    if layer.chunk_size_feed_forward == 0:
        return layer.feed_forward_chunk(attended)
    rows = layer.chunk_size_feed_forward * packing.batch
    return torch.cat([layer.feed_forward_chunk(part) for part in attended.split(rows)])
