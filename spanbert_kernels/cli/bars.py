"""Bars of speed-ups on a logarithmic axis, of HTML: a narrow page puts each name above its bar."""

from __future__ import annotations

import math
from dataclasses import dataclass

from spanbert_kernels.cli import formatting

_TICKS = (0.01, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 1000)


@dataclass(frozen=True)
class Bar:
    """A speed-up: where it is below 1 the bar goes to the left. `marks` are others to compare with, `words` follow."""

    name: str
    factor: float
    words: str = ""
    marks: tuple[float, ...] = ()

    @property
    def label(self) -> str:
        return formatting.speed_up(self.factor)


class Bars(list[Bar]):
    """Bars on one axis, for the macro `chart` of bars.html.

    Example:
        >>> bars = Bars([Bar("encoder", 0.5), Bar("span_pool", 8.0)])
        >>> bars.place(1), bars.ticks()
        ('26.6%', [0.5, 1, 2, 5])
    """

    def _ends(self) -> tuple[float, float]:
        values = [value for bar in self for value in (bar.factor, *bar.marks)]
        return min([0.7, *values]) / 1.1, max([2.0, *values]) * 1.1

    def place(self, value: float) -> str:
        """Where a value lies on the axis, in percent of its length."""
        low, high = self._ends()
        return f"{100 * math.log(value / low) / math.log(high / low):.1f}%"

    def ticks(self) -> list[float]:
        """Round numbers between the ends, at most seven, 1 among them."""
        low, high = self._ends()
        found = [tick for tick in _TICKS if low < tick < high]
        return found if len(found) <= 7 else [tick for tick in found if math.log10(tick).is_integer()]
