"""Large results on a CPU: memory that is fresh comes on huge pages, and what is in it does not depend on that."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spanbert_kernels.ops import (
    SpanPlan,
    backends,
    enumerate_spans,
    plan_spans,
    products,
    span_gather,
    span_linear,
    span_pool,
)

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


def product(tokens: int) -> Tensor:
    weight = torch.linspace(-1, 1, COLUMNS * 4).view(COLUMNS, 4)
    return products.linear(torch.linspace(-1, 1, 120 * tokens).view(30 * tokens, 4), weight, weight[:, 0])


def product_backward(tokens: int) -> Tensor:
    """The gradient of a weight whose product has few rows."""
    weight = torch.ones(30 * tokens, COLUMNS, requires_grad=True)
    output = products.linear(torch.linspace(-1, 1, 2 * COLUMNS).view(2, COLUMNS), weight)
    return torch.autograd.grad(output.sum(), weight)[0]


CALLS: dict[str, Callable[[int], Tensor]] = {
    "span_pool": pool,
    "span_pool, a plan": pool_a_plan,
    "span_pool, backward": pool_backward,
    "span_gather": gather,
    "span_gather, backward": gather_backward,
    "span_linear": linear,
    "a product": product,
    "a product, backward": product_backward,
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


def flags_of_a_fresh_result(call: Callable[[int], Tensor]) -> list[str]:
    """Those of the first result whose memory comes from the system.

    A heap may keep what earlier tests wrote, and a thread's own keeps the room at its end even from `malloc_trim`.
    Results are held until one no longer fits there.
    """
    ctypes.CDLL(None).malloc_trim(0)
    held: list[Tensor] = []
    while len(held) < 4:
        held.append(call(TOKENS))
        assert held[-1].nbytes > 2**25, "the allocator may keep it"
        if "hg" in (flags := flags_of(held[-1])):
            break
    return flags


with_huge_pages = pytest.mark.skipif(
    sys.platform != "linux" or not Path("/sys/kernel/mm/transparent_hugepage").exists(),
    reason="this system has no huge pages",
)


@with_huge_pages
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_huge_pages_are_asked_for(call: Callable[[int], Tensor]) -> None:
    assert "hg" in flags_of_a_fresh_result(call)


@with_huge_pages
def test_huge_pages_are_asked_for_behind_a_heap_that_has_room() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.argtypes, libc.malloc.restype, libc.free.argtypes = (
        [ctypes.c_size_t],
        ctypes.c_void_p,
        [ctypes.c_void_p],
    )

    def leave_room() -> list[str]:
        libc.free(libc.malloc(2**25 - 2**13))  # the allocator learns to keep blocks of this size
        blocks = [libc.malloc(28 * 2**20) for _ in range(2)]
        for block in blocks:
            ctypes.memset(block, 1, 28 * 2**20)
        for block in reversed(blocks):
            libc.free(block)
        return flags_of_a_fresh_result(pool)

    with ThreadPoolExecutor(1) as thread:  # whose heap is its own
        assert "hg" in thread.submit(leave_room).result()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_same_on_fresh_memory_and_on_kept(call: Callable[[int], Tensor]) -> None:
    """What is freed at first is fresh again, later it is kept: the allocator learns what sizes to keep."""
    expected = call(SMALLER)
    for _ in range(4):
        assert torch.equal(call(SMALLER), expected)
