"""Everything that needs a GPU, stage by stage, within a budget of seconds. See `make gpu-check`.

Each stage can be a command of its own: `check.py values --budget 120`. The clock runs from the start of the process. A
journal grows line by line, so that whatever ends the check leaves what was found so far; the benchmark rows in it
become a record, as `spanbert-kernels report` reads them, after every stage and by `check.py --collect`. Ends with
status 1 if a step failed. Takes what the machine's Python has: no virtual environment, no network.
"""

from __future__ import annotations

import time

START = time.monotonic()

import argparse  # noqa: E402
import datetime  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterable, Mapping, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gpu.stages import STAGES, Stage  # noqa: E402
from gpu.steps import ROOT, Step, run  # noqa: E402

RESERVED = 3.0  # seconds, for what is written last
MACHINE_SECONDS = 60.0
ABOUT = ("gpu", "capability", "memory_gib")
MACHINE = """
import json, platform, torch, triton, transformers
p = torch.cuda.get_device_properties(0)
print(json.dumps({"gpu": p.name, "capability": f"{p.major}{p.minor}", "memory_gib": round(p.total_memory / 2**30, 1),
    "torch": torch.__version__, "cuda": torch.version.cuda, "triton": triton.__version__,
    "transformers": transformers.__version__, "python": platform.python_version()}))
"""


class Journal:
    """JSON lines that are on the disk when `write` returns. Benchmark suites write to the same file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **line: Any) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps({"at": round(time.monotonic() - START, 1), **line}).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> list[dict[str, Any]]:
        """All whole ones: whoever was killed may have left a part of one."""
        found = []
        for line in self.path.read_bytes().splitlines() if self.path.is_file() else []:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found


def record_of(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """A record as `spanbert-kernels bench` writes them and `report` reads them; None where nothing was measured."""
    taken: dict[str, list[Any]] = {"row": [], "failure": [], "skipped": [], "ceilings": [], "machine": [], "roof": []}
    seconds = 0.0
    for line in lines:
        seconds += line.get("seconds", 0.0) if "step" in line else 0.0
        for name in taken.keys() & line.keys():
            taken[name].append(line[name])
    if not (taken["row"] or taken["failure"] or taken["roof"]):
        return None
    found = taken["machine"][-1] if taken["machine"] else {}
    return {
        "format": 1,
        "date": datetime.date.today().isoformat(),
        "commit": found.get("commit", "unknown"),
        "dirty": found.get("dirty", False),
        "quick": False,
        "seed": 0,
        "seconds": round(seconds, 1),
        "machine": {"processor": "", **{name: str(found[name]) for name in ABOUT if name in found}},
        "versions": {name: str(value) for name, value in found.items() if name not in (*ABOUT, "commit", "dirty")},
        "ceilings": taken["ceilings"][-1] if taken["ceilings"] else {},
        "failures": taken["failure"],
        "skipped": taken["skipped"],
        "rows": taken["row"],
        "roof": {each["name"]: each for each in taken["roof"]},
    }


def collect(journal: Journal, out: Path) -> None:
    record = record_of(journal.lines())
    if record is not None:
        path = out / f"{datetime.date.today().isoformat()}-gpu.json"
        aside = path.with_suffix(".part")
        aside.write_text(json.dumps(record) + "\n")
        aside.replace(path)


def machine(journal: Journal) -> dict[str, Any]:
    """The GPU and the versions, without the name of a host."""
    found: dict[str, Any] = {}

    def keep(line: dict[str, Any]) -> None:
        try:
            found.update(json.loads(line["summary"]))
        except ValueError:
            found["error"] = line["summary"]

    run(Step("machine", [sys.executable, "-c", MACHINE]), MACHINE_SECONDS, keep)
    found |= {"commit": git("rev-parse", "HEAD") or os.environ.get("COMMIT", "unknown"), "dirty": changed()}
    journal.write(machine=found)
    return found


def git(*words: str) -> str:
    """What git says, or nothing where there is no git or no repository."""
    if shutil.which("git") is None:
        return ""
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def changed() -> bool:
    """Whether files that git knows differ from the commit; what a build or a run leaves beside them does not count."""
    return bool(git("status", "--porcelain", "--untracked-files=no"))


def check(stages: Mapping[str, Stage], budget: float, journal: Journal, out: Path) -> int:
    """Runs as many stages as fit, in their order; how many steps failed."""
    found, failures = machine(journal), 0
    for name, stage in stages.items():
        left = budget - (time.monotonic() - START) - RESERVED
        if left < stage.least:
            journal.write(stage=name, status=f"not run: {left:.0f} s are left, it wants {stage.least:.0f}")
            continue
        failed = run_stage(name, stage, found, min(left, stage.most), journal)
        failures += failed
        collect(journal, out)
        if failed and stage.needed:
            journal.write(stage=name, status="nothing behind it is run without it")
            break
    return failures


def run_stage(name: str, stage: Stage, found: Mapping[str, Any], limit: float, journal: Journal) -> int:
    """How many of its steps failed; all of them share the limit."""
    end, failures = time.monotonic() + limit, 0

    def keep(line: dict[str, Any]) -> None:
        passed = line["status"] == "passed"
        print("\n".join(line["tail"][-3 if passed else -40 :]), flush=True)
        journal.write(stage=name, **line)

    for step in stage.steps(found, journal.path):
        current: Step | None = step
        passed = False
        while current is not None and not passed:
            journal.write(stage=name, begun=current.name)
            print(f"== {name}: {' '.join(current.command)}", flush=True)
            passed = run(current, end - time.monotonic(), keep)
            current = current.else_
        failures += not passed
    return failures


def summary(lines: Iterable[Mapping[str, Any]]) -> str:
    """A row a step, and what was not run."""
    rows = []
    for line in lines:
        if "step" in line:
            took = f"{line['step']:<12} {line['seconds']:6.1f} s"
            rows.append(f"{line['stage']:<10} {took}  {line['status']:<10} {line['summary']}")
        elif "status" in line:
            rows.append(f"{line['stage']:<10} {line['status']}")
    return "\n".join(rows)


def main(words: Sequence[str] | None = None, stages: Mapping[str, Stage] = STAGES) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(stages)}; all if none is named")
    parser.add_argument("--budget", type=float, default=420, help="seconds from the start of the process")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--collect", action="store_true", help="only make a record of the journal")
    arguments = parser.parse_args(words)
    if unknown := [name for name in arguments.stages if name not in stages]:
        parser.error(f"there is no stage {unknown[0]}; there are {', '.join(stages)}")
    # Ends like an error, so that what runs is ended too and the summary is printed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    arguments.out.mkdir(parents=True, exist_ok=True)
    journal = Journal(arguments.out / f"{datetime.date.today().isoformat()}-gpu-check.jsonl")
    if arguments.collect:
        collect(journal, arguments.out)
        return 0
    before = len(journal.lines())
    wanted = {name: stage for name, stage in stages.items() if not arguments.stages or name in arguments.stages}
    try:
        return int(check(wanted, arguments.budget, journal, arguments.out) > 0)
    finally:
        collect(journal, arguments.out)
        print(f"\n{summary(journal.lines()[before:])}\n{journal.path}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
