"""encoder_stack in plain PyTorch: the definition."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels.ops.choices import Precision
from spanbert_kernels.ops.encoder_stack.steps import Activation, Attend, FeedForward, Merge, Normalize, Project, Step
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
            handed = attend(handed, cu_seqlens, step, "float32" if precision == "float32" else "bfloat16")
        elif isinstance(step, Merge):
            normed = stream = stream + linear(handed, step.weight, step.bias)
        elif isinstance(step, FeedForward):
            activated = ACTIVATION_FUNCTIONS[step.activation](linear(normed, step.up, step.up_bias))
            normed = stream = stream + linear(activated, step.down, step.down_bias, INT8_CHUNK)
        elif isinstance(step, Normalize):
            weight, bias = (None if part is None else part.to(wide) for part in (step.weight, step.bias))
            normed = F.layer_norm(stream, stream.shape[1:], weight, bias, step.eps)
            stream = stream if step.keeps else normed
    return stream.to(hidden.dtype)


def attend(qkv: Tensor, cu_seqlens: Tensor, step: Attend, precision: Precision) -> Tensor:
    """`qkv [T, 3 * heads * head_dim]` -> `[T, heads * head_dim]`."""
    parts = rounded(qkv, precision, None).unflatten(1, (3, step.heads, step.head_dim))
    documents = []
    for first, last in itertools.pairwise(cu_seqlens.tolist()):
        query, key, value = parts[first:last].permute(1, 2, 0, 3)  # [heads, n, head_dim] each
        weights = torch.softmax(query @ key.transpose(1, 2) * step.scale, dim=-1)
        documents.append((weights @ value).transpose(0, 1).flatten(1))
    return torch.cat(documents) if documents else parts.new_empty(0, step.heads * step.head_dim)
