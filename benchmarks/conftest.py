"""What every benchmark shares: its rows from the suite's table, the record as it grows, and the tables at the end."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from measuring import QUICK, Refused, ceilings, measure
from registry import Workload
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from turns import compare

from spanbert_kernels import __version__, ops

__all__ = ["compare"]  # a fixture, for the suites that are not in the registry yet
ROWS = os.environ.get("SPANBERT_KERNELS_BENCH_ROWS")


def _append(line: Mapping[str, Any]) -> None:
    """To the file that whoever runs the suites reads while they run."""
    if ROWS:
        with Path(ROWS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "workload" in metafunc.fixturenames:
        rows = [each for each in metafunc.module.SUITE.workloads if each.quick or not QUICK]
        metafunc.parametrize("workload", rows, ids=[each.id for each in rows])


def pytest_collection_finish(session: pytest.Session) -> None:
    _append({"collected": sum("workload" in getattr(item, "fixturenames", ()) for item in session.items)})


@pytest.fixture(scope="session")
def machine_ceilings() -> dict[str, float]:
    found = ceilings()
    _append({"ceilings": found})
    return found


@pytest.fixture
def record(request: pytest.FixtureRequest, benchmark: Any, machine_ceilings: dict[str, float]) -> Callable[..., None]:
    """Measures a workload of the module's suite; there is a row only if our result was right in this run."""

    def run(workload: Workload) -> None:
        suite = request.module.SUITE
        try:
            row = measure(suite, workload, machine_ceilings, benchmark)
        except Refused as reason:
            _append({"failure": {"suite": suite.name, "workload": workload.id, "reason": str(reason)}})
            raise
        benchmark.extra_info["row"] = row
        _append({"row": row})

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
    """One line per row."""
    session = getattr(config, "_benchmarksession", None)
    found = [bench.extra_info for bench in (session.benchmarks if session else [])]
    table = Table("workload", "ours, ms", "others, ms", "of floor", "peak, MB", "error", "goals", "ran", box=box.SIMPLE)
    for row in (info["row"] for info in found if "row" in info):
        table.add_row(*map(escape, _cells(row)))
    for info in (info for info in found if "speedup" in info):
        table.add_row(*map(escape, _cells_of_gpu(info)))
    if table.row_count:
        Console(width=220).print(table)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    ours = row["providers"]["ours"]
    others = {name: entry for name, entry in row["providers"].items() if name != "ours"}
    peaks = {name: entry["peak"] for name, entry in row["providers"].items() if entry.get("peak") is not None}
    return (
        f"{row['suite']}: {row['workload']}, {row['direction']}, {row['dtype']}",
        f"{ours['milliseconds']:.4g}",
        "\n".join(
            f"{name} {entry['milliseconds']:.4g}" if "milliseconds" in entry else f"{name}: {entry['unavailable']}"
            for name, entry in others.items()
        ),
        f"{ours['share']:.0%}",
        "\n".join(f"{name} {peak:.4g}" for name, peak in peaks.items()),
        f"{ours['error']:.1e}",
        "\n".join(row["goals"]),
        ours["ran"],
    )


def _cells_of_gpu(info: Mapping[str, Any]) -> tuple[str, ...]:
    others = {**info["baselines"], **{f"({name})": value for name, value in info["floors"].items()}}
    return (
        info.get("name", ""),
        f"{info['milliseconds']:.4g}",
        "\n".join(f"{name} {value:.4g}" for name, value in others.items()),
        "",
        "",
        f"{info['largest_error']:.1e}",
        "\n".join(info["goals"]),
        info["path"],
    )
