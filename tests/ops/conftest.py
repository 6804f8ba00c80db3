"""Backends as fixtures."""

from __future__ import annotations

from collections.abc import Iterator

import places
import pytest
import torch
from places import Place


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Checks at emulated places of cases that their class does not name (`emulated`) are slow.

    So is float16 in large blocks of Triton's interpreter: `test_gpu_blocks.py` has it in those of a GPU.
    """
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        case, values = parameters.get("case", parameters.get("logic")), parameters.values()
        names = getattr(getattr(item, "cls", None), "emulated", ())
        if names and case and case.name not in names and any(isinstance(p, Place) and p.emulated for p in values):
            item.add_marker(pytest.mark.slow)
        large_blocks = getattr(getattr(item, "cls", None), "operation", "") in places.OF_TWO_BLOCKS
        if large_blocks and Place("triton", "interpreter") in values and torch.float16 in values:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The backend of a place that works here."""
    reason = places.unavailable(request.param)
    if reason is not None:
        pytest.skip(f"{request.param}: {reason}")
    with places.at(request.param) as name:
        yield name


best_backend = backend


@pytest.fixture
def cuda_on_cpu() -> Iterator[None]:
    """The backend `cuda` takes CPU tensors."""
    with places.cuda_as_fibers():
        yield


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads; the check that needs several asks for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
