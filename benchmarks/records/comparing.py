"""Whether ours became slower or faster between two records, beyond what measuring itself moves.

What other libraries compute did not change between the records, so their times tell how the machine did: the factor of
ours is divided by theirs (`drift`). The noise adds up how far apart theirs are and the quartiles of all that enter.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from records.record import Entry, Record, Row

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


def _ratio(before: Entry, after: Entry) -> float:
    assert before.milliseconds is not None
    assert after.milliseconds is not None
    return math.log(after.milliseconds / before.milliseconds)


def change_of(before: Row, after: Row) -> Change:
    """How ours did on one workload."""
    earlier, later = (
        {name: entry for name, entry in row.providers.items() if entry.milliseconds and not row.is_ours(name)}
        for row in (before, after)
    )
    theirs = [(earlier[name], entry) for name, entry in later.items() if name in earlier]
    ratios = [_ratio(*pair) for pair in theirs]
    drift = statistics.median(ratios) if ratios else 0.0
    apart = statistics.median(abs(ratio - drift) for ratio in ratios) if ratios else 0.0
    other_spread = statistics.median(math.hypot(a.spread, b.spread) for a, b in theirs) if theirs else 0.0
    noise = math.hypot(apart, before.ours.spread, after.ours.spread, other_spread)
    first, second = before.ours.milliseconds, after.ours.milliseconds
    assert first is not None
    assert second is not None
    return Change(after, first, second, math.exp(_ratio(before.ours, after.ours) - drift), max(noise, LEAST_NOISE))


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
