"""embedding_layer_norm by its formula."""

from __future__ import annotations

from typing import Any

import torch
from norm_cases import Conditions, norm_by_formula
from op_checks import Tensors
from torch import Tensor

from spanbert_kernels.ops import philox

NAMES = ("token", "position", "type")


def summed_rows(tensors: dict[str, Any]) -> Tensor:
    rows = [tensors[f"{name}_table"][tensors[f"{name}_ids"]] for name in NAMES if f"{name}_ids" in tensors]
    return torch.stack(rows).sum(0)


def embedding_by_formula(
    *, weight: Tensor, bias: Tensor | None = None, seed: Tensor | None = None, dropout_p: float = 0.0,
    eps: float = 1e-12, **lookups: Any,
) -> Tensor:  # fmt: skip
    total = summed_rows(lookups)
    output = norm_by_formula(total, torch.zeros_like(total), weight, bias, eps=eps)
    if dropout_p:
        assert seed is not None
        rows, columns = (torch.arange(size) for size in output.shape)
        output = output * philox.keep(seed, dropout_p, torch.zeros_like(seed), rows[:, None], columns) / (1 - dropout_p)
    return output


def embedding_inputs(
    size: int, *, rows: int = 3, columns: int = 20, tables: int = 3, bias: bool = True, seed: int | None = None
) -> Tensors:
    generator = torch.Generator().manual_seed(size)
    tensors: Tensors = {}
    for name, length in zip(NAMES[:tables], (9, 5, 2), strict=False):
        tensors[f"{name}_ids"] = torch.randint(length, (rows * size,), generator=generator)
        tensors[f"{name}_table"] = torch.randn(length, columns, generator=generator, dtype=torch.float64)
    for name in ("weight", "bias")[: 1 + bias]:
        tensors[name] = torch.randn(columns, generator=generator, dtype=torch.float64)
    return tensors if seed is None else {**tensors, "seed": torch.tensor([seed])}


class EmbeddingConditions:
    """How ill-conditioned a call is: as the norm of the rows' sum, whose gradients come together in the tables."""

    def __init__(self, dropout_p: float, eps: float) -> None:
        self.dropout_p, self.norm = dropout_p, Conditions(0.0, eps)

    def of_norm(self, tensors: Tensors) -> Tensors:
        total = summed_rows({name: each.detach() for name, each in tensors.items()})
        rest = {name: tensors[name] for name in ("weight", "bias") if name in tensors}
        return {"x": total, "residual": torch.zeros_like(total), **rest}

    def logits(self, tensors: Tensors) -> float:
        return self.norm.logits(self.of_norm(tensors))

    def terms(self, tensors: Tensors, gradients: Tensors, incoming: list[Tensor]) -> dict[str, float]:
        given, scale = self.of_norm(tensors), 1 / (1 - self.dropout_p)
        found = self.norm.terms(given, gradients, [grad * scale for grad in incoming])
        if not found:
            return {}
        rows = len(given["x"])
        tables = {f"{name}_table": rows * found["x"] for name in NAMES}
        return {**tables, "weight": found["weight"], "output 0": scale * found["output 0"]}
