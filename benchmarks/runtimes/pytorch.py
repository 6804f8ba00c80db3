"""PyTorch itself: its compiler with frozen weights, its own int8, and the bare products as a floor."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from registry import Unavailable
from torch import Tensor, nn

from runtimes import Batch


def frozen(model: Any, precision: torch.dtype, batch: Batch) -> Callable[[], Tensor]:
    """`torch.compile` for this very shape, with weights folded into the code's own layout."""
    torch._dynamo.reset()  # else the code and the weights of earlier shapes stay
    compiled = torch.compile(model, dynamic=False, options={"freezing": True})
    return lambda: compiled(**batch).last_hidden_state


def dynamic_int8(model: Any) -> Any:
    """The model with `quantize_dynamic` linear layers."""
    quantize = getattr(getattr(torch.ao, "quantization", None), "quantize_dynamic", None)
    if quantize is None:
        raise Unavailable("this PyTorch has no torch.ao.quantization")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantize(model, {nn.Linear}, dtype=torch.qint8)


def bare_products(model: Any, precision: torch.dtype, tokens: int) -> Callable[[], Tensor]:
    """OneDNN's products of every layer on `tokens` rows with packed weights, and nothing else."""
    if not torch.backends.mkldnn.is_available():
        raise Unavailable("this PyTorch has no oneDNN")
    packed, rows = [], {}
    for layer in model.encoder.layer:
        attention, inner = layer.attention.self, layer.attention.output.dense
        joined = torch.cat([attention.query.weight, attention.key.weight, attention.value.weight])
        weights = (joined, inner.weight, layer.intermediate.dense.weight, layer.output.dense.weight)
        for weight in weights:
            weight = weight.detach().to(precision)
            rows[weight.shape[1]] = torch.ones(tokens, weight.shape[1], dtype=precision)
            packed.append((weight.shape[1], torch.ops.mkldnn._reorder_linear_weight(weight)))

    def products() -> Tensor:
        for size, weight in packed:
            result = torch.ops.mkldnn._linear_pointwise(rows[size], weight, None, "none", [], "")
        return result

    return products
