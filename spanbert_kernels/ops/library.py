"""The compiled libraries: where they lie, how they are loaded, what was built."""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import torch

# Where the C++ operators of each backend are registered: CPU and CUDA kernels share names, under two dispatch keys.
NAMESPACES = {"cpu": "spanbert_kernels", "cuda": "spanbert_kernels", "triton": "spanbert_kernels"}
FOLDER = Path(__file__).resolve().parent.parent / "_lib"


def build_info() -> dict[str, Any]:
    """What the installation built (`cpu`: the instruction sets, or None with `reason`), and of which `schemas`."""
    path = FOLDER / "build_info.json"
    if not path.is_file():
        return {
            "cpu": None,
            "reason": "the package was not installed by its setup.py (pip install builds the extension)",
        }
    info: dict[str, Any] = json.loads(path.read_text())
    return info


@functools.cache
def load_cpu() -> str | None:
    """Load the CPU library once. Returns None when it works, else the reason why not."""
    return _load("cpu", build_info().get("reason"))


@functools.cache
def load_cuda() -> str | None:
    """Load the CUDA library once, for the GPU at hand. Returns None when it works, else the reason why not."""
    reason = _load("cuda", build_info().get("cuda_reason"))
    if reason is not None:
        return reason
    if not torch.cuda.is_available():
        return "there is no CUDA GPU here"
    return unsuited(torch.cuda.get_device_capability(), build_info()["cuda"])


def unsuited(capability: tuple[int, int], architectures: list[int]) -> str | None:
    """Why a GPU cannot run what was built for `architectures` (80 for sm_80), or None when it can.

    Machine code runs on later GPUs of the same generation; the last architecture has portable code beside it, for all
    later generations.

    Example:
        >>> unsuited((8, 6), [80, 100]), unsuited((12, 0), [80, 100])
        (None, None)
        >>> unsuited((9, 0), [80, 100])
        'the GPU is of compute capability 9.0, the kernels were built for [80, 100]'
    """
    major, minor = capability
    here = 10 * major + minor
    if any(each // 10 == major and each <= here for each in architectures) or max(architectures) <= here:
        return None
    return f"the GPU is of compute capability {major}.{minor}, the kernels were built for {architectures}"


@functools.cache
def load_triton() -> str | None:
    """Import Triton once. Returns None when it works, else the reason why not."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton is not installed ({error})"
    if torch.cuda.is_available() or interpreted():
        return None
    return "there is no CUDA GPU here (TRITON_INTERPRET=1 runs the kernels on a CPU, slowly, to test them)"


def interpreted() -> bool:
    """Whether Triton runs its kernels in its interpreter, which takes tensors on a CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _of_another_version(backend: str) -> str | None:
    """Why the compiled kernels are not those of the raw operators: given other arguments they would end the process."""
    import spanbert_kernels.ops  # noqa: F401  (declares all of them)
    from spanbert_kernels.ops.operators import REGISTERED

    built = build_info().get("schemas", {})
    for name, operator in sorted(REGISTERED.items()):
        if backend in operator.backends and built.get(name) != operator.schema:
            return f"the compiled kernels are of another version of the package ({name} differs): install it again"
    return None


def _load(backend: str, not_built: str | None) -> str | None:
    path = FOLDER / f"libspanbert_kernels_{backend}.so"
    if not path.is_file():
        return f"the compiled extension was not built: {not_built or 'no reason recorded'}"
    if (reason := _of_another_version(backend)) is not None:
        return reason
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"the compiled extension does not load: {error}"
    return None


def cpu_isa() -> str | None:
    """The instruction set that the CPU kernels use here (`avx512`, `avx2`, `portable`), None without the library."""
    if load_cpu() is not None:
        return None
    name: str = torch.ops.spanbert_kernels.cpu_isa()
    return name
