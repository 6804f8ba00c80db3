"""Every CUDA kernel compiles for every architecture that is shipped, and keeps to the registers: no local memory."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from pathlib import Path

import children
import pytest
from roof.nvcc import CSRC, Assembled, assembled, command, is_there, sources

FILES = sorted(path.parent.name for path in CSRC.glob("*/cuda.cu"))
ARCHITECTURES = (80, 90, 100, 120)
# By every test run. The rest are minutes of work for the slow tests; tests/cuda_on_cpu compiles all files for a CPU.
EVERYDAY = [(90, "cross_document_attention"), (90, "span_gather")]
# Of what the compiler lays out. What a launch asks for (SPANBERT_LAUNCH_SHARED) is limited by tests/cuda_on_cpu.
SHARED_BYTES = 48 * 1024
REGISTERS = 65536  # of a multiprocessor
WARPS = 12  # at a time, at least: fewer cannot hide the latency of memory


def compile_file(operation: str, architecture: int, folder: Path) -> list[Assembled]:
    """Compiled once for what it is compiled from: a report is kept in the temporary folder."""
    asked = command(operation, architecture)
    key = hashlib.sha256(f"{sources()} {asked}".encode()).hexdigest()[:16]
    report = Path(tempfile.gettempdir()) / f"spanbert_kernels-aot-{os.getuid()}-{key}.txt"
    if not report.is_file():
        cubin = folder / f"{operation}.{architecture}.cubin"
        done = children.run([*asked, "-o", str(cubin)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        finished = cubin.with_suffix(".txt")
        finished.write_text(done.stderr)
        shutil.move(finished, report)
    return list(assembled(report.read_text()))


def test_there_are_files() -> None:
    assert {"cross_document_attention", "document_attention", "span_gather", "span_pool"} <= set(FILES)


@pytest.mark.parametrize(
    ("architecture", "operation"),
    [
        pytest.param(each, operation, marks=[pytest.mark.slow] * ((each, operation) not in EVERYDAY))
        for each in ARCHITECTURES
        for operation in FILES
    ],
)
def test_kernels_use_no_local_memory(tmp_path: Path, architecture: int, operation: str) -> None:
    if not is_there():
        pytest.skip("no CUDA compiler here (nvcc)")
    found = compile_file(operation, architecture, tmp_path)
    named = len(re.findall(r"__global__", "".join(path.read_text() for path in (CSRC / operation).glob("cuda*.cu*"))))
    assert len(found) >= named, "a kernel that no launch names"
    for kernel in found:
        assert kernel.architecture == architecture
        assert (kernel.stack, kernel.spills) == (0, 0), kernel
        assert kernel.shared <= SHARED_BYTES, kernel
        assert kernel.registers * 32 * WARPS <= REGISTERS, kernel
