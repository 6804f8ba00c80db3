"""The compiled libraries: where they lie, how they are loaded, what was built."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).resolve().parent.parent / "_lib"


def build_info() -> dict[str, Any]:
    """What the installation built (`cpu`: the instruction sets, or None with `reason`)."""
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
    path = FOLDER / "libspanbert_kernels_cpu.so"
    if not path.is_file():
        return f"the compiled extension was not built: {build_info().get('reason', 'no reason recorded')}"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f"the compiled extension does not load: {error}"
    return None


def cpu_level() -> str | None:
    """The instruction set that the CPU kernels use here (`avx512`, `avx2`, `portable`), None without the library."""
    if load_cpu() is not None:
        return None
    level: int = torch.ops.spanbert_kernels.cpu_level()
    return ("portable", "avx2", "avx512")[level]
