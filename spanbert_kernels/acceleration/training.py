"""One encoder layer on packed tokens, through the layer's own modules: autograd, any device and dtype, autocast."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from spanbert_kernels import ops
from spanbert_kernels.acceleration.attention import attend
from spanbert_kernels.acceleration.linears import is_exact_gelu
from spanbert_kernels.acceleration.structure import LayerParts
from spanbert_kernels.nn.feed_forward import gelu_feed_forward
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
    dense = _linear(parts.attention_dense, context)
    attended = _finish(parts.attention_output_dropout, parts.attention_norm, dense, hidden)
    if layer.chunk_size_feed_forward == 0:
        return _feed_forward(parts, attended)
    rows = layer.chunk_size_feed_forward * packing.batch
    return torch.cat([_feed_forward(parts, part) for part in attended.split(rows)])


def _feed_forward(parts: LayerParts, attended: Tensor) -> Tensor:
    up, down = parts.up, parts.down
    if is_exact_gelu(parts.activation):
        wide = gelu_feed_forward(attended, up.weight, up.bias, down.weight, down.bias)
    else:
        wide = _linear(down, parts.activation(_linear(up, attended)))
    return _finish(parts.output_dropout, parts.norm, wide, attended)


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    """Nothing else than a product: layers whose modules have hooks or are of another class do not come here."""
    return products.linear(x, module.weight, module.bias)


def _finish(dropout: nn.Dropout, norm: nn.LayerNorm, x: Tensor, residual: Tensor) -> Tensor:
    """`norm(dropout(x) + residual)`, in one pass where there is a kernel that takes it."""
    dropout_p = dropout.p if dropout.training else 0.0
    given = (x, residual, norm.weight, norm.bias)
    one_pass = (
        ops.backends.asked() in (None, "cpu")
        and ops.backends.refusal("cpu", x.device.type, x.dtype) is None
        and norm.weight is not None
        and {each.dtype for each in given if each is not None} == {x.dtype}
        and products.ordinary(*given)
        and dropout_p < 1
    )
    if not one_pass:
        normalized: Tensor = norm(dropout(x) + residual)
        return normalized
    return ops.dropout_add_layer_norm(x, residual, norm.weight, norm.bias, dropout_p=dropout_p, eps=norm.eps)
