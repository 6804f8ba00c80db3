"""Peak memory of one call, measured in a process of its own.

    python memory.py bench_span_pool max ours

imports the benchmark module, asks its function `ways(case)` for the callables by name, calls one of them twice and
prints how far the process's resident memory rose above what it was before the second call, in bytes.
"""

from __future__ import annotations

import ctypes
import importlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# What the process itself moves by while it computes: page tables, stacks, pools of the libraries.
NOISE_MEGABYTES = 1.0


@dataclass(frozen=True)
class Peak:
    """Peak memory by way, results included and inputs not, and what was asked of ours.

    Attributes:
        megabytes: peaks; `ours` and some baselines.
        allowed: most megabytes for ours, as the text `asked` has it.
        fraction_of: most of that baseline's peak.
    """

    megabytes: Mapping[str, float]
    allowed: float | None = None
    asked: str = ""
    fraction: float | None = None
    fraction_of: str = ""

    def verdicts(self) -> list[str]:
        """The goals and whether they were met."""
        found = []
        ours = self.megabytes["ours"]
        if self.allowed is not None:
            verdict = "met" if ours <= self.allowed + NOISE_MEGABYTES else "missed"
            found.append(f"{verdict}: peak {ours:.4g} MB, at most {self.allowed:.4g} ({self.asked})")
        if self.fraction is not None:
            part = ours / self.megabytes[self.fraction_of]
            verdict = "met" if part <= self.fraction else "missed"
            found.append(f"{verdict}: peak {part:.2g} of that of {self.fraction_of}, at most {self.fraction:g} asked")
        return found


def peaks(module: str, case: str, names: Sequence[str]) -> dict[str, float]:
    """Peak memory, in megabytes, of the ways `names` of a case."""
    found = {}
    ctypes.CDLL(None).malloc_trim(0)  # benchmarks keep what they free, and both processes must fit
    for name in names:
        command = [sys.executable, str(Path(__file__)), module, case, name]
        done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent)
        found[name] = int(done.stdout.split()[-1]) / 1e6
    return found


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _measure(module: str, case: str, name: str) -> int:
    sys.path.insert(0, str(Path(__file__).parent))
    way = importlib.import_module(module).ways(case)[name]
    system = ctypes.CDLL(None)
    mmap_threshold = -3
    system.mallopt(mmap_threshold, 2**17)  # memory goes back to the system as soon as it is freed
    way()
    system.malloc_trim(0)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    result = way()
    peak = _status("VmHWM")
    del result
    return max(peak - before, 0)


if __name__ == "__main__":
    print(_measure(*sys.argv[1:]))
