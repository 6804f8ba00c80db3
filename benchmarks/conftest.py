"""What every benchmark shares: the gate, measuring in turns, and the table at the end."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from spanbert_kernels import __version__, ops

SECONDS_PER_FIGURE = 12.0
FEWEST_ROUNDS, MOST_ROUNDS = 3, 101


@dataclass(frozen=True)
class Goal:
    """A figure asked for: how many times faster than the fastest baseline, or how many times a baseline's duration."""

    at_least: float | None = None
    at_most: float | None = None

    def judge(self, speedup: float) -> str:
        """The goal and whether it was met."""
        if self.at_least is not None:
            return f"{'met' if speedup >= self.at_least else 'missed'}: at least {self.at_least:g} x faster"
        if self.at_most is not None:
            return f"{'met' if 1 / speedup <= self.at_most else 'missed'}: at most {self.at_most:g} x the time"
        return ""


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
    """

    def run(
        ours: Callable[[], object],
        baselines: Mapping[str, Callable[[], object]],
        *,
        error: float,
        goal: Goal | None = None,
        path: Callable[[], object] | None = None,
    ) -> None:
        with ops.backends.record() as calls:
            seconds = sum(_time(way) for way in (ours, *baselines.values()))
        seconds = sum(_time(way) for way in (ours, *baselines.values()))
        rounds = int(min(max(SECONDS_PER_FIGURE / seconds, FEWEST_ROUNDS), MOST_ROUNDS))
        times: dict[str, list[float]] = {name: [] for name in baselines}

        def time_baselines() -> None:
            for name, way in baselines.items():
                times[name].append(_time(way))

        benchmark.pedantic(ours, setup=time_baselines, rounds=rounds)
        ours_seconds = benchmark.stats.stats.median
        medians = {name: statistics.median(values) for name, values in times.items()}
        speedup = min(medians.values()) / ours_seconds
        benchmark.extra_info.update(
            milliseconds=ours_seconds * 1e3,
            baselines={name: value * 1e3 for name, value in medians.items()},
            speedup=speedup,
            largest_error=error,
            path=str(path()) if path else ", ".join(sorted({f"{name}: {backend}" for name, backend in calls})),
            goal=goal.judge(speedup) if goal else "",
        )

    return run


def pytest_configure(config: Any) -> None:
    """Freed memory stays with the process: else much of what is measured is the system handing out pages."""
    no_mmap, trim_threshold = -4, -1
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(no_mmap, 0)
    mallopt(trim_threshold, 2**31 - 1)


def _time(way: Callable[[], object]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """Versions and threads in, what names the host out."""
    import transformers

    for name in ("node", "release"):
        machine_info.pop(name, None)
    machine_info.update(
        torch=torch.__version__,
        transformers=transformers.__version__,
        spanbert_kernels=__version__,
        threads=torch.get_num_threads(),
        instruction_set=torch.backends.cpu.get_cpu_capability(),
        kernels=ops.library.cpu_level(),
    )


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    """One line per figure."""
    session = getattr(config, "_benchmarksession", None)
    rows = [bench for bench in (session.benchmarks if session else []) if "speedup" in bench.extra_info]
    if not rows:
        return
    table = Table("benchmark", "ours, ms", "baselines, ms", "speed-up", "largest error", "goal", "path", box=box.SIMPLE)
    for bench in rows:
        info = bench.extra_info
        baselines = "\n".join(f"{name} {value:.4g}" for name, value in info["baselines"].items())
        speedup, error = f"{info['speedup']:.2f}", f"{info['largest_error']:.1e}"
        table.add_row(bench.name, f"{info['milliseconds']:.4g}", baselines, speedup, error, info["goal"], info["path"])
    Console(width=180).print(table)
