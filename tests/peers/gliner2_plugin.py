"""A pytest plugin under which GLiNER2's own tests run on the installed package with our span layers in its models.

Every `SpanMarkerV0` is accelerated as soon as it has been made. A run in which ours took no call fails.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from importlib import import_module
from typing import Any

import pytest

from spanbert_kernels import accelerate
from spanbert_kernels.acceleration.span_layers import FUSED, SpanForward

_paths: Counter[str] = Counter()


def pytest_configure() -> None:
    """Before the tests import the package; what they import of their own folder is the checkout's."""
    marker = import_module("gliner2.layers").SpanMarkerV0
    sys.path.append(os.getcwd())
    own, note = marker.__init__, SpanForward._note

    def init(layer: Any, *args: Any, **kwargs: Any) -> None:
        own(layer, *args, **kwargs)
        accelerate(layer)

    def count(forward: SpanForward, path: str) -> None:
        _paths[path] += 1
        note(forward, path)

    marker.__init__ = init
    SpanForward._note = count


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Says which paths ran."""
    print(f"\nGLiNER2's span layer: {dict(_paths)}")
    if not _paths[FUSED]:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
