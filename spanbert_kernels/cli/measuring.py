"""Time and peak memory of two ways to do the same work, measured in turns so that a slow minute hits both.

The benchmarks count rounds of one workload (benchmarks/measuring.py); a user's own documents get a budget of time, in
which each is run once by both ways at least, its results are compared, and a sample is taken where the budget ends. No
timer serves both: that of torch.utils.benchmark runs one statement for all of its rounds before the other, on a number
of threads of its own, and keeps no results.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import math
import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

SHORTEST_TIMING = 0.02  # seconds; shorter work is repeated inside one timing
MOST_CALLS = 1000  # inside one timing
MOST_ROUNDS = 15
MEBIBYTE = 2**20


class PeakMemory:
    """Peak resident memory of this process above where it stood on entry, in bytes.

    On Linux the kernel keeps the peak itself, and writing 5 to /proc/self/clear_refs resets it. Elsewhere a thread
    samples the resident size every two milliseconds.

    Example:
        >>> with PeakMemory() as memory:
        ...     block = bytearray(64 * MEBIBYTE)
        >>> memory.bytes > 32 * MEBIBYTE
        True
    """

    bytes = 0

    def __enter__(self) -> PeakMemory:
        gc.collect()
        _return_freed_memory()
        self._start = resident_bytes()
        self._reset = _reset_peak()
        if not self._reset:
            self._highest, self._stop = self._start, threading.Event()
            self._thread = threading.Thread(target=self._sample, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._reset:
            self.bytes = max(0, _status_bytes("VmHWM") - self._start)
        else:
            self._stop.set()
            self._thread.join()
            self.bytes = max(self._highest, resident_bytes()) - self._start

    def _sample(self) -> None:
        while not self._stop.wait(0.002):
            self._highest = max(self._highest, resident_bytes())

    @staticmethod
    def method() -> str:
        """How the peak is found on this machine, in words."""
        if _reset_peak():
            return "the kernel's own peak of resident memory (VmHWM), reset before each measurement"
        return "resident memory sampled every 2 ms"


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def _status_bytes(key: str) -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(key))


def _reset_peak() -> bool:
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as references:
            references.write("5")
    except OSError:
        return False
    return os.path.exists("/proc/self/status")


def _return_freed_memory() -> None:
    """Give freed heap back, else one side would live in pages that the other has already paid for (glibc only)."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


@dataclass(frozen=True)
class Timing:
    """Two ways timed over the same items, in turns.

    Attributes:
        baseline_seconds, accelerated_seconds: sums over the items of each item's median.
        baseline_peak, accelerated_peak: bytes that the largest item added to the process.
        fewest, most: how often an item was timed.
        items: the items that were run, ascending; fewer than there are where time ran out and the work is a sample.
    """

    baseline_seconds: float
    accelerated_seconds: float
    baseline_peak: int
    accelerated_peak: int
    fewest: int
    most: int
    items: tuple[int, ...]

    @property
    def rounds(self) -> str:
        """How often each item was timed, in words.

        Example:
            >>> Timing(2.0, 1.0, 0, 0, fewest=2, most=3, items=(0, 1)).rounds
            '2 to 3 rounds'
        """
        fewest = f"{self.fewest} to " if self.fewest != self.most else ""
        return f"{fewest}{self.most} round{'' if self.most == 1 else 's'}"


Work = Callable[[Any], Any]


@dataclass(frozen=True)
class Effort:
    """How long to measure: `repeats` rounds, or about `seconds`; `advance` hears the share done, 0 to 1."""

    repeats: int | None
    seconds: float
    advance: Callable[[float], None] = lambda share: None


def compare(
    items: Sequence[Any],
    baseline: Work,
    accelerated: Work,
    inspect: Callable[[int, Any, Any], object],
    effort: Effort,
    *,
    largest: int,
    warm_up: Any = None,
    sample: bool = False,
) -> Timing:
    """Run both ways over all items, item by item in turns, and again while `effort` allows.

    Results of the first round go to `inspect(index, baseline_result, accelerated_result)` and are dropped then, as a
    model that reads them would. Memory is measured in the first round, on item `largest`.

    Args:
        items: what the ways take, one at a time; at least one.
        baseline, accelerated: the two ways.
        inspect: sees every item's results once.
        effort: how long.
        largest: the item on which memory is measured.
        warm_up: a small item that both ways run beforehand; None: item `largest`, and work so short that a clock
            would not do it justice is then repeated inside each timing.
        sample: with `effort.seconds` alone, stop within the first round when they are over; `largest` runs first and
            the others in a fixed random order.
    """
    progress = _Progress(effort, len(items))
    ways, calls = (baseline, accelerated), [1, 1]
    for side, way in enumerate(ways):
        way(items[largest] if warm_up is None else warm_up)
        if warm_up is None:
            once, _ = _timed(way, items[largest], 1)
            calls[side] = min(MOST_CALLS, max(1, math.ceil(SHORTEST_TIMING / max(once, 1e-7))))
    order = list(range(len(items)))
    if sample:
        order.remove(largest)
        random.Random(0).shuffle(order)
        order.insert(0, largest)
    samples: dict[int, tuple[list[float], list[float]]] = {}
    peaks = [0, 0]
    for number, (place, index) in itertools.product(range(effort.repeats or MOST_ROUNDS), enumerate(order)):
        first = number == 0
        if first:
            expected = progress.elapsed / len(samples) if sample and samples else None
            samples[index] = ([], [])
        else:
            expected = sum(times[-1] * n for times, n in zip(samples[index], calls, strict=True))
        if expected is not None and progress.over(expected):
            break
        results: list[Any] = [None, None]
        # Whoever comes second finds warmer caches: take turns at that, too.
        for side in (0, 1) if (number + place) % 2 == 0 else (1, 0):
            with PeakMemory() if first and index == largest else contextlib.nullcontext() as memory:
                taken, results[side] = _timed(ways[side], items[index], calls[side])
            peaks[side] = memory.bytes if memory else peaks[side]
            samples[index][side].append(taken)
        if first:
            inspect(index, *results)
        progress.step()
    effort.advance(1.0)
    measured = {index: times for index, times in samples.items() if times[0]}
    counts = [len(times) for times, _ in measured.values()]
    today, ours = (math.fsum(statistics.median(times[side]) for times in measured.values()) for side in (0, 1))
    return Timing(today, ours, peaks[0], peaks[1], min(counts), max(counts), tuple(sorted(measured)))


class _Progress:
    """When to stop, and the share done: never above 1, never going back."""

    def __init__(self, effort: Effort, items: int) -> None:
        self.effort, self.items = effort, items
        self.started, self.done, self.share = time.perf_counter(), 0, 0.0

    @property
    def elapsed(self) -> float:
        return time.perf_counter() - self.started

    def over(self, needed: float) -> bool:
        """Whether `needed` more seconds would be too many; never where the number of rounds is given."""
        return self.effort.repeats is None and self.elapsed + needed > self.effort.seconds

    def step(self) -> None:
        self.done += 1
        if self.effort.repeats is not None:
            share = self.done / (self.items * self.effort.repeats)
        else:
            expected = self.elapsed / self.done * max(self.items, self.done)  # the first round has no limit
            share = self.elapsed / max(self.effort.seconds, expected)
        self.share = min(1.0, max(self.share, share))
        self.effort.advance(self.share)


def _timed(way: Work, item: Any, calls: int) -> tuple[float, Any]:
    started = time.perf_counter()
    for _ in range(calls):
        result = way(item)
    return (time.perf_counter() - started) / calls, result
