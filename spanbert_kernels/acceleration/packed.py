"""Which way inference takes through the layers on a CPU, and the copies of the weights that it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from spanbert_kernels import ops
from spanbert_kernels.acceleration.fused import FusedLayers, activation_of
from spanbert_kernels.acceleration.inference import SeparateLayers
from spanbert_kernels.acceleration.linears import linears_for
from spanbert_kernels.acceleration.structure import LayerParts
from spanbert_kernels.acceleration.weights import Watch, copyable
from spanbert_kernels.ops.encoder_stack import Precision, encoder_stack_refusal

Weights = Literal["int8"]  # another form of the weights than they have


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
    fused = ops.backends.without_kernels("encoder_stack", "cpu", dtype) is None
    if weights == "int8":
        return Way(dtype, "int8") if fused else None
    precision = ENCODER_PRECISIONS.get(arithmetic) if fused else None
    if precision is not None and encoder_stack_refusal(precision) is not None:
        precision = "float32"
    if precision is None and arithmetic != dtype:
        return None
    return Way(dtype, precision)


# Of the products, by the dtype that a user asks for.
ENCODER_PRECISIONS: dict[torch.dtype, Precision] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def int8_refusal(layers: Sequence[LayerParts]) -> str | None:
    """Why the layers cannot run with weights in 8 bits here, or None."""
    reason = encoder_stack_refusal("int8")
    if reason is None and (
        unknown := {type(p.activation).__name__ for p in layers if activation_of(p.activation) is None}
    ):
        reason = f"the activation {', '.join(sorted(unknown))} is none of those of encoder_stack"
    return reason


@dataclass
class PackedLayers:
    """The layers on one way, and whether their weights are still those that were copied."""

    way: Way
    layers: FusedLayers | SeparateLayers
    watch: Watch

    @classmethod
    def of(cls, parts: Sequence[LayerParts], way: Way) -> PackedLayers | None:
        """Copies the weights, or None where they are such that nobody could follow them."""
        weights = SeparateLayers.sources(parts)
        if not copyable(weights, way.dtype):
            return None
        if way.precision is not None and copyable(FusedLayers.sources(parts)):
            fused = FusedLayers.of(parts, way.precision)
            if fused is not None:
                return cls(way, fused, Watch.of(fused.sources(parts)))
        if way.precision == "int8" or torch.is_autocast_enabled("cpu"):
            return None
        return cls(way, SeparateLayers(parts, linears_for(way.dtype)), Watch.of(weights))

    def follow(self, parts: Sequence[LayerParts], way: Way) -> bool:
        """Whether these are still the layers on this way. About 0.2 ms for 12 layers."""
        if self.way != way or not self.watch.holds(self.layers.sources(parts)):
            return False
        return isinstance(self.layers, FusedLayers) or self.layers.linears is linears_for(way.dtype)
