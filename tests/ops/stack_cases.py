"""Stacks of encoder layers of any size, drawn, for the tests of encoder_stack."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from hypothesis import strategies
from torch import Tensor

from spanbert_kernels.ops import RelativeTerms
from spanbert_kernels.ops.encoder_stack import Attend, FeedForward, Merge, Norm, Normalize, Project, Rotary, Step
from spanbert_kernels.ops.encoder_stack.steps import ACTIVATIONS, NORMS, Activation

ROWS = 7  # of tables by distance


class Shape(NamedTuple):
    """The sizes of a stack and of a batch.

    Attributes:
        lengths: tokens of the documents.
        keeps: whether the norms stand in front of the products, and a last one behind all.
        biases: whether Linears have biases.
        gated: whether feed-forwards have a gate.
        rotary: whether halves or neighbours turn together.
        relative: tables of terms by distance.
        reach: of these.
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
    gated: bool = False
    norm: Norm = "layer"
    kv_heads: int | None = None
    rotary: Literal["halves", "neighbours"] | None = None
    window: int | None = None
    relative: tuple[str, ...] = ()
    reach: int = 4

    def steps(self) -> list[Step]:
        generator = torch.Generator().manual_seed(self.hidden + self.wide)

        def numbers(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        def vector(size: int) -> Tensor | None:
            return numbers(size) / 4 if self.biases else None

        def linear(rows: int, columns: int) -> tuple[Tensor, Tensor | None]:
            return numbers(rows, columns) / columns**0.5, vector(rows)

        def norm(keeps: bool) -> Step:
            return Normalize(1 + numbers(self.hidden) / 4, vector(self.hidden), 1e-5, keeps, self.norm)

        inner, rotary, steps = self.heads * self.head_dim, self._rotary(numbers), list[Step]()
        keys = (self.kv_heads or self.heads) * self.head_dim
        for _ in range(self.layers):
            attend = Attend(
                self.heads,
                self.head_dim,
                self.head_dim**-0.5,
                window=self.window,
                relative=self._relative(numbers),
                rotary=rotary,
                kv_heads=self.kv_heads,
            )
            attention = [Project(*linear(inner + 2 * keys, self.hidden)), attend, Merge(*linear(self.hidden, inner))]
            up, down = linear(self.wide, self.hidden), linear(self.hidden, self.wide)
            gate = linear(self.wide, self.hidden) if self.gated else (None, None)
            feed_forward = FeedForward(*up, *down, self.activation, *gate)
            if self.keeps:
                steps += [norm(True), *attention, norm(True), feed_forward]
            else:
                steps += [*attention, norm(False), feed_forward, norm(False)]
        return [*steps, norm(False)] if self.keeps else steps

    def _rotary(self, numbers: Callable[..., Tensor]) -> Rotary | None:
        """Cosines and sines of different angles, a column each: nothing is taken for granted of them."""
        if self.rotary is None:
            return None
        angles = 3 * numbers(2, max(self.lengths), self.head_dim)
        return Rotary(angles[0].cos(), angles[1].sin(), interleaved=self.rotary == "neighbours")

    def _relative(self, numbers: Callable[..., Tensor]) -> RelativeTerms | None:
        """Rows that come again and again, and longer and longer runs of the same one at the ends."""
        if not self.relative:
            return None
        distance = torch.arange(-self.reach, self.reach + 1).clamp(-self.reach // 2, 2 * self.reach // 3)
        shapes = {"bias": (ROWS, self.heads), "keys": (ROWS, self.heads, self.head_dim)}
        shapes["queries"] = shapes["keys"]
        return RelativeTerms((distance // 2 % ROWS).int(), **{name: numbers(*shapes[name]) for name in self.relative})

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
    none = strategies.none()
    tables = strategies.sets(strategies.sampled_from(("bias", "keys", "queries"))).map(sorted).map(tuple)
    return strategies.builds(
        Shape,
        layers=strategies.integers(1, 2),
        hidden=strategies.integers(12, 70),  # the norm of fewer makes much of a single rounding
        heads=strategies.integers(1, 3),
        head_dim=strategies.integers(1, 70),
        wide=strategies.one_of(strategies.integers(1, 70), strategies.sampled_from((768, 800, 1600))),
        lengths=strategies.one_of(lengths, lengths, strategies.sampled_from(((200,), (3, 217), (130, 1, 65)))),
        activation=strategies.sampled_from(ACTIVATIONS),
        keeps=strategies.booleans(),
        biases=strategies.booleans(),
        gated=strategies.booleans(),
        norm=strategies.sampled_from(NORMS),
        kv_heads=strategies.sampled_from((None, 1)),
        rotary=strategies.sampled_from((None, "halves", "neighbours")),
        window=strategies.one_of(none, strategies.integers(0, 70)),
        relative=strategies.one_of(strategies.just(()), tables),
        reach=strategies.sampled_from((0, 1, 5, 40, 150)),
    ).map(lambda shape: shape._replace(head_dim=2 * shape.head_dim) if shape.rotary else shape)
