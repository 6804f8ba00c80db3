"""Peak memory of one call, measured in a process of its own.

    python memory.py SUITE WORKLOAD PROVIDER [MEGABYTES]

runs a provider on a workload twice and prints how far the process's resident memory rose above what it was before the
second call, in bytes; with a limit the process may not take more than so much beyond its inputs.
"""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys
from pathlib import Path

OUT_OF_MEMORY = 7  # exit status


def peak_megabytes(suite: str, workload: str, provider: str, limit: float | None = None) -> float | str:
    """Results included and inputs not; or why there is none."""
    ctypes.CDLL(None).malloc_trim(0)  # benchmarks keep what they free, and both processes must fit
    command = [sys.executable, str(Path(__file__)), suite, workload, provider, *([str(limit)] if limit else [])]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parent)
    if done.returncode == OUT_OF_MEMORY:
        return f"runs out of memory: takes more than {limit:g} MB"
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])}: {done.stderr[-2000:]}")
    return int(done.stdout.split()[-1]) / 1e6


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _measure(suite: str, workload: str, provider: str, limit: str = "") -> int:
    import registry

    found = registry.load(suite)
    way = registry.ready(found, found.workload(workload), provider)
    system = ctypes.CDLL(None)
    mmap_threshold = -3
    system.mallopt(mmap_threshold, 2**17)  # memory goes back to the system as soon as it is freed
    if limit:
        # The address space also holds what is never touched; a tenth more is left for that.
        most = _status("VmSize") + int(1.1e6 * float(limit))
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        way.run()
        system.malloc_trim(0)
        before = _status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        result = way.run()
    except (MemoryError, RuntimeError) as error:
        if limit and ("memory" in str(error) or isinstance(error, MemoryError)):
            sys.exit(OUT_OF_MEMORY)
        raise
    peak = _status("VmHWM")
    del result
    return max(peak - before, 0)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    print(_measure(*sys.argv[1:]))
