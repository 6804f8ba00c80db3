"""Everything that needs a GPU, in two halves: `check.py tests` and `check.py bench`. See `make gpu-check`.

Builds the CUDA library, runs the tests marked `gpu` and the small cases under compute-sanitizer; or the benchmarks
marked `gpu`. Prints a short table last, writes a JSON file with the GPU, the versions and the commit in it, and ends
with status 1 if a step failed. Takes what the machine's Python has: no virtual environment, no network.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HALF_SECONDS = 600
SANITIZERS = ("memcheck", "racecheck")
ROWS = "rows.jsonl"


@dataclass
class Step:
    """One command, what came of it, and the last lines it printed."""

    name: str
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    status: str = "not run"
    summary: str = ""
    tail: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return self.status != "passed"

    def run(self, limit: float) -> None:
        print(f"== {self.name}: {' '.join(self.command)}", flush=True)
        start = time.monotonic()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **self.environment}
        try:
            done = subprocess.run(
                self.command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=max(limit, 1)
            )
            output, self.status = done.stdout + done.stderr, "passed" if done.returncode == 0 else "failed"
        except subprocess.TimeoutExpired as error:
            output, self.status = str(error.stdout or ""), f"stopped after {limit:.0f} s"
        except OSError as error:
            output, self.status = str(error), "failed"
        self.seconds = time.monotonic() - start
        self.tail = output.splitlines()[-60:]
        telling = r"\d+ (passed|failed|ran)|ERROR SUMMARY|RACECHECK SUMMARY"
        found = [line for line in self.tail if re.search(telling, line)]
        self.summary = " ".join(found[-2:]).strip("= ") or (self.tail[-1] if self.tail else "")
        print("\n".join(self.tail[-60 if self.failed else -3 :]), flush=True)


def build(capability: str) -> Step:
    """Both libraries, the CUDA one for the GPU at hand alone."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", ".", "--build-temp", "build/gpu"]
    return Step("build", command, {"SPANBERT_KERNELS_CUDA": "1", "SPANBERT_KERNELS_CUDA_ARCHITECTURES": capability})


def tests(out: Path) -> Iterator[Step]:
    side_by_side = ["-n", "8"] if importlib.util.find_spec("xdist") else []
    yield Step("tests", [sys.executable, "-m", "pytest", "tests/ops", "-m", "gpu", "-q", *side_by_side])
    for tool in SANITIZERS:
        sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        command = [sanitizer, "--tool", tool, "--error-exitcode", "1", sys.executable, "tests/gpu/sanitizer_cases.py"]
        yield Step(tool, command)


def bench(out: Path) -> Iterator[Step]:
    """The suites append what they measure to a file; `record_of` makes a record of it."""
    rows = out / ROWS
    rows.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "benchmarks", "-m", "gpu", "--benchmark-quiet", "-q"]
    yield Step("benchmarks", command, {"SPANBERT_KERNELS_BENCH_ROWS": str(rows)})


def record_of(lines: list[str], found: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """A record as `spanbert-kernels bench` writes them and `report` reads them."""
    taken: dict[str, list[Any]] = {"row": [], "failure": [], "skipped": [], "ceilings": []}
    for line in lines:
        for name, value in json.loads(line).items():
            if name in taken:
                taken[name].append(value)
    about = ("gpu", "capability", "memory_gib")
    return {
        "format": 1,
        "date": datetime.date.today().isoformat(),
        "commit": found.get("commit", "unknown"),
        "dirty": found.get("dirty", False),
        "quick": False,
        "seed": 0,
        "seconds": round(seconds, 1),
        "machine": {"processor": "", **{name: str(found[name]) for name in about if name in found}},
        "versions": {name: str(value) for name, value in found.items() if name not in (*about, "commit", "dirty")},
        "ceilings": taken["ceilings"][-1] if taken["ceilings"] else {},
        "failures": taken["failure"],
        "skipped": taken["skipped"],
        "rows": taken["row"],
    }


def name_of(kind: str) -> str:
    return f"{datetime.date.today().isoformat()}-{kind}"


def machine() -> dict[str, Any]:
    """The GPU and the versions, without the name of a host."""
    code = (
        "import json, platform, torch, triton, transformers; p = torch.cuda.get_device_properties(0);"
        "print(json.dumps({'gpu': p.name, 'capability': f'{p.major}{p.minor}',"
        "'memory_gib': round(p.total_memory / 2**30, 1), 'torch': torch.__version__,"
        "'cuda': torch.version.cuda, 'triton': triton.__version__, 'transformers': transformers.__version__,"
        "'python': platform.python_version()}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "commit": git("rev-parse", "HEAD") or os.environ.get("COMMIT", "unknown"), "dirty": changed()}


def git(*words: str) -> str:
    """What git says, or nothing where there is no git or no repository."""
    if shutil.which("git") is None:
        return ""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def changed() -> bool:
    """Whether files that git knows differ from the commit; what a build or a run leaves beside them does not count."""
    return bool(git("status", "--porcelain", "--untracked-files=no"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("half", choices=["tests", "bench"])
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    found = machine()
    start = time.monotonic()
    steps = [build(found.get("capability", "90")), *(tests if arguments.half == "tests" else bench)(arguments.out)]
    for step in steps:
        step.run(HALF_SECONDS - (time.monotonic() - start))
        if step.name == "build" and step.failed:
            break
    record = {"machine": found, "steps": [asdict(step) for step in steps]}
    path = arguments.out / f"{name_of('gpu-check-' + arguments.half)}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    if (rows := arguments.out / ROWS).is_file():
        lines = rows.read_text().splitlines()
        rows.unlink()
        bench_path = arguments.out / f"{name_of('gpu')}.json"
        bench_path.write_text(json.dumps(record_of(lines, found, time.monotonic() - start)) + "\n")
    print(f"\n{found.get('gpu', found)}, torch {found.get('torch', '?')}; {path}")
    for step in steps:
        print(f"{step.name:<12} {step.seconds:6.1f} s  {step.status:<10} {step.summary}")
    return int(any(step.failed for step in steps))


if __name__ == "__main__":
    sys.exit(main())
