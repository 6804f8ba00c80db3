"""Runs the operations' tests and the fuzzer on the sanitized CPU library, after the sanitizers have found what is put
there for them to find. See `make sanitize`, which builds it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import children  # noqa: E402

FOLDER = ROOT / "build" / "sanitized" / "spanbert_kernels" / "_lib"
ISAS = ("portable", "avx2", "avx512", "avx512_bf16")
# The best instruction set, or a canary with one, in the library that the tests load.
SCRIPT = """
import sys
import conftest
import torch
from spanbert_kernels.ops import library
assert library.load_cpu() is None, library.load_cpu()
print(library.cpu_isa(), flush=True)
for isa, name in [sys.argv[1:]] if len(sys.argv) > 1 else []:
    torch.ops.spanbert_kernels.set_cpu_isa(isa)
    print("ran", library.cpu_isa(), flush=True)
    getattr(torch.ops.spanbert_kernels, name)(1)
"""
REPORTS = {"canary_read_past": "heap-buffer-overflow", "canary_overflow": "signed integer overflow"}


def environment() -> dict[str, str]:
    """What makes a Python that was not built with the sanitizers load a library that was.

    PyTorch's own leaks and mismatches are not looked at; an allocation that is too large is None, as it is without.
    """
    compiler = os.environ.get("CXX", "g++")
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    commands = [[compiler, f"-print-file-name={name}"] for name in names]
    found = [children.run(command, check=True, capture_output=True, text=True).stdout.strip() for command in commands]
    options = "detect_leaks=0:halt_on_error=1:alloc_dealloc_mismatch=0:allocator_may_return_null=1"
    return {
        **os.environ,
        "LD_PRELOAD": ":".join(found),
        "ASAN_OPTIONS": options,
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
        "SPANBERT_KERNELS_LIBRARIES": str(FOLDER),
    }


def run_script(*arguments: str) -> subprocess.CompletedProcess[str]:
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-c", SCRIPT, *arguments]
    return children.run(command, env={**environment(), **paths}, capture_output=True, text=True)


def isas_here() -> list[str]:
    """The instruction sets that this machine has."""
    done = run_script()
    if done.returncode:
        sys.exit(f"the sanitized library does not load:\n{done.stderr}")
    return list(ISAS[: ISAS.index(done.stdout.split()[-1]) + 1])


def missed(isa: str) -> list[str]:
    """The canaries that no sanitizer reported with an instruction set."""
    result = []
    for name, report in REPORTS.items():
        done = run_script(isa, name)
        if done.returncode == 0 or report not in done.stderr or f"ran {isa}" not in done.stdout:
            result.append(f"{isa}: {name} was not reported as {report}:\n{done.stdout}{done.stderr}")
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=120.0, help="of the fuzzer, after its fixed list of calls")
    parser.add_argument("pytest", nargs="*", help="options for pytest")
    options = parser.parse_args()
    isas = isas_here()
    failures = [text for isa in isas for text in missed(isa)]
    if failures:
        print("\n".join(failures))
        return 1
    print(f"sanitizers found their canaries with {', '.join(isas)}", flush=True)
    tests = [
        "tests/ops",
        "tests/fuzz",
        "-m",
        "not slow and not gpu",
        "-k",
        "cpu or fuzz or encoder_stack",
        "-p",
        "no:cacheprovider",
    ]
    commands = [
        [sys.executable, "-m", "pytest", *tests, *options.pytest],
        [sys.executable, "tests/fuzz/run.py", "--seconds", str(options.seconds)],
    ]
    return max(children.run(command, cwd=ROOT, env=environment()).returncode for command in commands)


if __name__ == "__main__":
    sys.exit(main())
