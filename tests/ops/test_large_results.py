"""Large results on a CPU: memory that is fresh comes on huge pages, and what is in it does not depend on that."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spanbert_kernels.ops import SpanPlan, backends, enumerate_spans, plan_spans, span_gather, span_linear, span_pool

TOKENS, COLUMNS, WIDTH = 512, 768, 30
SMALLER = 200  # tokens, whose result the allocator keeps when it is freed
pytestmark = pytest.mark.skipif(backends.refusal("cpu", "cpu", torch.float32) is not None, reason="no compiled kernels")


def every(tokens: int) -> SpanPlan:
    return enumerate_spans(torch.tensor([0, tokens]), WIDTH)


def pool(tokens: int) -> Tensor:
    hidden = torch.linspace(-1, 1, tokens * COLUMNS).sin().view(tokens, COLUMNS)
    return span_pool(hidden, every(tokens), ["mean"], backend="cpu")


def pool_a_plan(tokens: int) -> Tensor:
    """In an order that is not that of the spans."""
    hidden, pairs = torch.linspace(-1, 1, tokens * COLUMNS).view(tokens, COLUMNS), every(tokens).pairs()
    return span_pool(hidden, plan_spans(pairs.flip(0), num_tokens=tokens), ["max"], backend="cpu")


def gather(tokens: int) -> Tensor:
    hidden, ten = torch.linspace(-1, 1, tokens * COLUMNS).view(tokens, COLUMNS), torch.arange(0, tokens - 30)
    return span_gather(hidden, torch.stack([ten, ten + 29], 1), backend="cpu")[0]


def gather_backward(tokens: int) -> Tensor:
    """The gradient of many tokens of which few are gathered."""
    hidden = torch.ones(30 * tokens, COLUMNS, requires_grad=True)
    output, _ = span_gather(hidden, torch.tensor([[7, 9], [8, 20]]), backend="cpu")
    return torch.autograd.grad(output.sum(), hidden)[0]


def pool_backward(tokens: int) -> Tensor:
    hidden = torch.ones(30 * tokens, COLUMNS, requires_grad=True)
    output = span_pool(hidden, torch.tensor([[7, 9], [8, 20]]), ["sum"], backend="cpu")
    return torch.autograd.grad(output.sum(), hidden)[0]


def linear(tokens: int) -> Tensor:
    hidden, weight = torch.linspace(-1, 1, tokens * 4).view(tokens, 4), torch.linspace(-1, 1, COLUMNS * 8)
    return span_linear(hidden, every(tokens), ["start", "mean"], weight.view(COLUMNS, 8), backend="cpu")


CALLS: dict[str, Callable[[int], Tensor]] = {
    "span_pool": pool,
    "span_pool, a plan": pool_a_plan,
    "span_pool, backward": pool_backward,
    "span_gather": gather,
    "span_gather, backward": gather_backward,
    "span_linear": linear,
}


def flags_of(tensor: Tensor) -> list[str]:
    """How the system treats the memory in the middle of a tensor."""
    address = tensor.data_ptr() + tensor.nbytes // 2
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, *rest = line.split()
        if not key.endswith(":"):
            low, high = (int(bound, 16) for bound in key.split("-"))
            inside = low <= address < high
        elif inside and key == "VmFlags:":
            return rest
    return []


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for on Linux")
@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="this system has no huge pages")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_huge_pages_are_asked_for(call: Callable[[int], Tensor]) -> None:
    ctypes.CDLL(None).malloc_trim(0)  # what earlier tests have left in the allocator is fresh again, too
    result = call(TOKENS)
    assert result.nbytes > 2**25, "the allocator may keep it"
    assert "hg" in flags_of(result)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_same_on_fresh_memory_and_on_kept(call: Callable[[int], Tensor]) -> None:
    """What is freed at first is fresh again, later it is kept: the allocator learns what sizes to keep."""
    expected = call(SMALLER)
    for _ in range(4):
        assert torch.equal(call(SMALLER), expected)
