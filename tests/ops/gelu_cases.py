"""bias_gelu by its formula."""

from __future__ import annotations

import math

import torch
from op_checks import Tensors
from torch import Tensor


def gelu_by_formula(x: Tensor, bias: Tensor | None = None) -> Tensor:
    total = x if bias is None else x + bias
    return total * (1 + torch.erf(total / math.sqrt(2))) / 2


def gelu_inputs(size: int, *, rows: int = 3, columns: int = 20, bias: bool = True) -> Tensors:
    generator = torch.Generator().manual_seed(size)
    shapes: dict[str, tuple[int, ...]] = {"x": (rows * size, columns)} | ({"bias": (columns,)} if bias else {})
    return {n: torch.randn(shape, generator=generator, dtype=torch.float64) for n, shape in shapes.items()}
