"""span_pool on all spans of up to 30 tokens of a document of 512, H = 768, float32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from baselines import all_spans, endpoints_and_attention, gather_and_max, gather_and_mean
from conftest import Goal, assert_agrees
from torch import Tensor

from spanbert_kernels import ops

LENGTH, MAX_WIDTH, HIDDEN = 512, 30, 768
WAYS: dict[str, tuple[list[str], Callable[..., Tensor]]] = {
    "max": (["max"], lambda hidden, spans, scores: gather_and_max(hidden, spans)),
    "mean": (["mean"], lambda hidden, spans, scores: gather_and_mean(hidden, spans)),
    "start,end,attention": (["start", "end", "attention"], endpoints_and_attention),
}


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(LENGTH, HIDDEN, generator=generator).to(dtype)
    return hidden, all_spans(LENGTH, MAX_WIDTH), torch.randn(LENGTH, generator=generator).to(dtype)


def pool(hidden: Tensor, spans: Tensor | ops.SpanPlan, scores: Tensor, parts: list[str]) -> Tensor:
    return ops.span_pool(hidden, spans, parts, scores=scores if "attention" in parts else None)


def gate(hidden: Tensor, spans: Tensor, scores: Tensor, name: str, work: Tensor | ops.SpanPlan) -> float:
    parts, eager = WAYS[name]
    reference = eager(hidden.double(), spans, scores.double())
    return assert_agrees(pool(hidden, work, scores, parts), eager(hidden, spans, scores), reference)


@torch.inference_mode()
def test_max_against_writing_the_output(compare: Callable[..., None]) -> None:
    """The floor: what it takes to write as many numbers."""
    hidden, spans, scores = inputs()
    plan = ops.enumerate_spans(torch.tensor([0, LENGTH]), MAX_WIDTH)
    shape = (spans.shape[0], HIDDEN)
    compare(
        lambda: ops.span_pool(hidden, plan, ["max"]),
        {"write the output": lambda: torch.full(shape, 1.0)},
        error=gate(hidden, spans, scores, "max", plan),
        goal=Goal(at_most=3.0),
    )


@pytest.mark.parametrize("kind", ["enumerated plan", "plan", "tensor"])
@pytest.mark.parametrize("name", WAYS)
@torch.inference_mode()
def test_forward(compare: Callable[..., None], name: str, kind: str) -> None:
    hidden, spans, scores = inputs()
    parts, eager = WAYS[name]
    work: Tensor | ops.SpanPlan = spans
    if kind == "plan":
        work = ops.plan_spans(spans, num_tokens=LENGTH)
    elif kind == "enumerated plan":
        work = ops.enumerate_spans(torch.tensor([0, LENGTH]), MAX_WIDTH)
    compare(
        lambda: pool(hidden, work, scores, parts),
        {"gather and pool": lambda: eager(hidden, spans, scores)},
        error=gate(hidden, spans, scores, name, work),
    )


@pytest.mark.parametrize("name", WAYS)
def test_forward_and_backward(compare: Callable[..., None], name: str) -> None:
    hidden, spans, scores = inputs()
    parts, eager = WAYS[name]
    plan = ops.enumerate_spans(torch.tensor([0, LENGTH]), MAX_WIDTH)
    grad = torch.randn(spans.shape[0], len(parts) * HIDDEN, generator=torch.Generator().manual_seed(1))

    def gradient(way: Callable[..., Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
        leaf = hidden.to(dtype, copy=True).requires_grad_()
        way(leaf, scores.to(dtype)).backward(grad.to(dtype))
        assert leaf.grad is not None
        return leaf.grad

    def ours(hidden: Tensor, scores: Tensor) -> Tensor:
        return pool(hidden, plan, scores, parts)

    def theirs(hidden: Tensor, scores: Tensor) -> Tensor:
        return eager(hidden, spans, scores)

    error = assert_agrees(gradient(ours), gradient(theirs), gradient(theirs, torch.float64))
    compare(lambda: gradient(ours), {"gather and pool": lambda: gradient(theirs)}, error=error)
