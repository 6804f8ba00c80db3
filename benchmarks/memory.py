"""Peak memory of one call, measured in a process of its own.

`python memory.py` serves: it imports the suites, computes on one thread what they want for that (a forked process has
none of a pool's threads, and would wait for them), and for each line on its input forks a process that runs a provider
on a workload twice and says how far its resident memory rose above what it was before the second call; a slow one runs
once, since it takes far more than what the libraries set up in a first call. With a limit the process may not take more
than so much beyond its inputs. A fork saves the seconds that imports take.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import psutil

from spanbert_kernels.cli.measuring import PeakMemory

OUT_OF_MEMORY = "out of memory"
SLOW_SECONDS = 2.0
M_MMAP_THRESHOLD, MMAP_THRESHOLD = -3, 2**17  # glibc's number of the setting, and its first value, to be kept
# Of the processes that measure it, for whoever reads the figures.
PROCESSES = (
    "Peaks of memory are of processes of their own, whose allocator gives back at once what is freed: "
    f"its mmap threshold stays at {MMAP_THRESHOLD // 1024} KiB."
)


@cache
def _server() -> subprocess.Popen[str]:
    command = [sys.executable, str(Path(__file__))]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=Path(__file__).parent)


def peak_megabytes(suite: str, workload: str, provider: str, limit: float | None = None) -> float | str:
    """Results included and inputs not; or why there is none."""
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back: both processes must fit
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    print(json.dumps([suite, workload, provider, limit]), file=server.stdin, flush=True)
    answer = json.loads(server.stdout.readline() or '{"error": "the server ended"}')
    if answer.get("error") == OUT_OF_MEMORY:
        return f"runs out of memory: takes more than {limit:g} MB"
    if "error" in answer:
        raise RuntimeError(f"{suite}: {workload}, {provider}: {answer['error']}")
    return float(answer["bytes"]) / 1e6


def _measure(suite: str, workload: str, provider: str, limit: float | None) -> int:
    import registry

    found = registry.load(suite)
    wanted = found.workload(workload)
    way = registry.ready(found, wanted, provider)
    call = way.output if wanted.peak_goal is not None and wanted.peak_goal.activations else way.timed
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)  # memory goes back as soon as it is freed
    if limit:
        # The address space also holds what is never touched; a tenth more is left for that.
        most = int(psutil.Process().memory_info().vms) + int(1.1e6 * limit)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    start = time.perf_counter()
    try:
        peak = _rise_of(call)
        if time.perf_counter() - start < SLOW_SECONDS:
            peak = _rise_of(call)
    except (MemoryError, RuntimeError) as error:
        if limit and ("memory" in str(error) or isinstance(error, MemoryError)):
            raise MemoryError(OUT_OF_MEMORY) from None
        raise
    if limit and peak > 1e6 * limit:
        raise MemoryError(OUT_OF_MEMORY)
    return peak


def _rise_of(call: Callable[[], object]) -> int:
    with PeakMemory() as memory:
        result = call()
    del result
    return memory.bytes


def _answer(line: str) -> dict[str, int | str]:
    try:
        return {"bytes": _measure(*json.loads(line))}
    except Exception as error:
        return {"error": str(error) or type(error).__name__}


def load_suites() -> int:
    """Imports all suites without starting PyTorch's pool of threads; how many threads it is to have afterwards."""
    import registry
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in registry.names():
        if not name.endswith("_on_gpu"):
            registry.load(name)
    return threads


def serve() -> None:
    """One process a line, one after the other."""
    import torch

    threads = load_suites()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            torch.set_num_threads(threads)
            print(json.dumps(_answer(line)), flush=True)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            print(json.dumps({"error": "the process was killed"}), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    serve()
