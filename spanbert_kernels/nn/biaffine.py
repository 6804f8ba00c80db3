"""Scores of arcs between words, and of their relations: products of two states through one matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from spanbert_kernels.ops import checks


class Biaffine(nn.Module):
    """`score[.., i, j, r] = [x_i; 1] U_r [y_j; 1]`, for every pair of rows.

    Args:
        size: columns of the states.
        outputs: R, scores a pair.

    Source: Dozat and Manning 2017, Deep Biaffine Attention for Neural Dependency Parsing.

    Example:
        >>> Biaffine(8, 3)(torch.randn(2, 5, 8), torch.randn(2, 6, 8)).shape
        torch.Size([2, 5, 6, 3])
    """

    def __init__(self, size: int, outputs: int) -> None:
        super().__init__()
        checks.check_integer("size", size, 0)
        checks.check_integer("outputs", outputs, 0)
        self.weight = nn.Parameter(torch.zeros(outputs, size + 1, size + 1))

    def forward(self, dependents: Tensor, heads: Tensor) -> Tensor:
        """`[B, W, E]` and `[B, V, E]` -> `[B, W, V, R]`."""
        return torch.einsum("bie,ref,bjf->bijr", _with_one(dependents), self.weight, _with_one(heads))

    def pairs(self, dependents: Tensor, heads: Tensor) -> Tensor:
        """Of one head for each dependent: `[N, E]` and `[N, E]` -> `[N, R]`."""
        inner = torch.einsum("ne,ref->nrf", _with_one(dependents), self.weight)
        return (inner @ _with_one(heads)[..., None]).squeeze(-1)


def _with_one(states: Tensor) -> Tensor:
    return torch.cat((states, states.new_ones(*states.shape[:-1], 1)), -1)
