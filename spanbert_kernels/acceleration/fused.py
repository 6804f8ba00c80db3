"""All layers of an encoder in one call of `ops.encoder_stack`: its steps, read off the layers' modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from spanbert_kernels import ops
from spanbert_kernels.acceleration.attention import Batch
from spanbert_kernels.acceleration.parts import EncoderParts, LayerParts, eps_of, parameters_of
from spanbert_kernels.ops.encoder_stack import (
    Activation,
    Attend,
    FeedForward,
    Merge,
    Normalize,
    Precision,
    Project,
    Rotary,
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


def activation_of(module: Any) -> Activation | None:
    """What the steps call an activation, or None if they do not have it.

    Example:
        >>> activation_of(nn.ReLU()), activation_of(nn.LeakyReLU(0.2))
        ('relu', None)
    """
    activation = _ACTIVATIONS.get((type(module).__module__, type(module).__name__))
    name, value = _SETTINGS.get(activation or "", ("", None))
    return activation if not name or getattr(module, name) == value else None


def steps_refusal(parts: LayerParts) -> str | None:
    """What a layer has that the steps do not, or None."""
    if activation_of(parts.activation) is None:
        return f"the activation {type(parts.activation).__name__} is none of those of encoder_stack"
    if not parts.scale > 0:
        return f"attention has the scale {parts.scale}"
    return "values are turned by its rotary positions" if parts.turns_values else None


def steps_of(parts: LayerParts, rotary: Rotary | None = None) -> list[Step]:
    """The steps of a layer without a `steps_refusal`."""
    activation, down = activation_of(parts.activation), parts.down
    assert activation is not None
    (up, *gate), (up_bias, *gate_bias) = parts.up.weights(), parts.up.biases()
    wide = FeedForward(up, up_bias, down.weight, down.bias, activation, *gate, *gate_bias)
    steps = [
        _norm(parts.norm_before(parts.attention_norm), keeps=True),
        Project(parts.projections.weight().detach(), parts.projections.bias()),
        Attend(parts.heads, parts.head_dim, parts.scale, parts.window, parts.fixed_terms(), rotary),
        Merge(parts.dense.weight, parts.dense.bias),
        _norm(parts.norm_after(parts.attention_norm)),
        _norm(parts.norm_before(parts.norm), keeps=True),
        wide,
        _norm(parts.norm_after(parts.norm)),
    ]
    return [step for step in steps if step is not None]


def _norm(norm: nn.LayerNorm | None, *, keeps: bool = False) -> Normalize | None:
    return None if norm is None else Normalize(norm.weight, norm.bias, eps_of(norm), keeps)


def settings_of(encoder: EncoderParts) -> list[tuple[Any, ...]]:
    """What goes into the steps of layers beside their parameters."""
    norms = [] if encoder.norm is None else [(eps_of(encoder.norm),)]
    return norms + [
        (
            parts.heads,
            parts.head_dim,
            parts.scale,
            parts.window,
            None if parts.relative is None else parts.relative.settings(),
            activation_of(parts.activation),
            None if parts.attention_norm is None else eps_of(parts.attention_norm),
            eps_of(parts.norm),
        )
        for parts in encoder.distinct
    ]


class FusedLayers:
    """The layers of an encoder as one stack, each once.

    Attributes:
        precision: of its products.
        stream_dtype: of hidden states that go from one call to the next, so that they are those of a single call.
    """

    stream_dtype: torch.dtype | None = torch.float32

    def __init__(self, encoder: EncoderParts, precision: Precision) -> None:
        steps: list[Step] = []
        rotaries = {angles: Rotary(*angles.table()) for angles in encoder.angles}
        # Where the steps of each layer begin, and where the last ones end.
        self.starts = [0]
        with torch.no_grad():
            for parts in encoder.distinct:
                steps += steps_of(parts, None if parts.angles is None else rotaries[parts.angles])
                self.starts.append(len(steps))
            if encoder.norm is not None:
                steps.append(Normalize(encoder.norm.weight, encoder.norm.bias, eps_of(encoder.norm)))
        self.encoder = encoder
        self.precision: Precision = precision
        self.settings = settings_of(encoder)
        self.stack = ops.EncoderStack(steps, encoder.layers[0].dense.out_features, precision)
        self.stack.packed()

    @classmethod
    def of(cls, encoder: EncoderParts, precision: Precision) -> FusedLayers | None:
        """The stack of the layers, or None where a layer has something that its steps do not have."""
        if not encoder.layers or any(steps_refusal(parts) is not None for parts in encoder.distinct):
            return None
        return cls(encoder, precision)

    def hold(self, encoder: EncoderParts) -> bool:
        """Whether the layers are in the order and have the settings that went into the steps."""
        return self.encoder.places == encoder.places and self.settings == settings_of(encoder)

    def serve(self, batch: Batch) -> bool:
        """Whether the steps give the tokens of a batch their positions."""
        rows = [angles.rows for angles in self.encoder.angles]
        return not rows or (batch.by_place and batch.packing.max_seqlen <= min(rows))

    @staticmethod
    def sources(encoder: EncoderParts) -> list[Tensor]:
        """What was copied: all parameters of the layers, and what angles and terms by distance are made of."""
        angles = [tensor for each in encoder.angles for tensor in each.sources()]
        of_layers = [tensor for parts in encoder.distinct for tensor in parts.parameters()]
        return [*of_layers, *parameters_of([encoder.norm]), *angles, *encoder.tables()]

    @property
    def products(self) -> str:
        """How it multiplies, in words."""
        return f"fused, {self.precision}"

    @property
    def num_bytes(self) -> int:
        """Memory kept: packed weights, and what calls work in."""
        packed = self.stack.packed()
        return packed.region.numel() + sum(arena.numel() for arena in packed.arenas)

    def run(self, first: int, last: int, hidden: Tensor, batch: Batch) -> Tensor:
        """Layers first .. last - 1, and the norm after the last of all: `hidden [T, H]` -> `[T, H]`."""
        calls = [(self.starts[start], self.starts[end]) for start, end in self.encoder.runs(first, last)]
        if self.encoder.norm_after(last) is not None:
            calls.append((self.starts[-1], len(self.stack.steps)))
        joined: list[tuple[int, int]] = []
        for start, end in calls:
            if joined and joined[-1][1] == start:
                start = joined.pop()[0]
            joined.append((start, end))
        dtype = hidden.dtype
        if len(joined) > 1:
            hidden = hidden.to(self.stream_dtype)
        for start, end in joined:
            hidden = ops.encoder_stack(hidden, batch.packing.documents, self.stack, first=start, last=end)
        return hidden.to(dtype)
