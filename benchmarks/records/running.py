"""Runs the suites of a source checkout with pytest in a process of its own and gathers what they report meanwhile."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from records.record import Record, Row, row_of
from spanbert_kernels.cli import environment

POLL_SECONDS = 0.2
ROOT = Path(__file__).resolve().parents[2]
SUITES, PACKAGE = ROOT / "benchmarks", ROOT / "spanbert_kernels"
# Of the processes that measure, for whoever reads the record.
PROCESSES = "as users have them, with the default allocator and threads"
PEERS = ("ctranslate2", "nncf", "onnxruntime", "openvino", "sentence-transformers")
PASSED, FAILED = 0, 1  # of pytest; others mean that it did not get to the end


class CannotRun(RuntimeError):
    """The suites did not run, or not to the end; the message says why."""


@dataclass
class Progress:
    """What is known of a run so far."""

    collected: int = 0
    done: int = 0
    rows: list[Row] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)
    ceilings: dict[str, float] = field(default_factory=dict)
    package: str = ""

    def take(self, line: Mapping[str, Any]) -> None:
        """A line of the file that the suites append to."""
        if "row" in line:
            self.rows.append(row_of(line["row"]))
        self.failures += [line["failure"]] if "failure" in line else []
        self.skipped += [line["skipped"]] if "skipped" in line else []
        self.ceilings = line.get("ceilings", self.ceilings)
        self.collected += line.get("collected", 0)
        self.package = line.get("package", self.package)
        self.done = len(self.rows) + len(self.failures) + len(self.skipped)


def suite_names() -> list[str]:
    """Of the suites that run on a CPU; empty where there is no source checkout."""
    found = (path.stem.removeprefix("bench_") for path in SUITES.glob("bench_*.py"))
    return sorted(name for name in found if not name.endswith("_on_gpu"))


def run(
    suites: Sequence[str], quick: bool, progress: Progress, watch: Callable[[Progress], None], package: Path = PACKAGE
) -> None:
    """Runs suites with the package in a folder; `progress` grows with every line of theirs, and `watch` sees it.

    In a full run every suite has a process of its own: what one leaves in the allocator does not change another, and a
    suite that takes its process down, or needs what the package of another commit lacks, leaves a failure behind and
    the others as they are.

    Raises:
        CannotRun: pytest collected nothing, or another package than the one wanted was measured.
    """
    output: list[str] = []
    for group in [suites] if quick else [[suite] for suite in suites]:
        output = _run_together(group, quick, progress, watch, package)
        if progress.package and Path(progress.package).resolve() != package.resolve():
            raise CannotRun(f"the suites measured the package in {progress.package}, not the one in {package}")
    if not progress.collected:
        raise CannotRun("\n".join(["the suites stopped:", *output[-15:]]))


def _run_together(
    suites: Sequence[str], quick: bool, progress: Progress, watch: Callable[[Progress], None], package: Path
) -> list[str]:
    """Some suites in one process; what pytest printed."""
    with tempfile.TemporaryDirectory() as folder:
        lines, output = Path(folder) / "rows.jsonl", Path(folder) / "output.txt"
        lines.touch()
        # A run inside of pytest-xdist would otherwise take itself for one of its workers and not measure.
        outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
        variables = {
            **outside,
            "SPANBERT_KERNELS_BENCH_ROWS": str(lines),
            "SPANBERT_KERNELS_BENCH_QUICK": "1" if quick else "",
            "SPANBERT_KERNELS_BENCH_CEILINGS": json.dumps(progress.ceilings) if progress.ceilings else "",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(package.parent), os.environ.get("PYTHONPATH")])),
        }
        files = [f"bench_{name}.py" for name in suites]
        command = [sys.executable, "-m", "pytest", *files, "-m", "not gpu", "-p", "no:cacheprovider"]
        with output.open("w") as log, lines.open(encoding="utf-8") as reader:
            process = subprocess.Popen(
                [*command, "--benchmark-quiet"], cwd=SUITES, env=variables, stdout=log, stderr=subprocess.STDOUT
            )
            try:
                for line in _follow(process, reader.readline):
                    progress.take(json.loads(line))
                    watch(progress)
            except BaseException:
                process.terminate()
                process.wait()
                raise
        printed = output.read_text(errors="replace").strip().splitlines() or [""]
        if process.returncode not in (PASSED, FAILED):
            told = next((line.removeprefix("E ").strip() for line in printed if line.startswith("E ")), printed[-1])
            reason = f"the process ended with exit code {process.returncode}: {told}"
            progress.failures.append({"suite": ", ".join(suites), "workload": "all that was left", "reason": reason})
        return printed


def _follow(process: subprocess.Popen[bytes], readline: Callable[[], str]) -> Iterator[str]:
    """Whole lines, as they come, until the process has ended and all of its lines are read."""
    pending = ""
    while True:
        ended = process.poll() is not None
        while piece := readline():
            pending += piece
            if pending.endswith("\n"):
                yield pending
                pending = ""
        if ended:
            return
        time.sleep(POLL_SECONDS)


def record_of(progress: Progress, quick: bool, seconds: float, state: tuple[str, bool]) -> Record:
    """What a run found, with the machine, the versions and the commit: `state` is `git_state()` at its beginning."""
    return Record(
        date=datetime.date.today().isoformat(),
        commit=state[0],
        dirty=state[1],
        quick=quick,
        seed=0,
        seconds=round(seconds, 1),
        machine={**environment.machine(), "processes": PROCESSES},
        versions={**environment.versions(), **_peers()},
        ceilings={name: round(value, 2) for name, value in progress.ceilings.items()},
        rows=progress.rows,
        failures=progress.failures,
        skipped=progress.skipped,
    )


def _peers() -> dict[str, str]:
    """Versions of the other runtimes that are installed here."""
    found = {}
    for name in PEERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _git(*words: str) -> str | None:
    """Standard output, or None where git has nothing to say."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], check=False, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def git_state() -> tuple[str, bool]:
    """The commit, "unknown" outside a repository, and whether files differ from it."""
    return _git("rev-parse", "HEAD") or "unknown", bool(_git("status", "--porcelain"))


def commit_named(reference: str) -> str | None:
    """The full name of a commit, if git knows the reference."""
    return _git("rev-parse", "--verify", "--quiet", f"{reference}^{{commit}}")


@contextlib.contextmanager
def package_at(commit: str) -> Iterator[Path]:
    """The package as it was at a commit, built in a folder of its own that vanishes afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        if _git("worktree", "add", "--detach", str(tree), commit) is None:
            raise CannotRun(f"git cannot check {commit} out into a folder of its own")
        try:
            build = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", ".", "--build-temp", "objects"]
            done = subprocess.run(build, cwd=tree, check=False, capture_output=True, text=True)
            if done.returncode:
                raise CannotRun(f"commit {commit[:7]} cannot be built:\n{done.stderr[-2000:]}")
            yield tree / "spanbert_kernels"
        finally:
            _git("worktree", "remove", "--force", str(tree))
