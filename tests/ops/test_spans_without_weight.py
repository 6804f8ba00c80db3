"""Spans whose attention scores are all -inf: zeros and zero gradient, as a span without tokens gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from op_checks import every_backend
from torch import Tensor

from spanbert_kernels.ops import enumerate_spans, plan_spans, span_linear, span_pool, span_score

Call = Callable[..., Tensor]
TOKENS, COLUMNS = 20, 37  # whole vectors and a rest, more than two groups of 8 tokens
DEAD = 11  # the first tokens, which have a score of -inf
LIVING = torch.tensor([[2, 14], [0, 19], [9, 12], [15, 18], [12, 12]])
WITHOUT_WEIGHT = torch.tensor([[0, 3], [0, 10], [2, 4], [2, 10], [9, 10], [0, 3]])


def order(plan: bool) -> Tensor:
    """Both kinds mixed, nested ones among them."""
    return torch.tensor([5, 0, 6, 1, 7, 2, 8, 3, 9, 4, 10]) if plan else torch.arange(11)


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden, scores = (torch.randn(TOKENS, size, generator=generator) for size in (COLUMNS, 1))
    scores[:DEAD] = -torch.inf
    return {"hidden": hidden, "scores": scores[:, 0]}


def gradients(call: Call, tensors: dict[str, Tensor], grad: Tensor, **rest: Any) -> list[Tensor]:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    output = call(**leaves, **rest)
    return [output, *torch.autograd.grad(output, list(leaves.values()), grad.expand_as(output))]


@every_backend("span_pool")
@pytest.mark.parametrize("planned", [False, True], ids=["tensor", "plan"])
def test_span_pool(backend: str, planned: bool) -> None:
    """Neither tokens nor incoming gradients of such spans are looked at: NaN there reaches nothing."""
    tensors = inputs()
    pool = partial(span_pool, parts=["attention"], backend=backend)
    spans = torch.cat([LIVING, WITHOUT_WEIGHT])[order(planned)]
    dead = (spans[:, 1] < DEAD) & (spans[:, 0] < DEAD)
    empty = torch.where(dead[:, None], torch.tensor([3, 2]), spans)
    grad = torch.where(dead, torch.nan, torch.arange(11.0) - 4)[:, None]
    found, expected = (
        gradients(pool, tensors, grad, spans=plan_spans(each, num_tokens=TOKENS) if planned else each)
        for each in (spans, empty)
    )
    assert dead.sum() == len(WITHOUT_WEIGHT)
    assert not found[0][dead].any()
    for value, ref in zip(found, expected, strict=True):
        torch.testing.assert_close(value, ref, rtol=1e-5, atol=1e-6)
    assert not found[2][:DEAD].any()

    tensors["hidden"][:2] = torch.tensor([[torch.inf], [torch.nan]])
    spans = torch.cat([LIVING[2:], WITHOUT_WEIGHT])
    grad = torch.where(spans[:, 1] < DEAD, torch.nan, 1.0)[:, None]
    for value in gradients(pool, tensors, grad, spans=plan_spans(spans, num_tokens=TOKENS) if planned else spans):
        assert value.isfinite().all()


@every_backend("span_pool")
def test_span_pool_of_all_spans(backend: str) -> None:
    """The spans that start together go on from those without weight, head by head."""
    tensors = inputs()
    tensors["scores"] = torch.stack([tensors["scores"], tensors["scores"].flip(0)], 1)
    plan = enumerate_spans(torch.tensor([0, 7, TOKENS]), 9)
    grad = torch.linspace(-1, 1, len(plan))[:, None]
    pool = partial(span_pool, parts=["attention"])
    found = gradients(partial(pool, backend=backend), tensors, grad, spans=plan)
    start, end = plan.bounds()
    assert not found[0][end <= DEAD, :COLUMNS].any()
    assert not found[0][start >= TOKENS - DEAD, COLUMNS:].any()
    exact = {name: tensor.double() for name, tensor in tensors.items()}
    expected = gradients(partial(pool, backend="eager"), exact, grad.double(), spans=plan.pairs())
    for value, ref in zip(found, expected, strict=True):
        torch.testing.assert_close(value.double(), ref, rtol=1e-5, atol=1e-5)


@every_backend("span_linear")
@pytest.mark.parametrize("operation", ["span_linear", "span_score"])
@pytest.mark.parametrize("copies", [1, 3], ids=["pooled first", "projected first"])
@pytest.mark.parametrize("heads", [1, 2])
def test_layers(backend: str, operation: str, copies: int, heads: int) -> None:
    generator = torch.Generator().manual_seed(4)
    tensors = inputs()
    if heads == 2:
        tensors["scores"] = torch.stack([tensors["scores"], tensors["scores"]], 1)
    tensors["weight"] = torch.randn(9, COLUMNS * heads, generator=generator)
    tensors["bias"] = torch.randn(9, generator=generator)
    call: Call = partial(span_linear, activation="gelu")
    if operation == "span_score":
        call, tensors["out_weight"] = span_score, torch.randn(2, 9, generator=generator)
    call = partial(call, parts=["attention"], backend=backend)
    spans = torch.cat([LIVING, WITHOUT_WEIGHT]).repeat(copies, 1)
    dead = (spans[:, 1] < DEAD) & (spans[:, 0] < DEAD)
    empty = torch.where(dead[:, None], torch.tensor([3, 2]), spans)
    grad = torch.linspace(-1, 1, len(spans))[:, None]
    found, expected = (gradients(call, tensors, grad, spans=each) for each in (spans, empty))
    for value, ref in zip(found, expected, strict=True):
        torch.testing.assert_close(value, ref, rtol=1e-4, atol=1e-5)

    tensors["hidden"][:2] = torch.tensor([[torch.inf], [torch.nan]])
    spans = torch.cat([LIVING[2:], WITHOUT_WEIGHT]).repeat(copies, 1)
    assert call(**tensors, spans=spans).isfinite().all()
