"""span_pool against everything that users take instead: H = 768, float32.

All spans of up to 30 tokens of a document of 512 (14,925), and 100,000 random spans of up to 64 tokens in documents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from baselines import (
    RaggedTokens,
    all_spans,
    dense_attention,
    dense_mean,
    endpoints_and_attention,
    gather_and_attend,
    gather_and_max,
    gather_and_mean,
    mask_and_max,
)
from conftest import Goal, assert_agrees
from memory import Peak, peaks
from torch import Tensor

from spanbert_kernels import ops

HIDDEN = 768
EAGER, FLOOR = "gather and reduce", "copy one row to all"
Ways = dict[str, Callable[[], Tensor]]


@dataclass(frozen=True)
class Case:
    """A row of the table: what is pooled, and what is asked for."""

    parts: list[str]
    goals: Sequence[Goal]
    backward: bool = False
    random: bool = False
    spare: float = 0.1  # of inputs, outputs and their gradients, the peak memory allowed beside them


CASES = {
    "max": Case(["max"], [Goal(400, against=EAGER), Goal(50), Goal(at_most=2.5, against=FLOOR)]),
    "mean": Case(["mean"], [Goal(250, against=EAGER), Goal(6), Goal(at_most=2.5, against=FLOOR)]),
    "attention": Case(["attention"], [Goal(150, against=EAGER), Goal(4), Goal(at_most=2.5, against=FLOOR)]),
    "coreference": Case(["start", "end", "attention", "width"], [Goal(80, against=EAGER), Goal(4)], True, spare=0.25),
    "random mean": Case(["mean"], [Goal(100, against=EAGER), Goal(4)], random=True),
}


def inputs(case: Case) -> tuple[Tensor, Tensor, ops.SpanPlan, Tensor, Tensor]:
    """Hidden states, the spans as a tensor and as a plan, scores, a table of widths."""
    generator = torch.Generator().manual_seed(0)
    documents, length, max_width = (64, 512, 64) if case.random else (1, 512, 30)
    tokens = documents * length
    if case.random:
        count = 100_000
        width = torch.randint(1, max_width + 1, (count,), generator=generator)
        within = (torch.rand(count, generator=generator) * (length - width + 1)).long()
        start = torch.randint(documents, (count,), generator=generator) * length + within
        spans = torch.stack((start, start + width - 1), 1)
        plan = ops.plan_spans(spans, num_tokens=tokens)
    else:
        spans = all_spans(length, max_width)
        plan = ops.enumerate_spans(torch.tensor([0, length]), max_width)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return randn(tokens, HIDDEN), spans, plan, randn(tokens), randn(max_width, 20)


def in_chunks(way: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, spans: Tensor, rows: int = 2000) -> Tensor:
    """In chunks of spans whose tokens fit into memory."""
    return torch.cat([way(hidden, chunk) for chunk in spans.split(rows)])


def per_document(hidden: Tensor, spans: Tensor) -> Tensor:
    """The dense product, one a document."""
    output = hidden.new_empty(len(spans), HIDDEN)
    document = spans[:, 0] // 512
    for d in range(len(hidden) // 512):
        rows = (document == d).nonzero()[:, 0]
        output[rows] = dense_mean(hidden[d * 512 : (d + 1) * 512], spans[rows] - d * 512)
    return output


def alternatives(name: str, hidden: Any, spans: Tensor, scores: Any, table: Any) -> dict[str, Callable[..., Tensor]]:
    """Ways by name, of (hidden, scores, table); the first is eager PyTorch's."""
    ragged = RaggedTokens(spans)

    def coreference(pooled: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def way(h: Tensor, s: Tensor, t: Tensor) -> Tensor:
            width = t[spans[:, 1] - spans[:, 0]]
            return torch.cat((h[spans[:, 0]], h[spans[:, 1]], pooled(h, s), width), 1)

        return way

    if name == "max":
        compiled = torch.compile(gather_and_max)
        return {
            EAGER: lambda h, s, t: gather_and_max(h, spans),
            "mask and max": lambda h, s, t: mask_and_max(h, spans),
            "embedding_bag": lambda h, s, t: ragged.bag(h, "max"),
            "segment_reduce": lambda h, s, t: ragged.reduce(h, "max"),
            "compiled gather": lambda h, s, t: compiled(h, spans),
        }
    if name == "mean":
        compiled = torch.compile(gather_and_mean)
        return {
            EAGER: lambda h, s, t: gather_and_mean(h, spans),
            "dense product": lambda h, s, t: dense_mean(h, spans),
            "embedding_bag": lambda h, s, t: ragged.bag(h, "mean"),
            "segment_reduce": lambda h, s, t: ragged.reduce(h, "mean"),
            "compiled gather": lambda h, s, t: compiled(h, spans),
        }
    if name == "attention":
        compiled, compiled_dense = torch.compile(gather_and_attend), torch.compile(dense_attention)
        return {
            EAGER: lambda h, s, t: gather_and_attend(h, spans, s),
            "dense product": lambda h, s, t: dense_attention(h, spans, s),
            "compiled dense product": lambda h, s, t: compiled_dense(h, spans, s),
            "embedding_bag": lambda h, s, t: ragged.bag_weighted(h, s),
            "compiled gather": lambda h, s, t: compiled(h, spans, s),
        }
    if name == "coreference":
        return {
            EAGER: lambda h, s, t: endpoints_and_attention(h, spans, s, t),
            "dense product": coreference(lambda h, s: dense_attention(h, spans, s)),
            "embedding_bag": coreference(ragged.bag_weighted),
        }
    return {
        EAGER: lambda h, s, t: in_chunks(gather_and_mean, h, spans),
        "dense product per document": lambda h, s, t: per_document(h, spans),
        "embedding_bag": lambda h, s, t: ragged.bag(h, "mean"),
    }


def ours(case: Case, plan: ops.SpanPlan) -> Callable[..., Tensor]:
    def way(hidden: Tensor, scores: Tensor, table: Tensor) -> Tensor:
        return ops.span_pool(
            hidden,
            plan,
            case.parts,
            scores=scores if "attention" in case.parts else None,
            width_embedding=table if "width" in case.parts else None,
        )

    return way


def with_gradients(way: Callable[..., Tensor], leaves: Sequence[Tensor], grad: Tensor) -> Callable[[], Tensor]:
    """Forward and backward; returns all gradients in a row."""

    def run() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        way(*leaves).backward(grad)
        return torch.cat([leaf.grad.flatten() for leaf in leaves if leaf.grad is not None])

    return run


def ways(name: str) -> Ways:
    """Ours, the baselines and the floor of a case, ready to call."""
    case = CASES[name]
    hidden, spans, plan, scores, table = inputs(case)
    found = {"ours": ours(case, plan), **alternatives(name, hidden, spans, scores, table)}
    if case.backward:
        leaves = [tensor.requires_grad_() for tensor in (hidden, scores, table)]
        columns = 3 * HIDDEN + table.shape[1]
        grad = torch.randn(len(spans), columns, generator=torch.Generator().manual_seed(1))
        return {each: with_gradients(way, leaves, grad) for each, way in found.items()}
    ready: Ways = {each: _without_gradients(way, hidden, scores, table) for each, way in found.items()}
    row = hidden[0]
    ready[FLOOR] = lambda: row.expand(len(spans), HIDDEN).contiguous()
    return ready


def _without_gradients(way: Callable[..., Tensor], *tensors: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.inference_mode():
            return way(*tensors)

    return run


def exact(name: str) -> Tensor:
    """The result in float64, by a way that is not ours and fits into memory."""
    case = CASES[name]
    hidden, spans, _, scores, table = inputs(case)
    tensors = [tensor.double() for tensor in (hidden, scores, table)]
    if name == "max":
        return in_chunks(gather_and_max, tensors[0], spans)
    way = alternatives(name, tensors[0], spans, *tensors[1:])["embedding_bag" if case.random else "dense product"]
    if not case.backward:
        return _without_gradients(way, *tensors)()
    leaves = [tensor.requires_grad_() for tensor in tensors]
    grad = torch.randn(len(spans), 3 * HIDDEN + table.shape[1], generator=torch.Generator().manual_seed(1))
    return with_gradients(way, leaves, grad.double())()


def allowed_megabytes(name: str) -> float:
    """Peak memory beside the inputs: outputs (and their gradients), and the spare part of all of these."""
    case = CASES[name]
    hidden, spans, _, scores, table = inputs(case)
    read = hidden.numel() + scores.numel() + table.numel()
    columns = 3 * HIDDEN + table.shape[1] if case.backward else HIDDEN
    written = len(spans) * columns + (read if case.backward else 0)
    given = read + (len(spans) * columns if case.backward else 0)  # the gradient of the output comes from outside
    return (written + case.spare * (given + written)) * 4 / 1e6


@pytest.mark.parametrize("name", CASES)
def test_spans(compare: Callable[..., None], name: str) -> None:
    measured = peaks("bench_span_pool", name, ["ours", EAGER])  # while this process itself is small
    case, every = CASES[name], ways(name)
    mine, floor = every.pop("ours"), {FLOOR: every.pop(FLOOR)} if FLOOR in every else {}
    result, eager = mine(), every[EAGER]()
    error = assert_agrees(result, eager, exact(name))
    for other, way in every.items():
        torch.testing.assert_close(way(), eager, rtol=1e-3, atol=1e-3, msg=lambda text, other=other: f"{other}: {text}")
    asked = f"results and {case.spare:.0%} of all"
    compare(
        mine,
        every,
        error=error,
        goals=case.goals,
        floors=floor,
        peak=Peak(measured, allowed_megabytes(name), asked),
    )


@pytest.mark.parametrize("kind", ["plan", "tensor"])
@pytest.mark.parametrize("name", ["max", "mean", "attention"])
def test_other_kinds_of_spans(compare: Callable[..., None], name: str, kind: str) -> None:
    """The same spans sorted once, and as they come, against the way that stores none."""
    case, every = CASES[name], ways(name)
    hidden, spans, _, scores, table = inputs(case)
    given: Mapping[str, Any] = {"plan": ops.plan_spans(spans, num_tokens=len(hidden)), "tensor": spans}
    mine = _without_gradients(ours(case, given[kind]), hidden, scores, table)
    error = assert_agrees(mine(), every[EAGER](), exact(name))
    compare(mine, {"all spans up to a width": every["ours"]}, error=error)
