"""Weights of a stack, laid out for the kernels in one piece of memory, and its steps as numbers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spanbert_kernels.ops.attention.relative import RelativeTerms
from spanbert_kernels.ops.choices import PRECISIONS, Precision
from spanbert_kernels.ops.encoder_stack import tables
from spanbert_kernels.ops.encoder_stack.steps import (
    ACTIVATIONS,
    KINDS,
    Attend,
    FeedForward,
    Merge,
    Normalize,
    Project,
    Rotary,
    Step,
    attention_precision,
)

ALIGNMENT = 64
COLUMNS = 64  # biases have zeros up to a multiple of these: a kernel reads whole panels

Made = Callable[[], Tensor]  # when it is packed, so that copies are there one at a time


class PackedRow(NamedTuple):
    """A step in numbers, in the order of csrc/encoder_stack/cpu.cpp; places are bytes from the region's beginning.

    Attributes:
        first, second: matrices: place, place of the bias, columns, depth. A norm has its weight and bias there.
        window: -1 where there is none.
        rotary, positions: place and rows of the table by which a Project turns what it makes; 0 rows: it does not.
        reach, bias, keys, queries: tables by distance, and where they end; -1 for one that is not there.
    """

    kind: int
    first: tuple[int, ...] = (0, 0, 0, 0)
    second: tuple[int, ...] = (0, 0, 0, 0)
    activation: int = 0
    gated: int = 0
    keeps: int = 0
    centred: int = 0
    heads: int = 0
    key_heads: int = 0
    head_dim: int = 0
    window: int = -1
    rotary: int = 0
    positions: int = 0
    reach: int = 0
    bias: int = -1
    keys: int = -1
    queries: int = -1

    def numbers(self) -> list[int]:
        return [self.kind, *self.first, *self.second, *self[3:]]


@dataclass
class PackedSteps:
    """What the CPU kernels take.

    Attributes:
        region: uint8, all packed weights, biases, norms and tables.
        rows: int64 `[steps, numbers of a PackedRow]`.
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

    def __init__(self, precision: Precision) -> None:
        self.precision = PRECISIONS.index(precision)
        self.attention_precision = PRECISIONS.index(attention_precision(precision))
        self.width = torch.ops.spanbert_kernels.packed_linear_width(torch.empty(0))  # columns of a panel
        self.bytes = 0
        self.matrices: list[tuple[int, int, int, Made]] = []
        self.vectors: list[tuple[int, Made]] = []
        self.shared: dict[tuple[Hashable, ...], int] = {}  # tables of several layers

    def _take(self, count: int) -> int:
        place = self.bytes
        self.bytes += -(-count // ALIGNMENT) * ALIGNMENT
        return place

    def panels(self, columns: int, depth: int, weight: Made, precision: int) -> int:
        count = torch.ops.spanbert_kernels.encoder_stack_matrix_bytes(precision, columns, depth)
        place = self._take(count)
        self.matrices.append((place, count, precision, weight))
        return place

    def matrix(self, columns: int, depth: int, weight: Made, bias: Made) -> tuple[int, ...]:
        return self.panels(columns, depth, weight, self.precision), self.vector(columns, bias), columns, depth

    def vector(self, size: int, values: Made) -> int:
        place = self._take(4 * -(-size // COLUMNS) * COLUMNS)
        self.vectors.append((place, values))
        return place

    def linear(self, weight: Tensor, bias: Tensor | None) -> tuple[int, ...]:
        columns, depth = weight.shape
        return self.matrix(columns, depth, lambda: weight, _or_full(bias, columns, 0.0))

    def projection(self, step: Project, attend: Attend) -> tuple[int, ...]:
        (columns, depth), bias = step.weight.shape, _or_full(step.bias, len(step.weight), 0.0)
        arranged = partial(tables.projection, attend=attend)
        return self.matrix(columns, depth, lambda: arranged(step.weight), lambda: arranged(bias()))

    def up(self, step: FeedForward) -> tuple[int, ...]:
        gate, (wide, depth) = step.gate, step.up.shape
        if gate is None:
            return self.linear(step.up, step.up_bias)
        biases = [_or_full(bias, wide, 0.0) for bias in (step.up_bias, step.gate_bias)]
        return self.matrix(
            2 * -(-wide // self.width) * self.width,
            depth,
            lambda: tables.gated(step.up, gate, self.width),
            lambda: tables.gated(biases[0](), biases[1](), self.width),
        )

    def once(self, key: tuple[Hashable, ...], size: int, values: Made) -> int:
        """A vector that several layers may have."""
        if key not in self.shared:
            self.shared[key] = self.vector(size, values)
        return self.shared[key]

    def rotary(self, rotary: Rotary) -> dict[str, Any]:
        positions, head_dim = rotary.cos.shape
        size = positions * 2 * tables.row_of_rotary(head_dim)
        key = ("rotary", id(rotary.cos), id(rotary.sin), rotary.interleaved)
        return {"rotary": self.once(key, size, partial(tables.rotary_table, rotary)), "positions": positions}

    def relative(self, relative: RelativeTerms, attend: Attend) -> dict[str, Any]:
        rows, order = tables.by_distance(relative), tables.paired(attend.head_dim, attend.rotary)
        places: dict[str, Any] = {"reach": tables.reach_of(rows)}
        if relative.bias is not None:
            key = ("bias", id(relative.bias), id(relative.index), attend.scale)
            made = partial(tables.bias_table, relative.bias, rows, attend.scale)
            places["bias"] = self.once(key, attend.heads * len(rows), made)
        for name, table, way in (("keys", relative.keys, rows), ("queries", relative.queries, rows.flip(0))):
            if table is not None:
                each = [
                    self.panels(
                        len(rows),
                        attend.head_dim,
                        partial(tables.head_table, table, head, way, order),
                        self.attention_precision,
                    )
                    for head in range(attend.heads)
                ]
                places[name] = each[0]
        return places

    def fill(self) -> Tensor:
        region: Tensor = torch.ops.spanbert_kernels.packed_linear_memory(self.bytes)
        for place, count, precision, weight in self.matrices:
            made = weight()
            made = made.float() if made.dtype == torch.float64 else made
            torch.ops.spanbert_kernels.encoder_stack_pack(made, region[place : place + count], precision)
        for place, values in self.vectors:
            made = values().flatten()
            padded = -(-made.numel() // COLUMNS) * COLUMNS
            to = region[place : place + 4 * padded].view(torch.float32)
            to.zero_()
            to[: made.numel()] = made
        return region


def _or_full(values: Tensor | None, size: int, default: float) -> Made:
    return partial(torch.full, (size,), default) if values is None else lambda: values


def pack(steps: Sequence[Step], hidden_size: int, precision: Precision) -> PackedSteps:
    """Copies of the steps' weights for the kernels of this processor."""
    region, rows, constants = _Region(precision), [], []
    for index, step in enumerate(steps):
        attend = next((each for each in steps[index:] if isinstance(each, Attend)), None)
        rows.append(_row(region, step, attend, hidden_size).numbers())
        constants.append(step.scale if isinstance(step, Attend) else step.eps if isinstance(step, Normalize) else 0.0)
    with torch.no_grad():
        filled = region.fill()
    return PackedSteps(
        filled,
        torch.tensor(rows, dtype=torch.int64).view(-1, len(PackedRow(0).numbers())),
        torch.tensor(constants, dtype=torch.float64),
    )


def _row(region: _Region, step: Step, attend: Attend | None, hidden_size: int) -> PackedRow:
    """`attend`: this step, or the next one that is an Attend: a Project is laid out, and turns, as that says."""
    row = PackedRow(KINDS.index(type(step)))
    if isinstance(step, Project | Attend) and attend is not None:
        row = row._replace(heads=attend.heads, key_heads=attend.key_heads, head_dim=attend.head_dim)
    match step:
        case Project() if attend is not None:
            turned = {} if attend.rotary is None else region.rotary(attend.rotary)
            return row._replace(first=region.projection(step, attend), **turned)
        case Project() | Merge():
            return row._replace(first=region.linear(step.weight, step.bias))
        case Attend():
            relative = {} if step.relative is None else region.relative(step.relative, step)
            return row._replace(window=-1 if step.window is None else step.window, **relative)
        case FeedForward():
            return row._replace(
                first=region.up(step),
                second=region.linear(step.down, step.down_bias),
                activation=ACTIVATIONS.index(step.activation),
                gated=int(step.gate is not None),
            )
        case Normalize():
            weight = region.vector(hidden_size, _or_full(step.weight, hidden_size, 1.0))
            bias = region.vector(hidden_size, _or_full(step.bias, hidden_size, 0.0))
            flags: dict[str, Any] = {"keeps": int(step.keeps), "centred": int(step.kind == "layer")}
            return row._replace(first=(weight, bias, hidden_size, 0), **flags)
