"""The stages of gpu-check, the most valuable first: what each runs, and how much time it needs."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu import kernels
from gpu.steps import Step

PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "gpu.fence"]
ONE_OF_EACH = "test_values_and_gradients and (triton-gpu or cuda-gpu) and (float32 or bfloat16)"


@dataclass(frozen=True)
class Stage:
    """A part of the check that is a command of its own.

    Attributes:
        least: seconds without which it is not begun.
        most: seconds that it gets at most, whatever is left.
        steps: of a machine, and the journal that benchmarks write their rows to.
        needed: without it nothing behind it makes sense.
    """

    what: str
    least: float
    most: float
    steps: Callable[[Mapping[str, Any], Path], Sequence[Step]]
    needed: bool = False


def build(machine: Mapping[str, Any], journal: Path) -> Sequence[Step]:
    """Libraries that were carried here are taken where they are of these sources and load; else they are built.

    Carried kernels of Triton's are taken where they are of these sources, this Triton and this GPU.
    """
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", ".", "--build-temp", "build/gpu"]
    environment = {
        "SPANBERT_KERNELS_CUDA": "1",
        "SPANBERT_KERNELS_CUDA_ARCHITECTURES": _capability(machine),
        "MAX_JOBS": str(os.cpu_count()),
    }
    here = Step("build", command, environment)
    look = [sys.executable, "tests/gpu/kernels.py", "look", "--capability", _capability(machine)]
    return [Step("libraries", [sys.executable, "tests/gpu/libraries.py"], else_=here), Step("kernels", look)]


def values(machine: Mapping[str, Any], journal: Path) -> Sequence[Step]:
    command = [*PYTEST, "tests/ops", "-m", "gpu", "-k", ONE_OF_EACH, *_processes(8)]
    return [Step("values", command, kernels.environment(_capability(machine)))]


def encoder(machine: Mapping[str, Any], journal: Path) -> Sequence[Step]:
    command = [*PYTEST, "tests/acceleration", "-m", "gpu", *_processes(1)]
    return [
        Step("graphs", command, kernels.environment(_capability(machine))),
        _suites("encoder", machine, journal, "benchmarks/bench_encoder_on_gpu.py", "-m", "gpu"),
    ]


def roof(machine: Mapping[str, Any], journal: Path) -> Sequence[Step]:
    return [_suites("roof", machine, journal, "benchmarks/bench_roof_on_gpu.py", "-m", "gpu")]


def bench(machine: Mapping[str, Any], journal: Path) -> Sequence[Step]:
    files = ["benchmarks/bench_attention_on_gpu.py", "benchmarks/bench_spans_on_gpu.py"]
    return [
        _suites("headlines", machine, journal, *files, "-m", "gpu and headline"),
        _suites("other rows", machine, journal, *files, "-m", "gpu and not headline"),
    ]


def sanitize(machine: Mapping[str, Any], journal: Path) -> Sequence[Step]:
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    few = [sys.executable, "tests/gpu/sanitizer_cases.py", "--few"]
    return [Step(each, [tool, "--tool", each, "--error-exitcode", "1", *few]) for each in ("memcheck", "racecheck")]


def rest(machine: Mapping[str, Any], journal: Path) -> Sequence[Step]:
    command = [*PYTEST, "tests/ops", "-m", "gpu", "-k", f"not ({ONE_OF_EACH})", *_processes(8)]
    return [Step("rest", command, kernels.environment(_capability(machine)))]


def _suites(name: str, machine: Mapping[str, Any], journal: Path, *words: str) -> Step:
    """The suites append what they measure to the journal, line by line."""
    environment = {"SPANBERT_KERNELS_BENCH_ROWS": str(journal), **kernels.environment(_capability(machine))}
    return Step(name, [*PYTEST, "--benchmark-quiet", *words, *_processes(1)], environment)


def _capability(machine: Mapping[str, Any]) -> str:
    return str(machine.get("capability", kernels.CAPABILITY))


def _processes(count: int) -> list[str]:
    """One, too, is begun anew where it breaks."""
    return ["-n", str(count), "--max-worker-restart", "64"] if importlib.util.find_spec("xdist") else []


STAGES: dict[str, Stage] = {
    "build": Stage("the libraries", 20, 240, build, needed=True),
    "values": Stage("every operation's values and gradients on every backend", 30, 240, values),
    "roof": Stage("what the kernels take beside what is predicted", 30, 150, roof),
    "encoder": Stage("accelerated encoders beside the original", 30, 150, encoder),
    "bench": Stage("the operations' benchmarks", 45, 400, bench),
    "sanitize": Stage("small cases under compute-sanitizer", 45, 240, sanitize),
    "rest": Stage("all other tests that want a GPU", 60, 600, rest),
}
