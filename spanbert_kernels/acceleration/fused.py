"""All layers of an encoder in one call of `ops.encoder_stack`: its steps, read off the layers' modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spanbert_kernels import ops
from spanbert_kernels.acceleration.structure import LayerParts
from spanbert_kernels.nn.packing import Packing
from spanbert_kernels.ops.encoder_stack import (
    Activation,
    Attend,
    FeedForward,
    Merge,
    Normalize,
    Precision,
    Project,
    Step,
)

# Activation modules: where their class is from and its name -> what the steps call it.
_ACTIVATIONS: dict[tuple[str, str], Activation] = {
    ("transformers.activations", "GELUActivation"): "gelu",
    ("transformers.activations", "NewGELUActivation"): "gelu_tanh",
    ("transformers.activations", "FastGELUActivation"): "gelu_tanh",
    ("transformers.activations", "AccurateGELUActivation"): "gelu_tanh",
    ("transformers.activations", "GELUTanh"): "gelu_tanh",
    ("transformers.activations", "QuickGELUActivation"): "quick_gelu",
    ("transformers.activations", "ClippedGELUActivation"): "clipped_gelu",
    ("transformers.activations", "ReLUSquaredActivation"): "relu_squared",
    ("transformers.activations", "SiLUActivation"): "silu",
    ("transformers.activations", "LinearActivation"): "identity",
    ("torch.nn.modules.activation", "ReLU"): "relu",
    ("torch.nn.modules.activation", "ReLU6"): "relu6",
    ("torch.nn.modules.activation", "LeakyReLU"): "leaky_relu",
    ("torch.nn.modules.activation", "SiLU"): "silu",
    ("torch.nn.modules.activation", "Sigmoid"): "sigmoid",
    ("torch.nn.modules.activation", "Tanh"): "tanh",
}
# Settings that a class may have and that the steps have as constants.
_SETTINGS: dict[str, tuple[str, Any]] = {"clipped_gelu": ("max", 10), "leaky_relu": ("negative_slope", 0.01)}

STEPS_PER_LAYER = 6


def activation_of(module: Any) -> Activation | None:
    """What the steps call an activation, or None if they do not have it.

    Example:
        >>> activation_of(nn.ReLU()), activation_of(nn.LeakyReLU(0.2))
        ('relu', None)
    """
    activation = _ACTIVATIONS.get((type(module).__module__, type(module).__name__))
    name, value = _SETTINGS.get(activation or "", ("", None))
    return activation if not name or getattr(module, name) == value else None


def steps_of(parts: LayerParts) -> list[Step] | None:
    """The steps of a layer, or None where it has an activation or a scale that they do not have."""
    activation, attention = activation_of(parts.activation), parts.attention
    if activation is None or not attention.scaling > 0:
        return None
    return [
        Project(_joined([each.weight for each in parts.projections()]), _joined_biases(parts)),
        Attend(attention.num_attention_heads, attention.attention_head_size, attention.scaling),
        Merge(parts.attention_dense.weight, parts.attention_dense.bias),
        Normalize(parts.attention_norm.weight, parts.attention_norm.bias, parts.attention_norm.eps),
        FeedForward(parts.up.weight, parts.up.bias, parts.down.weight, parts.down.bias, activation),
        Normalize(parts.norm.weight, parts.norm.bias, parts.norm.eps),
    ]


def settings_of(layers: Sequence[LayerParts]) -> list[tuple[Any, ...]]:
    """What goes into the steps of layers beside their parameters."""
    return [
        (
            parts.attention.num_attention_heads,
            parts.attention.scaling,
            activation_of(parts.activation),
            parts.attention_norm.eps,
            parts.norm.eps,
        )
        for parts in layers
    ]


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach() for tensor in tensors])


def _joined_biases(parts: LayerParts) -> Tensor | None:
    linears: tuple[nn.Linear, ...] = parts.projections()
    if all(linear.bias is None for linear in linears):
        return None
    return _joined([each.weight.new_zeros(each.out_features) if each.bias is None else each.bias for each in linears])


class FusedLayers:
    """The layers of an encoder as one stack.

    Attributes:
        precision: of its products.
        settings: what the steps took over from the layers beside their parameters.
        stream_dtype: of hidden states that go from one call to the next, so that they are those of a single call.
    """

    stream_dtype: torch.dtype | None = torch.float32

    def __init__(self, stack: ops.EncoderStack, settings: list[tuple[Any, ...]]) -> None:
        self.stack = stack
        self.precision: Precision = stack.precision
        self.settings = settings
        self.stack.packed()

    @classmethod
    def of(cls, layers: Sequence[LayerParts], precision: Precision) -> FusedLayers | None:
        """The stack of the layers, or None where a layer has something that its steps do not have."""
        steps = [steps_of(parts) for parts in layers]
        if not layers or any(each is None for each in steps):
            return None
        hidden_size = layers[0].query.in_features
        stack = ops.EncoderStack([step for each in steps if each for step in each], hidden_size, precision)
        return cls(stack, settings_of(layers))

    def hold(self, layers: Sequence[LayerParts]) -> bool:
        """Whether the layers have the settings that went into the steps."""
        return self.settings == settings_of(layers)

    @staticmethod
    def sources(layers: Sequence[LayerParts]) -> list[Tensor]:
        """What was copied: all parameters of the layers."""
        return [tensor for parts in layers for tensor in parts.parameters()]

    @property
    def products(self) -> str:
        """How it multiplies, in words."""
        return f"fused, {self.precision}"

    @property
    def num_bytes(self) -> int:
        """Memory kept: packed weights, and what calls work in."""
        packed = self.stack.packed()
        return packed.region.numel() + sum(arena.numel() for arena in packed.arenas)

    def run(self, first: int, last: int, hidden: Tensor, packing: Packing) -> Tensor:
        """Layers first .. last - 1: `hidden [T, H]` -> `[T, H]`."""
        return ops.encoder_stack(
            hidden, packing.documents, self.stack, first=first * STEPS_PER_LAYER, last=last * STEPS_PER_LAYER
        )
