"""Every CUDA kernel compiles for every architecture that is shipped, and keeps to the registers: no local memory."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import children
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
FILES = sorted(path.parent.name for path in CSRC.glob("*/cuda.cu"))
ARCHITECTURES = (80, 90, 100, 120)
# By every test run. The rest are minutes of work for the slow tests; tests/cuda_on_cpu compiles all files for a CPU.
EVERYDAY = [(90, "cross_document_attention"), (90, "span_gather"), (90, "span_pool")]
# Of what the compiler lays out. What a launch asks for (SPANBERT_LAUNCH_SHARED) is limited by tests/cuda_on_cpu.
SHARED_BYTES = 48 * 1024
REGISTERS = 65536  # of a multiprocessor
WARPS = 12  # at a time, at least: fewer cannot hide the latency of memory


@dataclass(frozen=True)
class Kernel:
    """What the assembler says of one kernel."""

    name: str
    architecture: int
    registers: int
    shared: int
    stack: int
    spills: int


def parse(report: str) -> Iterator[Kernel]:
    """The kernels of what `ptxas -v` prints.

    Example:
        >>> report = '''ptxas info    : Compiling entry function '_Z3addPf' for 'sm_90'
        ... ptxas info    : Function properties for _Z3addPf
        ...     16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
        ... ptxas info    : Used 40 registers, used 1 barriers, 128 bytes smem
        ... '''
        >>> list(parse(report))
        [Kernel(name='_Z3addPf', architecture=90, registers=40, shared=128, stack=16, spills=12)]
    """
    for block in report.split("Compiling entry function ")[1:]:
        name, architecture = re.match(r"'(\w+)' for 'sm_(\d+)'", block).groups()  # type: ignore[union-attr]
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", block)
        registers, shared = re.search(r"Used (\d+) registers", block), re.search(r"(\d+) bytes smem", block)
        assert frame is not None
        assert registers is not None
        stack, stores, loads = map(int, frame.groups())
        yield Kernel(name, int(architecture), int(registers[1]), int(shared[1]) if shared else 0, stack, stores + loads)


def compile_file(operation: str, architecture: int, folder: Path) -> list[Kernel]:
    """Compiled once for what it is compiled from: a report is kept in the temporary folder."""
    include = Path(torch.__file__).parent / "include"
    command = ["nvcc", "-std=c++20", "-O3", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000ULL"]
    command += [f"-I{CSRC}", f"-I{include}", f"-arch=sm_{architecture}", "-Xptxas=-v", "-cubin"]
    command.append(str(CSRC / operation / "cuda.cu"))
    report = Path(tempfile.gettempdir()) / f"spanbert_kernels-aot-{os.getuid()}-{key(command)}.txt"
    if not report.is_file():
        cubin = folder / f"{operation}.{architecture}.cubin"
        done = children.run([*command, "-o", str(cubin)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        finished = cubin.with_suffix(".txt")
        finished.write_text(done.stderr)
        shutil.move(finished, report)
    return list(parse(report.read_text()))


def key(command: list[str]) -> str:
    """Changes with the compiler, its arguments, the headers of PyTorch and every CUDA source."""
    version = children.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256(f"{version} {command} {torch.__version__}".encode())
    for file in sorted([*CSRC.glob("common/*.h"), *CSRC.glob("*/arguments.h"), *CSRC.glob("*/cuda*")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


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
    if shutil.which("nvcc") is None:
        pytest.skip("no CUDA compiler here (nvcc)")
    found = compile_file(operation, architecture, tmp_path)
    named = len(re.findall(r"__global__", "".join(path.read_text() for path in (CSRC / operation).glob("cuda*.cu*"))))
    assert len(found) >= named, "a kernel that no launch names"
    for kernel in found:
        assert kernel.architecture == architecture
        assert (kernel.stack, kernel.spills) == (0, 0), kernel
        assert kernel.shared <= SHARED_BYTES, kernel
        assert kernel.registers * 32 * WARPS <= REGISTERS, kernel
