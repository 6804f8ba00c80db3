"""Measuring: turns, medians, samples, memory. A clock that the test owns stands in for time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from spanbert_kernels.cli import measuring
from spanbert_kernels.cli.measuring import MEBIBYTE, Effort, PeakMemory, Timing, compare


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Time stands still but for what the returned function lets pass."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def run(
    wait: Callable[[float], None],
    costs: list[list[float]],
    effort: Effort,
    **options: Any,
) -> tuple[Timing, list[tuple[str, int]], list[tuple[int, Any, Any]]]:
    """Both ways over items 0 .. n-1; item i costs the baseline `costs[i][k]` on its k-th run, the other a tenth."""
    log: list[tuple[str, int]] = []
    seen: list[tuple[int, Any, Any]] = []

    def way(name: str, share: float) -> Callable[[int], str]:
        def work(item: int) -> str:
            if item >= 0:
                before = log.count((name, item))
                wait(share * costs[item][min(before, len(costs[item]) - 1)])
                log.append((name, item))
            return f"{name}{item}"

        return work

    timing = compare(
        range(len(costs)),
        way("b", 1.0),
        way("a", 0.1),
        lambda index, b, a: seen.append((index, b, a)),
        effort,
        **{"largest": 0, "warm_up": -1, **options},
    )
    return timing, log, seen


def test_rounds_alternate_and_medians_are_summed(clock: Callable[[float], None]) -> None:
    timing, log, seen = run(clock, [[1.0, 9.0, 2.0], [5.0, 5.0, 5.0]], Effort(repeats=3, seconds=0.0))
    assert timing.baseline_seconds == pytest.approx(2.0 + 5.0)
    assert timing.accelerated_seconds == pytest.approx(0.2 + 0.5)
    assert (timing.fewest, timing.most, timing.items) == (3, 3, (0, 1))
    first_round = [("b", 0), ("a", 0), ("a", 1), ("b", 1)]
    second_round = [("a", 0), ("b", 0), ("b", 1), ("a", 1)]
    assert log == [*first_round, *second_round, *first_round]
    assert seen == [(0, "b0", "a0"), (1, "b1", "a1")]


def test_time_allows_part_of_a_second_round(clock: Callable[[float], None]) -> None:
    """A round costs 1.1 + 2.2 seconds; of 5 seconds 1.7 are left for the second, enough for the first item alone."""
    timing, log, _ = run(clock, [[1.0], [2.0]], Effort(repeats=None, seconds=5.0))
    assert (timing.fewest, timing.most, timing.rounds) == (1, 2, "1 to 2 rounds")
    assert log.count(("b", 0)) == 2
    assert log.count(("b", 1)) == 1


def test_the_first_round_is_finished_unless_a_sample_will_do(clock: Callable[[float], None]) -> None:
    costs = [[1.0]] * 10
    effort = Effort(repeats=None, seconds=4.0)
    timing, _, seen = run(clock, costs, effort)
    assert timing.items == tuple(range(10))
    assert timing.rounds == "1 round"
    timing, _, seen = run(clock, costs, effort, sample=True, largest=7)
    assert len(timing.items) == 3  # three pairs cost 3.3 seconds, a fourth would pass 4
    assert seen[0][0] == 7
    assert timing.items == tuple(sorted(index for index, _, _ in seen))
    assert timing.baseline_seconds == pytest.approx(3.0)
    every, _, _ = run(clock, costs, Effort(repeats=1, seconds=0.0), sample=True)
    assert every.items == tuple(range(10))


def test_short_work_is_repeated_inside_a_timing(clock: Callable[[float], None]) -> None:
    timing, log, _ = run(clock, [[0.0078125]], Effort(repeats=2, seconds=0.0), warm_up=None)
    assert timing.baseline_seconds == pytest.approx(0.0078125)
    assert timing.accelerated_seconds == pytest.approx(0.00078125)
    assert log.count(("b", 0)) == 2 + 2 * 3
    assert log.count(("a", 0)) == 2 + 2 * 26


@pytest.mark.parametrize("repeats", [None, 3])
def test_progress_grows_to_one(clock: Callable[[float], None], repeats: int | None) -> None:
    shares: list[float] = []
    run(clock, [[1.0], [3.0], [0.5]], Effort(repeats, seconds=12.0, advance=shares.append))
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.5
    assert shares[-1] == 1.0
    assert max(shares) <= 1.0


@pytest.mark.parametrize("kernel", [True, False])
def test_peak_memory_sees_what_was_freed_again(kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernel:
        monkeypatch.setattr(measuring, "_reset_peak", lambda: False)
    with PeakMemory() as idle:
        time.sleep(0.01)
    with PeakMemory() as memory:
        block = np.ones(96 * MEBIBYTE, dtype=np.uint8)
        for _ in range(30_000):  # until the thread that samples has had its turn, where there is one
            if kernel or memory._highest > memory._start + 90 * MEBIBYTE:
                break
            time.sleep(0.002)
        del block
    assert idle.bytes < 32 * MEBIBYTE
    assert 90 * MEBIBYTE < memory.bytes < 160 * MEBIBYTE


def test_memory_is_measured_on_the_largest_item(clock: Callable[[float], None]) -> None:
    def allocate(size: int) -> int:
        block = np.ones(1 + size * MEBIBYTE, dtype=np.uint8)
        return int(block[-1])

    timing = compare([1, 80, 1], allocate, lambda size: size, lambda *_: None, Effort(1, 0.0), largest=1, warm_up=0)
    assert 70 * MEBIBYTE < timing.baseline_peak < 140 * MEBIBYTE
    assert timing.accelerated_peak < 40 * MEBIBYTE
