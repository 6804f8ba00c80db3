"""Whether ours became slower or faster between two records, beyond what measuring itself moves.

What other libraries compute did not change between the records, so their times tell how the machine did: the factor of
ours is divided by theirs (`drift`). The noise adds up how far apart theirs are and the quartiles of all that enter.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from records.record import Record, Row

LEAST_NOISE = 0.05  # of a process to the next: where memory lies


@dataclass(frozen=True)
class Change:
    """A row of both records. `factor` is the time of ours now over before, the machine's drift taken out."""

    row: Row
    before: float
    after: float
    factor: float
    noise: float

    @property
    def slower(self) -> bool:
        return self.factor > 1 + self.noise

    @property
    def faster(self) -> bool:
        return self.factor < 1 / (1 + self.noise)


def change_of(before: Row, after: Row) -> Change:
    """How ours did on one workload."""
    earlier, later = (
        {name: entry for name, entry in row.providers.items() if entry.milliseconds and not row.is_ours(name)}
        for row in (before, after)
    )
    theirs = [(earlier[name], entry) for name, entry in later.items() if name in earlier]
    ratios = [math.log(now.time / then.time) for then, now in theirs] or [0.0]
    drift = statistics.median(ratios)
    apart = statistics.median(abs(ratio - drift) for ratio in ratios)
    other_spread = statistics.median([math.hypot(then.spread, now.spread) for then, now in theirs] or [0.0])
    noise = math.hypot(apart, before.ours.spread, after.ours.spread, other_spread)
    factor = after.ours.time / before.ours.time / math.exp(drift)
    return Change(after, before.ours.time, after.ours.time, factor, max(noise, LEAST_NOISE))


def changes(before: Record, after: Record) -> Iterator[Change]:
    """Of the rows that both records have, the worst first."""
    earlier = {row.key: row for row in before.rows}
    found = [change_of(earlier[row.key], row) for row in after.rows if row.key in earlier]
    yield from sorted(found, key=lambda each: -each.factor)


def without_counterpart(before: Record, after: Record) -> tuple[list[Row], list[Row]]:
    """Rows that went and rows that came, of the suites that both records have: nothing is said about their speed."""

    def missing(rows: Record, other: Record) -> list[Row]:
        keys, suites = {row.key for row in other.rows}, {row.suite for row in other.rows}
        return [row for row in rows.rows if row.suite in suites and row.key not in keys]

    return missing(before, after), missing(after, before)
