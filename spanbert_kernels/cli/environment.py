"""What the numbers were measured on: versions, processor, cores, and the backends that work here."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping

import psutil

from spanbert_kernels.cli import formatting

VENDORS = {"AuthenticAMD": "AMD", "GenuineIntel": "Intel"}
FOR_BFLOAT16 = ("avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16")  # as Linux calls what computes in bfloat16
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

    from spanbert_kernels.ops.measured import about_processor

    about = about_processor()
    flags = (about.get("flags") or about.get("Features") or "").split()
    return {
        "processor": about.get("model name") or platform.processor() or platform.machine(),
        "vendor": _vendor(about),
        "cores": f"{_usable_cores()} usable, {formatting.count(torch.get_num_threads(), 'thread')} in PyTorch",
        "vector instructions": torch.backends.cpu.get_cpu_capability(),
        "instructions for bfloat16": ", ".join(name for name in FOR_BFLOAT16 if name in flags) or "none known",
        "memory": formatting.memory(psutil.virtual_memory().total),
        "system": f"{platform.system()}, {platform.machine()}",
    }


def _vendor(about: Mapping[str, str]) -> str:
    """With the family, which tells one generation from another.

    Example:
        >>> _vendor({"vendor_id": "AuthenticAMD", "cpu family": "26"}), _vendor({})
        ('AMD, family 26', 'not known')
    """
    vendor = about.get("vendor_id") or about.get("CPU implementer")
    if vendor is None:
        return "not known"
    family = f", family {about['cpu family']}" if "cpu family" in about else ""
    return f"{VENDORS.get(vendor, vendor)}{family}"


def _usable_cores() -> int:
    """Linux alone knows which cores a process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def backends() -> list[tuple[str, str, str | None]]:
    """(operation, backend, None if it works here, else the reason), operation by operation."""
    from spanbert_kernels.ops.backends import refusals

    table = refusals()
    return sorted((operation, backend, reason) for backend, row in table.items() for operation, reason in row.items())
