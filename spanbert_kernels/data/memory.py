"""How much memory there is to work with, the limits of containers and shells counted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psutil

# Of the control group that a container runs in: its limit, and what is used of it.
_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available() -> int:
    """Bytes that this process can still take.

    Example:
        >>> 0 < available() <= psutil.virtual_memory().total
        True
    """
    return max(0, min(_limits()))


def _limits() -> Iterator[int]:
    yield int(psutil.virtual_memory().available)
    for limit, used in _GROUPS:
        with contextlib.suppress(OSError, ValueError):  # "max" where there is no limit
            yield int(Path(limit).read_text()) - int(Path(used).read_text())
    with contextlib.suppress(ImportError, OSError):
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            yield soft - int(psutil.Process().memory_info().vms)
