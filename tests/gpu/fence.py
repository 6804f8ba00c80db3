"""A plugin of pytest: a process whose GPU context is broken ends after the test that broke it; xdist begins another.

What an illegal access breaks stays broken for the process, and all tests behind it would fail for that one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator

import pytest
import torch


def broken() -> str | None:
    """Why nothing runs on the GPU any more, or None."""
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool | None, bool | None]:
    found = yield
    reason = broken()
    if reason is not None and "PYTEST_XDIST_WORKER" in os.environ:
        print(f"{item.nodeid}: {reason}", file=sys.stderr, flush=True)
        os._exit(1)
    return found
