"""Kernels compiled for a GPU ahead of time, and their machine code as text; kept by what they were made of."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from spanbert_kernels.ops.aot import AotConfiguration

USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel's machine code, and what a program of it needs.

    Attributes:
        cubin: the machine code, of one kernel.
        warps: of a block.
        registers: of a thread.
        stack, local: bytes of a thread outside the registers; what is there was spilled.
        shared: bytes of a block, those that Triton asks for at the launch.
    """

    cubin: bytes
    warps: int
    registers: int
    stack: int
    local: int
    shared: int

    def text(self) -> str:
        """Disassembled, with the lines of its source."""
        return printed("nvdisasm", self.cubin, "-c", "-gi")


def compiled(configuration: AotConfiguration, architecture: int) -> CompiledKernel:
    """A configuration compiled for an architecture, such as 90. Raises whatever the compiler does."""
    import triton
    from triton.backends.compiler import GPUTarget

    kernel = triton.compile(
        configuration.source(), target=GPUTarget("cuda", architecture, 32), options=configuration.options
    )
    cubin = kernel.asm["cubin"]
    return CompiledKernel(cubin, configuration.num_warps, *resource_usage(cubin), kernel.metadata.shared)


def resource_usage(cubin: bytes) -> tuple[int, int, int]:
    """Registers, stack and local memory of the one kernel in `cubin`."""
    said = printed("cuobjdump", cubin, "-res-usage")
    found = USAGE.search(said)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing of the kernel's resources: {said}")
    registers, stack, local = map(int, found.groups())
    return registers, stack, local


def printed(tool: str, cubin: bytes, *options: str) -> str:
    """What one of the tools that come with Triton prints of a kernel; kept beside what Triton keeps."""
    import triton.backends.nvidia
    from triton.runtime.cache import get_cache_manager

    path = Path(triton.backends.nvidia.__file__).parent / "bin" / tool
    kept, name = get_cache_manager(hashlib.sha256(cubin + triton.__version__.encode()).hexdigest()), f"{tool}.txt"
    found = kept.get_file(name)
    if found is None:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            done = subprocess.run([path, *options, file.name], capture_output=True, text=True, check=True)
        found = kept.put(done.stdout, name, binary=False)
    return Path(found).read_text()
