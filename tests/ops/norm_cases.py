"""dropout_add_layer_norm by its formula, and how large the terms are that its sums are made of."""

from __future__ import annotations

from typing import Any

import torch
from op_checks import Tensors, largest
from torch import Tensor

from spanbert_kernels.ops import philox


def summed(x: Tensor, residual: Tensor, dropout_p: float, seed: Tensor | None) -> Tensor:
    if dropout_p:
        assert seed is not None
        rows, columns = (torch.arange(size) for size in x.shape)
        x = x * philox.keep(seed, dropout_p, torch.zeros_like(seed), rows[:, None], columns) / (1 - dropout_p)
    return x + residual


def norm_by_formula(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seed: Tensor | None = None,
    *,
    dropout_p: float = 0.0,
    eps: float = 1e-12,
) -> Tensor:
    total = summed(x, residual, dropout_p, seed)
    centered = total - total.mean(1, keepdim=True)
    normal = centered / (centered.square().mean(1, keepdim=True) + eps).sqrt()
    return normal * weight if bias is None else normal * weight + bias


class Conditions:
    """How ill-conditioned a call is: a row whose numbers are nearly the same is made of what rounding left of it."""

    def __init__(self, dropout_p: float, eps: float) -> None:
        self.options = dropout_p, eps

    def sums(self, tensors: Tensors) -> tuple[Tensor, Tensor]:
        dropout_p, eps = self.options
        total = summed(tensors["x"].double(), tensors["residual"].double(), dropout_p, tensors.get("seed")).detach()
        return total, (total.var(1, unbiased=False) + eps).rsqrt()

    def logits(self, tensors: Tensors) -> float:
        """Errors of a normalised number, in machine epsilons."""
        if not tensors["x"].numel():
            return 0.0
        total, rstd = self.sums(tensors)
        return float((total.abs().amax(1) * rstd).max())

    def terms(self, tensors: Tensors, gradients: Tensors, incoming: list[Tensor]) -> dict[str, float]:
        """Gradients are what is left of the incoming ones without their mean and their part along the row."""
        if not tensors["x"].numel():
            return {}
        (grad,), (total, rstd) = incoming, self.sums(tensors)
        normalized = largest((total - total.mean(1, keepdim=True)) * rstd[:, None])
        output = max(1.0, normalized) * largest(tensors["weight"]) + largest(tensors.get("bias", total[:0]))
        normal = max(tensors["x"].shape[1] ** 0.5, self.logits(tensors))  # a normalised number, or its error
        own = float((grad.abs() * tensors["weight"].double().abs()).amax(1).mul(rstd).max())
        rows = normal * float(grad.abs().sum(0).max())
        scale = 1 / (1 - self.options[0])
        return {"x": scale * own, "residual": own, "weight": rows, "output 0": output}


def norm_inputs(size: int, *, rows: int = 3, columns: int = 20, bias: bool = True, seed: int | None = None) -> Tensors:
    generator = torch.Generator().manual_seed(size)
    shapes: dict[str, Any] = {"x": (rows * size, columns), "residual": (rows * size, columns), "weight": (columns,)}
    shapes |= {"bias": (columns,)} if bias else {}
    tensors = {n: torch.randn(shape, generator=generator, dtype=torch.float64) for n, shape in shapes.items()}
    return tensors if seed is None else {**tensors, "seed": torch.tensor([seed])}
