"""encoder_stack in plain PyTorch: the definition."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels.ops.choices import Precision
from spanbert_kernels.ops.document_attention.reference import document_attention
from spanbert_kernels.ops.documents import document_of
from spanbert_kernels.ops.encoder_stack.steps import (
    Activation,
    Attend,
    FeedForward,
    Merge,
    Normalize,
    Project,
    Rotary,
    Step,
    attention_precision,
)
from spanbert_kernels.ops.packed_linear.reference import rounded

INT8_CHUNK = 768  # columns between up and down that are rounded to 8 bits in steps of their own

ACTIVATION_FUNCTIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "clipped_gelu": lambda x: F.gelu(x).clamp(-10, 10),
    "relu": F.relu,
    "relu6": F.relu6,
    "relu_squared": lambda x: F.relu(x).square(),
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


def encoder_stack(hidden: Tensor, cu_seqlens: Tensor, steps: Sequence[Step], precision: Precision) -> Tensor:
    """`hidden [T, H]`, documents from `cu_seqlens[d]` to `cu_seqlens[d + 1]` -> `[T, H]`."""
    wide = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    stream = hidden.to(wide)
    normed = stream  # what the next product takes
    handed = stream  # from Project to Attend, and from Attend to Merge

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None, chunk: int | None = None) -> Tensor:
        product = F.linear(rounded(x, precision, chunk), rounded(weight.to(wide), precision, None))
        return product if bias is None else product + bias.to(wide)

    for step in steps:
        if isinstance(step, Project):
            handed = linear(normed, step.weight, step.bias)
        elif isinstance(step, Attend):
            handed = attend(handed, cu_seqlens, step, attention_precision(precision))
        elif isinstance(step, Merge):
            normed = stream = stream + linear(handed, step.weight, step.bias)
        elif isinstance(step, FeedForward):
            activated = ACTIVATION_FUNCTIONS[step.activation](linear(normed, step.up, step.up_bias))
            if step.gate is not None:
                activated = activated * linear(normed, step.gate, step.gate_bias)
            normed = stream = stream + linear(activated, step.down, step.down_bias, INT8_CHUNK)
        elif isinstance(step, Normalize):
            normed = normalize(stream, step)
            stream = stream if step.keeps else normed
    return stream.to(hidden.dtype)


def normalize(stream: Tensor, step: Normalize) -> Tensor:
    weight, bias = (None if part is None else part.to(stream.dtype) for part in (step.weight, step.bias))
    if step.kind == "layer":
        return F.layer_norm(stream, stream.shape[1:], weight, bias, step.eps)
    normed = F.rms_norm(stream, stream.shape[1:], weight, step.eps)
    return normed if bias is None else normed + bias


def attend(qkv: Tensor, cu_seqlens: Tensor, step: Attend, precision: Precision) -> Tensor:
    """`qkv [T, (heads + 2 * key_heads) * head_dim]` -> `[T, heads * head_dim]`."""
    parts = list(qkv.unflatten(1, (-1, step.head_dim)).split((step.heads, step.key_heads, step.key_heads), dim=1))
    if step.rotary is not None:
        tokens = torch.arange(len(qkv), device=qkv.device)
        places = tokens - cu_seqlens[document_of(cu_seqlens, len(qkv))]
        parts[:2] = [turned(part, places, step.rotary) for part in parts[:2]]
    parts = [rounded(part, precision) for part in parts]
    query, *rest = parts
    key, value = (part.repeat_interleave(step.heads // step.key_heads, dim=1) for part in rest)
    relative = step.relative
    if relative is not None:
        keys, queries = (
            None if table is None else rounded(table.to(qkv.dtype), precision)
            for table in (relative.keys, relative.queries)
        )
        relative = relative._replace(keys=keys, queries=queries)
    output, _ = document_attention(query, key, value, cu_seqlens, step.scale, 0.0, None, None, step.window, relative)
    return output.flatten(1)


def turned(x: Tensor, places: Tensor, rotary: Rotary) -> Tensor:
    """`x [T, heads, head_dim]`, each token turned as its place in its document says."""
    cos, sin = (table.to(x.dtype)[places, None] for table in (rotary.cos, rotary.sin))
    if rotary.interleaved:
        across = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
    else:
        first, second = x.chunk(2, dim=-1)
        across = torch.cat([-second, first], dim=-1)
    return x * cos + across * sin
