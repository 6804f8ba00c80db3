"""The compiled host module: where it lies, and why it is missing where it is."""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import json
import os
from pathlib import Path
from typing import Any

from spanbert_kernels.host import fallback

FOLDER = Path(__file__).resolve().parent.parent / "_lib"


@functools.cache
def load() -> str | None:
    """Import the compiled module once.

    Returns:
        None when it works, else the reason why not, in a line; the functions run in numpy then.

    Example:
        >>> reason = load()
        >>> reason is None or "host module" in reason
        True
    """
    if not any((FOLDER / f"_host{suffix}").is_file() for suffix in importlib.machinery.EXTENSION_SUFFIXES):
        return f"the host module was not built: {_reason()}"
    try:
        module()
    except ImportError as error:
        return f"the host module does not load: {error}"
    return None


def module() -> Any:
    """The compiled module itself, for numpy arrays whose values were checked."""
    return importlib.import_module("spanbert_kernels._lib._host")


def way(compiled: bool | None) -> Any:
    """The functions of one of the two ways: the compiled module, or the same ones in numpy.

    Raises:
        RuntimeError: the compiled way was asked for, but was not built.
    """
    if compiled is False:
        return fallback
    reason = load()
    if reason is None:
        return module()
    if compiled:
        raise RuntimeError(reason)
    return fallback


def usable_threads() -> int:
    """As many as OMP_NUM_THREADS says, which also holds for PyTorch and numpy's products, else as there are processors
    for this process.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _reason() -> str:
    path = FOLDER / "build_info.json"
    if not path.is_file():
        return "the package was not installed by its setup.py (pip install builds it)"
    info: dict[str, Any] = json.loads(path.read_text())
    if info.get("host"):
        there = "for another Python" if (FOLDER / info["host"]).is_file() else "which is gone"
        return f"the installation built {info['host']}, {there}"
    return str(info.get("host_reason", "no reason recorded"))
