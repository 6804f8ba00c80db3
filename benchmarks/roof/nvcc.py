"""The CUDA C++ kernels compiled as the package compiles them, and disassembled; kept by what they were made of."""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from .compiling import CompiledKernel, printed

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"


@dataclass(frozen=True)
class Assembled:
    """What the assembler says of one kernel: `stack` and `spills` in bytes of a thread, `shared` of a block."""

    name: str
    architecture: int
    registers: int
    shared: int
    stack: int
    spills: int


def assembled(report: str) -> Iterator[Assembled]:
    """The kernels of what `ptxas -v` prints.

    Example:
        >>> report = '''ptxas info    : Compiling entry function '_Z3addPf' for 'sm_90'
        ... ptxas info    : Function properties for _Z3addPf
        ...     16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
        ... ptxas info    : Used 40 registers, used 1 barriers, 128 bytes smem
        ... '''
        >>> list(assembled(report))
        [Assembled(name='_Z3addPf', architecture=90, registers=40, shared=128, stack=16, spills=12)]
    """
    for block in report.split("Compiling entry function ")[1:]:
        name, architecture = re.match(r"'(\w+)' for 'sm_(\d+)'", block).groups()  # type: ignore[union-attr]
        frame = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", block)
        registers, shared = re.search(r"Used (\d+) registers", block), re.search(r"(\d+) bytes smem", block)
        assert frame is not None
        assert registers is not None
        stack, stores, loads = map(int, frame.groups())
        yield Assembled(
            name, int(architecture), int(registers[1]), int(shared[1]) if shared else 0, stack, stores + loads
        )


def command(operation: str, architecture: int) -> list[str]:
    """What compiles an operation's kernels for an architecture such as 90, but for where the result goes."""
    include = Path(torch.__file__).parent / "include"
    flags = ["-std=c++20", "-O3", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000ULL", "-lineinfo"]
    flags += [f"-I{CSRC}", f"-I{include}", f"-arch=sm_{architecture}", "-Xptxas=-v", "-cubin"]
    return ["nvcc", *flags, str(CSRC / operation / "cuda.cu")]


@functools.cache
def sources() -> str:
    """Changes with the compiler, the headers of PyTorch and every CUDA source."""
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    digest = hashlib.sha256(f"{version} {torch.__version__}".encode())
    for file in sorted([*CSRC.glob("common/*.h"), *CSRC.glob("*/arguments.h"), *CSRC.glob("*/cuda*")]):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def is_there() -> bool:
    """Whether there is a CUDA compiler."""
    return shutil.which("nvcc") is not None


@functools.cache
def disassembled(operation: str, architecture: int) -> tuple[str, tuple[Assembled, ...]]:
    """The machine code of an operation's kernels as text, and what each of them needs."""
    from triton.runtime.cache import get_cache_manager

    asked = command(operation, architecture)
    kept = get_cache_manager(hashlib.sha256(f"{sources()} {asked}".encode()).hexdigest())
    code, report = kept.get_file("kernels.cubin"), kept.get_file("kernels.txt")
    if code is None or report is None:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            done = subprocess.run([*asked, "-o", file.name], capture_output=True, text=True, check=True)
            code = kept.put(Path(file.name).read_bytes(), "kernels.cubin")
            report = kept.put(done.stderr, "kernels.txt", binary=False)
    text = printed("nvdisasm", Path(code).read_bytes(), "-c", "-gi")
    return text, tuple(assembled(Path(report).read_text()))


def compiled_kernel(
    operation: str, symbol: str, architecture: int, warps: int, shared: int
) -> tuple[CompiledKernel, str]:
    """A kernel by a part of its name, and the text that has its instructions; `shared`: what its launch asks for."""
    text, all_kernels = disassembled(operation, architecture)
    (found,) = (each for each in all_kernels if symbol in each.name)
    return CompiledKernel(b"", warps, found.registers, found.stack, found.spills, found.shared + shared), text
