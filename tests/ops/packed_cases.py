"""The loop that packed_linear is compared with, and its calls as the shared checks make them."""

from __future__ import annotations

from typing import Any

import torch
from op_checks import Tensors
from torch import Tensor

from spanbert_kernels.ops.packed_linear import pack_weight, packed_linear


def linear_by_rows(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        result = (x[:, None, :] * weight).sum(2)
        result = result if bias is None else result + bias
        return result if residual is None else result + residual


def without_gradients(**arguments: Any) -> Tensor:
    with torch.no_grad():
        return packed_linear(**arguments)


def with_packed(tensors: Tensors) -> dict[str, Any]:
    return {**tensors, "weight": pack_weight(tensors["weight"])}
