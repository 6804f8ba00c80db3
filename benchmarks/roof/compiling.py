"""Kernels compiled for a GPU ahead of time, and their machine code as text; kept by what they were made of."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from spanbert_kernels.ops.aot import AotConfiguration

USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel's machine code, disassembled with the lines of its source, and what a program of it needs.

    Attributes:
        text: what nvdisasm writes.
        warps: of a block.
        registers: of a thread.
        stack, local: bytes of a thread outside the registers; what is there was spilled.
        shared: bytes of a block.
    """

    text: str
    warps: int
    registers: int
    stack: int
    local: int
    shared: int


def compiled(configuration: AotConfiguration, architecture: int) -> CompiledKernel:
    """A configuration compiled for an architecture. Triton keeps what it compiled, the disassembly beside it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.runtime.cache import get_cache_manager

    options = {"num_warps": configuration.num_warps, "num_stages": configuration.num_stages}
    kernel = triton.compile(configuration.source(), target=GPUTarget("cuda", architecture, 32), options=options)
    kept = get_cache_manager(kernel.hash)
    name = f"{kernel.metadata.name}.roof"
    path = kept.get_file(name)
    if path is None:
        path = kept.put(_disassembled(kernel.asm["cubin"]), name, binary=False)
    usage, text = Path(path).read_text().split("\n", 1)
    registers, stack, local = map(int, usage.split())
    return CompiledKernel(text, configuration.num_warps, registers, stack, local, kernel.metadata.shared)


def _disassembled(cubin: bytes) -> str:
    """A line with registers, stack and local memory of the one kernel, then its instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = USAGE.search(_printed("cuobjdump", "-res-usage", file.name))
        if usage is None:
            raise RuntimeError("cuobjdump says nothing of the kernel's resources")
        return f"{' '.join(usage.groups())}\n{_printed('nvdisasm', '-c', '-gi', file.name)}"


def _printed(tool: str, *arguments: str) -> str:
    """What one of the tools prints that come with Triton."""
    import triton.backends.nvidia

    path = Path(triton.backends.nvidia.__file__).parent / "bin" / tool
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout
