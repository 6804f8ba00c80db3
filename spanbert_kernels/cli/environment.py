"""What the numbers were measured on: versions, processor, cores, and the backends that work here."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path

import psutil

from spanbert_kernels.cli import formatting

PACKAGES = ("spanbert-kernels", "torch", "transformers", "tokenizers", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter; "not installed" where one is missing."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    if found["spanbert-kernels"] == "not installed":  # run from a source folder
        from spanbert_kernels import __version__

        found["spanbert-kernels"] = __version__
    return found


def machine() -> dict[str, str]:
    """What the numbers were measured on. Nothing in it tells whose machine it is."""
    import torch

    return {
        "processor": _processor(),
        "cores": f"{_usable_cores()} usable, {formatting.count(torch.get_num_threads(), 'thread')} in PyTorch",
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "memory": formatting.memory(psutil.virtual_memory().total),
        "system": f"{platform.system()}, {platform.machine()}",
    }


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def _usable_cores() -> int:
    """Linux alone knows which cores a process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def backends() -> list[tuple[str, str, str | None]]:
    """(operation, backend, None if it works here, else the reason), operation by operation."""
    from spanbert_kernels.ops.backends import report

    table = report()
    return sorted((operation, backend, reason) for backend, row in table.items() for operation, reason in row.items())
