"""What a record says as a whole: where ours wins, where it loses, what was asked for and missed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from records.record import Record, Row
from spanbert_kernels.cli import formatting

EVEN = 0.05  # as fast as the fastest other, for all that a measurement can tell


def _mean(factors: Iterable[float]) -> float | None:
    """Geometric: twice as fast and half as fast make even."""
    logs = [math.log(factor) for factor in factors]
    return math.exp(sum(logs) / len(logs)) if logs else None


@dataclass(frozen=True)
class OfSuite:
    """Factors of a suite's rows: against the fastest other way (lowest, mean, highest) and against eager PyTorch.

    `wins`, `draws` and `losses` count the rows.
    """

    name: str
    wins: int
    draws: int
    losses: int
    lowest: float
    mean: float
    highest: float
    eager: float | None
    peak: float | None  # of ours as a part of eager's, mean


def fastest(row: Row) -> tuple[str, float] | None:
    """The fastest other way and how many times its time ours is ahead; None where there is nothing else."""
    name = next(iter(row.rivals), None)
    return None if name is None else (name, row.speed_up(name))


class Summary:
    """Rows sorted into wins, draws and losses; goals into met, missed and others: not asked here, or not measured."""

    def __init__(self, record: Record) -> None:
        self.record = record
        judged = [(row, *found) for row in record.rows if (found := fastest(row))]
        self.wins = [each for each in judged if each[2] > 1 + EVEN]
        self.draws = [each for each in judged if 1 / (1 + EVEN) <= each[2] <= 1 + EVEN]
        self.losses = sorted((each for each in judged if each[2] < 1 / (1 + EVEN)), key=lambda each: each[2])
        goals = [(row, goal) for row in record.rows for goal in row.goals]
        self.met = [each for each in goals if each[1].startswith("met")]
        self.missed = [each for each in goals if each[1].startswith("missed")]
        self.others = [each for each in goals if each not in self.met and each not in self.missed]

    def sentences(self, goals: bool = True) -> list[str]:
        """The head of the report; `goals`: with how many of the figures asked for were met."""
        total = len(self.wins) + len(self.draws) + len(self.losses)
        if not total:
            return ["There is no row in which ours stands beside another way."]
        found = [
            f"Ours is faster than every other way on {len(self.wins)} of {total} workloads, within "
            f"{formatting.share(EVEN)} of the fastest on {len(self.draws)}, slower on {len(self.losses)}."
        ]
        if goals and (asked := len(self.met) + len(self.missed)):
            found.append(f"Of {asked} figures asked for, {len(self.met)} were met and {len(self.missed)} missed.")
        found.append("Each result was compared with the same computation in float64 in this run.")
        if self.record.failures:
            found.append(f"{len(self.record.failures)} failed and have no figures.")
        return found

    def suites(self) -> list[OfSuite]:
        """One line a suite, in the record's order."""
        names = dict.fromkeys(row.suite for row in self.record.rows)
        return [line for name in names if (line := self._suite(name))]

    def _suite(self, name: str) -> OfSuite | None:
        rows = [row for row in self.record.rows if row.suite == name]
        factors = [found[1] for row in rows if (found := fastest(row))]
        mean = _mean(factors)
        if mean is None:
            return None
        eager = [factor for row in rows for factor in row.against_eager()]
        peaks = [
            max(row.ours.peak, 1e-3) / entry.peak
            for row in rows
            for entry in row.rivals.values()
            if entry.kind == "eager" and entry.peak and row.ours.peak is not None
        ]
        wins, draws, losses = (
            sum(row.suite == name for row, *_ in each) for each in (self.wins, self.draws, self.losses)
        )
        return OfSuite(name, wins, draws, losses, min(factors), mean, max(factors), _mean(eager), _mean(peaks))
