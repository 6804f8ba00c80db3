"""What the fuzzer draws with: one generator a call, so that a call's seed repeats it alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from layouts import LAYOUTS, fits
from op_checks import Layouts, Tensors
from torch import Tensor

Item = TypeVar("Item")
SIZES = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 40, 64, 65)  # below, at and above what vectors and tiles hold


@dataclass
class Draw:
    """Random choices from one seed; `small` ones for places that are emulated."""

    seed: int
    small: bool = False
    random: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)

    def chance(self, probability: float) -> bool:
        return bool(self.random.random() < probability)

    def integer(self, least: int, most: int) -> int:
        return int(self.random.integers(least, most, endpoint=True))

    def pick(self, items: Sequence[Item]) -> Item:
        return items[self.integer(0, len(items) - 1)]

    def subset(self, items: Sequence[Item]) -> list[Item]:
        """At least one of the items, in any order."""
        order = self.random.permutation(len(items))
        return [items[int(i)] for i in order[: self.integer(1, len(items))]]

    def size(self, most: int = 65, zero: float = 0.05) -> int:
        """A dimension: now and then 0, small at small places."""
        if self.chance(zero):
            return 0
        return self.pick([size for size in SIZES if size <= (min(most, 17) if self.small else most)])

    def numbers(self, *shape: int) -> Tensor:
        """Normal numbers of some magnitude; now and then few different ones, so that there are ties and zeros."""
        values = torch.from_numpy(self.random.standard_normal(shape)) * self.pick((0.01, 1.0, 1.0, 1.0, 8.0))
        return values.round() if self.chance(0.1) else values

    def index(self, values: Tensor) -> Tensor:
        return values.int() if self.chance(0.4) else values

    def offsets(self, count: int, length: int) -> Tensor:
        """Offsets of `count` runs of up to `length`, some of them empty."""
        runs = self.random.integers(0, length + 1, count) * (self.random.random(count) < 0.85)
        return torch.from_numpy(np.concatenate([[0], np.cumsum(runs)]).astype(np.int64))

    def spans(self, tokens: int) -> Tensor:
        """Inclusive spans: in any order, narrow or wide, some repeated, some empty."""
        count = self.size(17 if self.small else 40)
        if tokens == 0:
            return torch.tensor([[0, -1]] * count, dtype=torch.int64).view(count, 2)
        start = self.random.integers(0, tokens, count)
        width = self.random.integers(0, self.pick((1, 3, 6, tokens)) + 1, count)
        if self.chance(0.1):
            width[:] = 0
        spans = np.stack([start, np.minimum(start + width, tokens) - 1], 1)
        if count and self.chance(0.3):
            spans = spans[self.random.integers(0, max(1, count // 3), count)]
        if self.chance(0.3):
            spans = spans[np.lexsort((spans[:, 1], spans[:, 0]))]
        return torch.from_numpy(np.ascontiguousarray(spans))

    def documents(self) -> Tensor:
        """Offsets of a batch's documents."""
        many = self.chance(0.2)
        count = self.size(3 if self.small else 33 if many else 8)
        return self.offsets(count, self.pick((3, 9) if self.small or many else (1, 3, 9, 20, 70)))

    def layouts(self, tensors: Tensors) -> Layouts:
        """A layout for some tensors and some incoming gradients."""
        names = [*tensors, "incoming 0"]
        alike = self.pick(list(LAYOUTS)) if self.chance(0.15) else None
        chosen = {name: alike or self.pick(list(LAYOUTS)) for name in names if alike or self.chance(0.5)}
        return tuple(
            (name, layout)
            for name, layout in chosen.items()
            if (name not in tensors and layout != "windows")
            or (name in tensors and tensors[name].dim() and fits(layout, name, tensors[name]))
        )
