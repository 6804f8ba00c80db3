"""What every benchmark shares: the gate, measuring in turns, and the table at the end."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from memory import Peak
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from spanbert_kernels import __version__, ops

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
        peak: Peak | None = None,
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
            goals=verdicts + (peak.verdicts() if peak else []),
            peak_megabytes=peak.megabytes if peak else {},
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
    mallopt(trim_threshold, -1)  # never


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
    if torch.cuda.is_available():
        import triton

        machine_info.update(gpu=torch.cuda.get_device_name(), cuda=torch.version.cuda, triton=triton.__version__)


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    """One line per figure."""
    session = getattr(config, "_benchmarksession", None)
    rows = [bench for bench in (session.benchmarks if session else []) if "speedup" in bench.extra_info]
    if not rows:
        return
    table = Table("benchmark", "ours, ms", "baselines, ms", "speed-up", "peak, MB", "largest error", "goals", "path")
    table.box = box.SIMPLE
    for bench in rows:
        info = bench.extra_info
        others = {**info["baselines"], **{f"({name})": value for name, value in info["floors"].items()}}
        table.add_row(
            escape(bench.name),
            f"{info['milliseconds']:.4g}",
            "\n".join(f"{name} {value:.4g}" for name, value in others.items()),
            f"{info['speedup']:.2f}",
            "\n".join(f"{name} {value:.4g}" for name, value in info["peak_megabytes"].items()),
            f"{info['largest_error']:.1e}",
            escape("\n".join(info["goals"])),
            info["path"],
        )
    Console(width=220).print(table)
