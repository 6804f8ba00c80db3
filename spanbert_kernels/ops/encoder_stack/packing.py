"""Weights of a stack, laid out for the kernels in one piece of memory, and its steps as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spanbert_kernels.ops.choices import PRECISIONS, Precision
from spanbert_kernels.ops.encoder_stack.steps import (
    ACTIVATIONS,
    KINDS,
    Attend,
    FeedForward,
    Merge,
    Normalize,
    Project,
    Step,
)

ALIGNMENT = 64
COLUMNS = 64  # biases have zeros up to a multiple of these: a kernel reads whole panels


@dataclass
class PackedSteps:
    """What the CPU kernels take.

    Attributes:
        region: uint8, all packed weights, biases and norms.
        rows: int64 `[steps, 13]`: kind; place of the first matrix and its bias, its sizes; the second's; activation,
            heads, head_dim, keeps.
        constants: float64 `[steps]`: the scale of attention, the epsilon of a norm.
        arenas: memory to work in, that no call uses at the moment.
    """

    region: Tensor
    rows: Tensor
    constants: Tensor
    arenas: list[Tensor] = field(default_factory=list)

    def take_arena(self, hidden: Tensor, cu_seqlens: Tensor, precision: int) -> Tensor:
        """Memory for a call, kept from an earlier one where that is large enough. To be put back into `arenas`."""
        wanted = torch.ops.spanbert_kernels.encoder_stack_arena_bytes(
            hidden, cu_seqlens, self.region, self.rows, self.constants, precision
        )
        try:
            arena = self.arenas.pop()
        except IndexError:  # the first call, or one beside others
            arena = self.region[:0]
        return arena if arena.numel() >= wanted else torch.ops.spanbert_kernels.packed_linear_memory(wanted)


class _Region:
    """Places in a region that is not there yet, and what comes there."""

    def __init__(self, precision: int) -> None:
        self.precision = precision
        self.bytes = 0
        self.matrices: list[tuple[int, int, Tensor]] = []
        self.vectors: list[tuple[int, Tensor]] = []

    def _take(self, count: int) -> int:
        place = self.bytes
        self.bytes += -(-count // ALIGNMENT) * ALIGNMENT
        return place

    def matrix(self, weight: Tensor, bias: Tensor | None) -> list[int]:
        out_features, in_features = weight.shape
        count = torch.ops.spanbert_kernels.encoder_stack_matrix_bytes(self.precision, out_features, in_features)
        place = self._take(count)
        self.matrices.append((place, count, weight))
        return [place, self.vector(bias, out_features, 0.0), out_features, in_features]

    def vector(self, values: Tensor | None, size: int, default: float) -> int:
        values = torch.full((size,), default) if values is None else values
        place = self._take(4 * -(-size // COLUMNS) * COLUMNS)
        self.vectors.append((place, values))
        return place

    def fill(self) -> Tensor:
        region: Tensor = torch.ops.spanbert_kernels.packed_linear_memory(self.bytes)
        for place, count, weight in self.matrices:
            torch.ops.spanbert_kernels.encoder_stack_pack(weight, region[place : place + count], self.precision)
        for place, values in self.vectors:
            padded = -(-values.numel() // COLUMNS) * COLUMNS
            to = region[place : place + 4 * padded].view(torch.float32)
            to.zero_()
            to[: values.numel()] = values
        return region


def pack(steps: Sequence[Step], hidden_size: int, precision: Precision) -> PackedSteps:
    """Copies of the steps' weights for the kernels of this processor."""
    region = _Region(PRECISIONS.index(precision))
    none = [0, 0, 0, 0]
    rows, constants = [], []
    for step in steps:
        first, second, rest, constant = none, none, [0, 0, 0, 0], 0.0
        if isinstance(step, Project | Merge):
            first = region.matrix(step.weight, step.bias)
        elif isinstance(step, FeedForward):
            first, second = region.matrix(step.up, step.up_bias), region.matrix(step.down, step.down_bias)
            rest = [ACTIVATIONS.index(step.activation), 0, 0, 0]
        elif isinstance(step, Attend):
            rest, constant = [0, step.heads, step.head_dim, 0], step.scale
        elif isinstance(step, Normalize):
            weight, bias = region.vector(step.weight, hidden_size, 1.0), region.vector(step.bias, hidden_size, 0.0)
            first, rest, constant = [weight, bias, hidden_size, 0], [0, 0, 0, int(step.keeps)], step.eps
        rows.append([KINDS.index(type(step)), *first, *second, *rest])
        constants.append(constant)
    with torch.no_grad():
        filled = region.fill()
    return PackedSteps(
        filled, torch.tensor(rows, dtype=torch.int64).view(-1, 13), torch.tensor(constants, dtype=torch.float64)
    )
