"""What every benchmark shares: its rows from the suite's table, the record as it grows, and the tables at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from measuring import QUICK, ceilings, measure
from registry import Unavailable, Workload

import spanbert_kernels

ROWS = os.environ.get("SPANBERT_KERNELS_BENCH_ROWS")
rows: list[dict[str, Any]] = []


def _append(line: Mapping[str, Any]) -> None:
    """To the file that whoever runs the suites reads while they run."""
    if ROWS:
        with Path(ROWS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "workload" in metafunc.fixturenames:
        wanted = [each for each in metafunc.module.SUITE.workloads if each.quick or not QUICK]
        metafunc.parametrize("workload", wanted, ids=[each.id for each in wanted])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A suite without a quick row has no place in a quick run; pytest would count it as skipped."""
    items[:] = [item for item in items if getattr(item, "callspec", None) is None or item.callspec.id != "NOTSET"]


def pytest_collection_finish(session: pytest.Session) -> None:
    _append({"collected": len(session.items), "package": str(Path(spanbert_kernels.__file__).parent)})


@pytest.fixture(scope="session")
def machine_ceilings() -> dict[str, float]:
    found = ceilings()
    _append({"ceilings": found})
    return found


@pytest.fixture(scope="session")
def gpu_ceilings() -> dict[str, float]:
    import on_gpu

    found = on_gpu.ceilings()
    _append({"ceilings": found})
    return found


@pytest.fixture
def record(request: pytest.FixtureRequest, benchmark: Any, machine_ceilings: dict[str, float]) -> Callable[..., None]:
    """Measures a workload of the module's suite; there is a row only if our result was right in this run."""

    def run(workload: Workload) -> None:
        suite = request.module.SUITE
        try:
            row = measure(suite, workload, machine_ceilings, benchmark)
        except Unavailable as reason:
            pytest.skip(str(reason))
        _keep(row)

    return run


@pytest.fixture
def keep_row() -> Callable[[dict[str, Any]], None]:
    """For suites that measure by themselves."""
    return _keep


def _keep(row: dict[str, Any]) -> None:
    rows.append(row)
    _append({"row": row})


@pytest.fixture
def keep_measured() -> Callable[[dict[str, Any]], None]:
    """For rows of `benchmarks/roof`."""
    return lambda found: _append({"roof": found})


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """What fails, be it the gate or anything else, leaves no row but a line that says so; so does what is skipped."""
    report = yield
    if call.excinfo is not None and not report.passed:
        suite = Path(item.fspath).stem.removeprefix("bench_")
        workload = getattr(getattr(item, "callspec", None), "id", item.name)
        reason = str(call.excinfo.value).strip() or call.excinfo.typename
        entry = {"suite": suite, "workload": workload, "reason": reason.splitlines()[0]}
        _append({"skipped" if report.skipped else "failure": entry})
    return report


def pytest_configure(config: Any) -> None:
    """Where the environment holds PyTorch to AVX2 (ATEN_CPU_CAPABILITY), it is meant for our kernels too."""
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        from spanbert_kernels.ops.library import cpu_isa

        if (cpu_isa() or "").startswith("avx512"):
            torch.ops.spanbert_kernels.set_cpu_isa("avx2")


def pytest_terminal_summary() -> None:
    """One line per row; whoever reads the rows makes tables of them."""
    if not rows or ROWS:
        return
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("workload", "ours, ms", "others, ms", "of floor", "peak, MB", "error", "goals", "ran", box=box.SIMPLE)
    for row in rows:
        table.add_row(*map(escape, _cells(row)))
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
