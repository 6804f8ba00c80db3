"""Which way inference takes through the layers on a CPU, and the copies of the weights that it keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal

import torch
from torch import Tensor, nn

from spanbert_kernels import ops
from spanbert_kernels.acceleration import layouts
from spanbert_kernels.acceleration.attention import Batch
from spanbert_kernels.acceleration.fused import FusedLayers, steps_refusal
from spanbert_kernels.acceleration.inference import SeparateLayers
from spanbert_kernels.acceleration.linears import exact_gelu, linears_for
from spanbert_kernels.acceleration.on_gpu import GpuLayers
from spanbert_kernels.acceleration.parts import EncoderParts, Joint, LayerParts
from spanbert_kernels.acceleration.weights import Watch, copyable
from spanbert_kernels.nn.packing import Packing
from spanbert_kernels.ops.encoder_stack import Precision, encoder_stack_refusal
from spanbert_kernels.ops.measured import Candidate, Choice

VARIABLE = "SPANBERT_KERNELS_ENCODER"
Weights = Literal["int8"]  # another form of the weights than they have
# Of the layer that is timed: tokens in two documents, columns, heads.
_MEASURED_TOKENS, _MEASURED_SIZE, _MEASURED_HEADS = 128, 512, 8

# Products of one fused call by the dtype that a user asks for, or None for product by product. A processor may multiply
# bfloat16 slower than float32, or have units that only oneDNN uses.
_WAYS: dict[str, dict[torch.dtype, Precision | None]] = {
    "fused": {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float32"},
    "fused-float32": dict.fromkeys((torch.float32, torch.bfloat16, torch.float16), "float32"),
    "separate": dict.fromkeys((torch.float32, torch.bfloat16, torch.float16)),
}


@dataclass(frozen=True)
class Way:
    """How the layers are to be computed.

    Attributes:
        dtype: of the hidden states, and of the weights.
        precision: of the products of one fused call, or None for product by product, in `dtype`.
    """

    dtype: torch.dtype
    precision: Precision | None


def way_for(dtype: torch.dtype, weights: Weights | None) -> Way | None:
    """The way for hidden states of a dtype, under autocast if that is on; None where there is none but the modules'."""
    arithmetic = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else dtype
    fused = _fused_refusal(dtype) is None
    if weights == "int8":
        return Way(dtype, "int8") if fused or ops.backends.asked() == "eager" else None
    choice = CHOICES.get(arithmetic)
    precision = precision_of(choice.found().way, arithmetic) if choice is not None and fused else None
    return None if precision is None and arithmetic != dtype else Way(dtype, precision)


def way_for_links(dtype: torch.dtype) -> Way | None:
    """The way for documents that see each other: product by product, with attention between them."""
    return None if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") != dtype else Way(dtype, None)


def precision_of(way: str, dtype: torch.dtype) -> Precision | None:
    """Of a way's products: the one that it names, or float32 where this processor has no products of that."""
    precision = _WAYS[way][dtype]
    return precision if precision is None or encoder_stack_refusal(precision) is None else "float32"


def _fused_refusal(dtype: torch.dtype) -> str | None:
    """Why the layers cannot be one call of the compiled kernels, or None."""
    asked = ops.backends.asked()
    if asked not in (None, "cpu"):
        return f"the backend {asked} was asked for"
    return ops.backends.refusal("cpu", "cpu", dtype, "encoder_stack")


def int8_refusal(encoder: EncoderParts) -> str | None:
    """Why the layers cannot run with weights in 8 bits here, or None."""
    if not encoder.read:
        return "its layers hold adapters, quantized products or weights that are elsewhere"
    unknown = filter(None, (steps_refusal(parts) for parts in encoder.distinct))
    return next(unknown, None) or _fused_refusal(torch.float32) or encoder_stack_refusal("int8")


# What a call runs: on a CPU all layers at once or product by product, on a GPU launch by launch.
Layers = FusedLayers | SeparateLayers | GpuLayers


@dataclass
class PackedLayers:
    """The layers on one way, and whether their weights are still those that were copied."""

    way: Way
    layers: FusedLayers | SeparateLayers
    watch: Watch

    @classmethod
    def of(cls, encoder: EncoderParts, way: Way) -> PackedLayers | None:
        """Copies the weights, or None where they are such that nobody could follow them."""
        weights = SeparateLayers.sources(encoder)
        # Under autocast hidden states come in another dtype than the weights' where a Linear follows the embeddings.
        if not copyable(weights, None if torch.is_autocast_enabled("cpu") else way.dtype):
            return None
        if way.precision is not None and copyable(FusedLayers.sources(encoder)):
            fused = FusedLayers.of(encoder, way.precision)
            if fused is not None:
                return cls(way, fused, Watch.of(fused.sources(encoder)))
        if way.precision == "int8" or torch.is_autocast_enabled("cpu"):
            return None
        return cls(way, SeparateLayers(encoder, linears_for(way.dtype)), Watch.of(weights))

    def follow(self, encoder: EncoderParts, way: Way) -> bool:
        """Whether these are still the layers on this way. About 0.2 ms for 12 layers."""
        return self.way == way and self.layers.hold(encoder) and self.watch.holds(self.layers.sources(encoder))


def _candidate(way: str, dtype: torch.dtype) -> Candidate:
    def prepare() -> Callable[[], Tensor]:
        encoder, precision = EncoderParts([_measured_layer(dtype)]), precision_of(way, dtype)
        fused = None if precision is None else FusedLayers.of(encoder, precision)
        layers = SeparateLayers(encoder, linears_for(dtype)) if fused is None else fused
        hidden = torch.linspace(-1, 1, _MEASURED_TOKENS * _MEASURED_SIZE).view(-1, _MEASURED_SIZE).to(dtype)
        batch = Batch(Packing.from_mask(None, 2, _MEASURED_TOKENS // 2, "cpu"))
        return lambda: layers.run(0, 1, hidden, batch)

    return Candidate(prepare)


def _measured_layer(dtype: torch.dtype) -> LayerParts:
    size = _MEASURED_SIZE

    def linear(inputs: int, outputs: int) -> nn.Linear:
        made = nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=dtype)
        nn.init.constant_(made.weight, 0.01)
        nn.init.zeros_(made.bias)
        return made

    dropout = nn.Dropout(0.0)
    return LayerParts(
        layout=layouts.BERT,
        layer=None,
        attention=SimpleNamespace(attention_head_size=size // _MEASURED_HEADS, training=False),
        projections=Joint((linear(size, size), linear(size, size), linear(size, size)), 3),
        attention_dropout=dropout,
        dense=linear(size, size),
        attention_output_dropout=dropout,
        attention_norm=nn.LayerNorm(size, dtype=dtype),
        up=Joint((linear(size, 4 * size),), 1),
        activation=exact_gelu(),
        down=linear(4 * size, size),
        output_dropout=dropout,
        norm=nn.LayerNorm(size, dtype=dtype),
        feed_forward=None,
    )


CHOICES = {
    dtype: Choice(
        f"encoder {str(dtype).removeprefix('torch.')}", VARIABLE, {way: _candidate(way, dtype) for way in _WAYS}
    )
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
}
