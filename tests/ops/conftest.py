"""Backends as fixtures."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from op_checks import LEVELS

from spanbert_kernels.ops import backends


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """A backend that works here, from (name, instruction-set level or None for the best)."""
    name, level = request.param
    reason = backends.refusal(name, "cpu", torch.float32)
    if reason is not None:
        pytest.skip(f"{name}: {reason}")
    if level is None:
        yield name
        return
    before = torch.ops.spanbert_kernels.cpu_level()
    try:
        torch.ops.spanbert_kernels.set_cpu_level(LEVELS[level])
    except RuntimeError as error:
        pytest.skip(f"{level}: {str(error).splitlines()[0]}")
    yield name
    torch.ops.spanbert_kernels.set_cpu_level(before)


best_backend = backend


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads; the check that needs several asks for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
