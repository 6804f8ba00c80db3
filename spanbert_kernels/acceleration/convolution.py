"""A convolution over an encoder's embeddings that joins the first layer's output, as in DeBERTa v2's largest models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spanbert_kernels.acceleration.layouts import at
from spanbert_kernels.nn.packing import Packing


@dataclass(frozen=True, eq=False)
class PackedConvolution:
    """What acts after the first layer, on packed tokens: documents see zeros around them, as between padding.

    Attributes:
        module: holds `conv`, `dropout` and `LayerNorm`, and the name of its activation.
    """

    module: Any

    def __call__(self, embedded: Tensor, hidden: Tensor, packing: Packing) -> Tensor:
        """`LayerNorm(hidden + activation(dropout(conv(embedded))))`, all `[T, H]`."""
        from transformers.activations import ACT2FN

        module, conv = self.module, self.module.conv
        dtype = conv.weight.dtype
        gap = conv.padding[0]
        # Each document moves up by the zeros before it.
        lengths = packing.cu_seqlens.diff().long()
        documents = torch.arange(packing.batch, device=embedded.device)
        moved = gap * torch.repeat_interleave(documents, lengths, output_size=packing.num_tokens)
        places = moved + torch.arange(packing.num_tokens, device=embedded.device)
        apart = embedded.new_zeros(packing.num_tokens + gap * packing.batch, embedded.shape[1], dtype=dtype)
        apart = apart.index_copy(0, places, embedded.to(dtype))
        mixed = conv(apart.t()[None])[0].t().index_select(0, places)
        joined = hidden.to(dtype) + ACT2FN[module.conv_act](module.dropout(mixed))
        normalized: Tensor = module.LayerNorm(joined)
        return normalized.to(hidden.dtype)


@dataclass(frozen=True)
class Convolution:
    """Where an encoder has one, if it has.

    Attributes:
        path: of the module in the encoder.
        name: of its class.
    """

    path: str
    name: str

    def refusal(self, model: Any) -> str | None:
        """Why a model's is not what the packed forward computes, or None."""
        module = at(model, self.path)
        if module is None:
            return None
        kinds = {"conv": nn.Conv1d, "LayerNorm": nn.LayerNorm, "dropout": nn.Dropout}
        if type(module).__name__ != self.name or {name: type(each) for name, each in module.named_children()} != kinds:
            return f"its {self.path} is not built as transformers builds a {self.name}"
        conv = module.conv
        if conv.kernel_size[0] != 2 * conv.padding[0] + 1:
            return f"its {self.path} has an even kernel, of {conv.kernel_size[0]} tokens"
        return None

    def of(self, model: Any) -> PackedConvolution | None:
        """The model's, if it has one."""
        module = at(model, self.path)
        return None if module is None else PackedConvolution(module)
