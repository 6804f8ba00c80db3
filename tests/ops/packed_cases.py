"""The loop that packed_linear is compared with, and its calls as the shared checks make them."""

from __future__ import annotations

from typing import Any

import torch
from op_checks import Tensors
from torch import Tensor

from spanbert_kernels.ops import library
from spanbert_kernels.ops.choices import Precision
from spanbert_kernels.ops.packed_linear import pack_weight, packed_linear, products


def linear_by_rows(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        result = (x[:, None, :] * weight).sum(2)
        result = result if bias is None else result + bias
        return result if residual is None else result + residual


def without_gradients(**arguments: Any) -> Tensor:
    with torch.no_grad():
        return packed_linear(**arguments)


def with_packed(tensors: Tensors, own: bool = False) -> dict[str, Any]:
    """The weight packed for products of float32, or for those of its own dtype."""
    weight = tensors["weight"]
    return {**tensors, "weight": pack_weight(weight, own_precision(weight) if own else None)}


def own_precision(weight: Tensor) -> Precision | None:
    """That of products of the weight's own dtype, where this instruction set has them."""
    own = weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and library.cpu_isa() is not None
    return "bfloat16" if own and products.products_refusal("bfloat16") is None else None
