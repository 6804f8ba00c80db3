"""Stacks of encoder layers of any size, drawn, for the tests of encoder_stack."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import torch
from hypothesis import strategies
from torch import Tensor

from spanbert_kernels.ops.encoder_stack import Attend, FeedForward, Merge, Normalize, Project, Step
from spanbert_kernels.ops.encoder_stack.steps import ACTIVATIONS, Activation


class Shape(NamedTuple):
    """The sizes of a stack and of a batch.

    Attributes:
        lengths: tokens of the documents.
        keeps: whether the norms stand in front of the products.
        biases: whether Linears have biases.
    """

    layers: int = 2
    hidden: int = 24
    heads: int = 3
    head_dim: int = 8
    wide: int = 40
    lengths: tuple[int, ...] = (5, 0, 9, 1)
    activation: Activation = "gelu"
    keeps: bool = False
    biases: bool = True

    def steps(self) -> list[Step]:
        generator = torch.Generator().manual_seed(self.hidden + self.wide)
        inner = self.heads * self.head_dim

        def matrix(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, generator=generator) / columns**0.5

        def vector(size: int) -> Tensor | None:
            return torch.randn(size, generator=generator) / 4 if self.biases else None

        def norm() -> Step:
            weight = 1 + torch.randn(self.hidden, generator=generator) / 4
            return Normalize(weight, vector(self.hidden), 1e-5, self.keeps)

        steps: list[Step] = []
        for _ in range(self.layers):
            attention = [
                Project(matrix(3 * inner, self.hidden), vector(3 * inner)),
                Attend(self.heads, self.head_dim, self.head_dim**-0.5),
                Merge(matrix(self.hidden, inner), vector(self.hidden)),
            ]
            up, down = matrix(self.wide, self.hidden), matrix(self.hidden, self.wide)
            feed_forward = FeedForward(up, vector(self.wide), down, vector(self.hidden), self.activation)
            if self.keeps:
                steps += [norm(), *attention, norm(), feed_forward]
            else:
                steps += [*attention, norm(), feed_forward, norm()]
        return steps

    def tokens(self, dtype: torch.dtype = torch.float32) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(sum(self.lengths), self.hidden, generator=generator).to(dtype)

    def cu_seqlens(self) -> Tensor:
        return torch.tensor(list(itertools.accumulate(self.lengths, initial=0)), dtype=torch.int32)


def drawn() -> strategies.SearchStrategy[Shape]:
    """Small sizes around the vectors and tiles of every instruction set, a second chunk between up and down, or many
    rows.
    """
    lengths = strategies.lists(strategies.integers(0, 40), min_size=1, max_size=5).map(tuple)
    return strategies.builds(
        Shape,
        layers=strategies.integers(1, 2),
        hidden=strategies.integers(8, 70),  # the norm of fewer makes much of a single rounding
        heads=strategies.integers(1, 3),
        head_dim=strategies.integers(1, 70),
        wide=strategies.one_of(strategies.integers(1, 70), strategies.sampled_from((768, 800, 1600))),
        lengths=strategies.one_of(lengths, strategies.sampled_from(((200,), (3, 297), (130, 1, 65)))),
        activation=strategies.sampled_from(ACTIVATIONS),
        keeps=strategies.booleans(),
        biases=strategies.booleans(),
    )
