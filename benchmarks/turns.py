"""The suites that are not in the registry yet: a way of ours and its baselines in turns, compared by the caller."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from spanbert_kernels import ops

SECONDS_PER_FIGURE = 12.0
FEWEST_ROUNDS, MOST_ROUNDS = 3, 101


@dataclass(frozen=True)
class Goal:
    """A figure asked for: how many times faster than a baseline, or how many times its duration at most.

    The baseline is the fastest one unless `against` names another, or a floor.
    """

    at_least: float | None = None
    at_most: float | None = None
    against: str | None = None

    def judge(self, ours: float, baselines: Mapping[str, float], floors: Mapping[str, float]) -> str:
        """The goal and whether it was met."""
        name = self.against or min(baselines, key=lambda each: baselines[each])
        factor = {**baselines, **floors}[name] / ours
        if self.at_least is not None:
            verdict = "met" if factor >= self.at_least else "missed"
            return f"{verdict}: {factor:.3g} x faster than {name}, at least {self.at_least:g} x asked"
        assert self.at_most is not None
        verdict = "met" if 1 / factor <= self.at_most else "missed"
        return f"{verdict}: {1 / factor:.3g} x the time of {name}, at most {self.at_most:g} x asked"


def assert_agrees(result: Tensor, eager: Tensor, reference: Tensor) -> float:
    """The gate: at most twice the eager error in the same dtype, and one rounding. Returns the error."""
    difference = float((result.double() - reference).abs().max())
    allowed = float(2 * (eager.double() - reference).abs().max())
    allowed += torch.finfo(result.dtype).eps * float(reference.abs().max())
    assert difference <= allowed, f"off by {difference:.3g}, allowed {allowed:.3g}: the row is not recorded"
    return difference


@pytest.fixture
def compare(benchmark: Any) -> Callable[..., None]:
    """Times a way of ours and its baselines in turns, round by round, and records medians.

    The baselines run in the set-up of each of pytest-benchmark's rounds, so that a slow minute hits all ways alike.
    Floors are times that nothing can beat, or that are given for scale; they are no baselines.
    """

    def run(
        ours: Callable[[], object],
        baselines: Mapping[str, Callable[[], object]],
        *,
        error: float,
        goals: Sequence[Goal] = (),
        floors: Mapping[str, Callable[[], object]] | None = None,
        path: Callable[[], object] | None = None,
    ) -> None:
        others = {**baselines, **(floors or {})}
        with ops.backends.record() as calls:
            seconds = sum(_time(way) for way in (ours, *others.values()))
        if seconds < SECONDS_PER_FIGURE:
            seconds = sum(_time(way) for way in (ours, *others.values()))
        rounds = int(min(max(SECONDS_PER_FIGURE / seconds, FEWEST_ROUNDS), MOST_ROUNDS))
        times: dict[str, list[float]] = {name: [] for name in others}

        def time_others() -> None:
            for name, way in others.items():
                times[name].append(_time(way))

        benchmark.pedantic(ours, setup=time_others, rounds=rounds)
        ours_seconds = benchmark.stats.stats.median
        medians = {name: statistics.median(values) for name, values in times.items()}
        of_baselines = {name: medians[name] for name in baselines}
        of_floors = {name: medians[name] for name in floors or {}}
        verdicts = [goal.judge(ours_seconds, of_baselines, of_floors) for goal in goals]
        benchmark.extra_info.update(
            milliseconds=ours_seconds * 1e3,
            baselines={name: value * 1e3 for name, value in of_baselines.items()},
            floors={name: value * 1e3 for name, value in of_floors.items()},
            speedup=min(of_baselines.values()) / ours_seconds,
            largest_error=error,
            path=str(path()) if path else ", ".join(sorted({f"{name}: {backend}" for name, backend in calls})),
            goals=verdicts,
            peak_megabytes={},
        )

    return run


def _time(way: Callable[[], object]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start
