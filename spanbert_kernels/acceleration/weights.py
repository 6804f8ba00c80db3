"""Repacked copies of an encoder's weights that follow their parameters.

What is compared on every call: each parameter's address, version counter, dtype, shape and strides, and the bits of a
few of its elements. The version tells of edits through the parameter (optimisers, load_state_dict, copy_), the address
of replaced storage (.to, assigned .data), the elements of edits through `.data`, which no counter records. An edit
through `.data`, or of an inference-mode parameter (they have no counter), that spares the sampled elements is not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spanbert_kernels.acceleration.linears import Linears, linears_for
from spanbert_kernels.acceleration.structure import LayerParts

SAMPLES_PER_WEIGHT = 16
_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


class LayerWeights(NamedTuple):
    """The four products of a layer: fused query, key and value; attention output; up; down."""

    qkv: Any
    dense: Any
    up: Any
    down: Any


@dataclass
class PackedWeights:
    """All layers' repacked weights, and how to see whether they are still those of the model."""

    layers: list[LayerWeights]
    linears: Linears
    signature: list[tuple[object, ...]]
    # Aliases of a few elements of every weight: they also keep an old storage's address from being given out again.
    samples: list[Tensor]
    sampled: Tensor | None

    @classmethod
    def of(cls, layers: Sequence[LayerParts], dtype: torch.dtype) -> PackedWeights | None:
        """Packs the weights for inputs of `dtype`, or None if the inference path cannot take such weights."""
        weights = sources(layers)
        if dtype not in _BITS or not all(_packable(weight, dtype) for weight in weights):
            return None
        linears = linears_for(dtype)
        with torch.no_grad():
            signature = signature_of(weights)
            samples = [_sample(weight) for weight in weights]
            packed = [_pack(parts, linears) for parts in layers]
            return cls(packed, linears, signature, samples, torch.cat(samples) if samples else None)

    def follow(self, layers: Sequence[LayerParts], dtype: torch.dtype) -> bool:
        """Whether these are still the weights of `layers`, for inputs of `dtype`. About 0.15 ms for 12 layers."""
        if self.signature != signature_of(sources(layers)) or self.linears is not linears_for(dtype):
            return False
        with torch.no_grad():
            return self.sampled is None or torch.equal(torch.cat(self.samples), self.sampled)


def sources(layers: Sequence[LayerParts]) -> list[Tensor]:
    """The weights that are repacked, six a layer; usually parameters, which are quicker to get at as such."""
    return [
        module.weight if (weight := module._parameters.get("weight")) is None else weight
        for parts in layers
        for module in (parts.query, parts.key, parts.value, parts.attention_dense, parts.up, parts.down)
    ]


def signature_of(weights: Sequence[Tensor]) -> list[tuple[object, ...]]:
    """Where each weight lies, what it is, and how often it was written to."""
    try:
        return [(w.data_ptr(), w._version, w.dtype, w.shape, w.stride()) for w in weights]
    except RuntimeError:  # inference-mode tensors have no version
        return [(w.data_ptr(), -1 if w.is_inference() else w._version, w.dtype, w.shape, w.stride()) for w in weights]


def _packable(weight: Tensor, dtype: torch.dtype) -> bool:
    return (
        type(weight) in (torch.nn.Parameter, Tensor)
        and weight.device.type == "cpu"
        and weight.layout == torch.strided
        and weight.dtype == dtype
        and weight.is_contiguous()
    )


def _sample(weight: Tensor) -> Tensor:
    """A view of elements spread over the weight, as integers: NaN must equal itself, and 0.0 differ from -0.0."""
    flat = weight.detach().view(-1).view(_BITS[weight.dtype])
    # An odd step, so that the samples do not all fall into one column.
    step = max(1, flat.numel() // SAMPLES_PER_WEIGHT - 1) | 1
    return flat[::step][:SAMPLES_PER_WEIGHT]


def _pack(parts: LayerParts, linears: Linears) -> LayerWeights:
    qkv = torch.cat((parts.query.weight, parts.key.weight, parts.value.weight))
    return LayerWeights(
        linears.pack(qkv),
        linears.pack(parts.attention_dense.weight),
        linears.pack(parts.up.weight),
        linears.pack(parts.down.weight),
    )
