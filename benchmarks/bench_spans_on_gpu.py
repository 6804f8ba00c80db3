"""Span pooling on a GPU, in bfloat16, against its floor, eager PyTorch and what users take instead.

The workloads are those of span models; the floor reads hidden once and writes the output once at the rate of a copy
that is measured in the same run. The reference is eager PyTorch in float64. Times are medians over cold caches, as
triton.testing.do_bench takes them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from baselines import RaggedTokens, gather_and_attend, gather_and_max, gather_and_mean
from measuring import assert_agrees
from on_gpu import DTYPE, Comparison, headlines_first
from registry import BOTH, FORWARD
from torch import Tensor

from spanbert_kernels import ops

pytestmark = pytest.mark.gpu
BACKENDS = ("cuda", "triton")


@dataclass(frozen=True)
class SpanLoad:
    """Documents of equal length, and their spans: all up to a width, or `random` many of up to that width."""

    documents: int
    length: int
    max_width: int
    hidden: int = 768
    random: int = 0


WORKLOADS = {
    "16 x 64, all spans <= 10": SpanLoad(16, 64, 10),
    "16 x 256, all spans <= 12": SpanLoad(16, 256, 12),
    "32 x 256, all spans <= 12": SpanLoad(32, 256, 12),
    "100,000 random spans <= 64 of 64 x 512": SpanLoad(64, 512, 64, random=100_000),
    "16 x 512, all spans <= 30, H 1024": SpanLoad(16, 512, 30, hidden=1024),
}
PARTS = {"mean": ["mean"], "max": ["max"], "attention": ["attention"], "start,end": ["start", "end"]}


def inputs(load: SpanLoad) -> tuple[Tensor, Tensor, ops.SpanPlan, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = load.documents * load.length
    hidden = torch.randn(tokens, load.hidden, generator=generator).to("cuda", DTYPE)
    scores = torch.randn(tokens, generator=generator).cuda()
    if not load.random:
        cu_seqlens = torch.arange(load.documents + 1) * load.length
        plan = ops.enumerate_spans(cu_seqlens.cuda(), load.max_width)
        return hidden, plan.pairs(), plan, scores
    width = torch.randint(1, load.max_width + 1, (load.random,), generator=generator)
    within = (torch.rand(load.random, generator=generator) * (load.length - width + 1)).long()
    start = torch.randint(load.documents, (load.random,), generator=generator) * load.length + within
    spans = torch.stack((start, start + width - 1), 1).cuda()
    return hidden, spans, ops.plan_spans(spans, num_tokens=tokens), scores


def chunked(way: Callable[[Tensor, Tensor], Tensor], hidden: Tensor, spans: Tensor, width: int) -> Tensor:
    """In chunks of spans whose gathered tokens take 4 GB at most."""
    rows = max(1, 2**31 // (width * hidden.shape[1]))
    return torch.cat([way(hidden, chunk) for chunk in spans.split(rows)])


def gather_and_concatenate(hidden: Tensor, spans: Tensor) -> Tensor:
    """First and last token, `[N, 2 H]`."""
    return torch.cat((hidden[spans[:, 0]], hidden[spans[:, 1]]), 1)


def plain(parts: str, scores: Tensor) -> tuple[str, Callable[[Tensor, Tensor], Tensor]]:
    """The usual way in eager PyTorch, of tokens and spans, and its name."""
    gathered = {
        "mean": gather_and_mean,
        "max": gather_and_max,
        "attention": lambda hidden, spans: gather_and_attend(hidden, spans, scores.to(hidden.dtype)),
    }
    if parts == "start,end":
        return "gather and concatenate", gather_and_concatenate
    return "gather and reduce", gathered[parts]


def others(parts: str, hidden: Tensor, spans: Tensor, scores: Tensor) -> dict[str, Callable[[], Any]]:
    """What else there is."""
    ragged = RaggedTokens(spans)
    if parts == "start,end":
        return {}
    if parts == "attention":
        return {"embedding_bag": lambda: ragged.bag_weighted(hidden.float(), scores)}
    return {"embedding_bag": lambda: ragged.bag(hidden, parts)}


HEADLINES = ("100,000 random spans <= 64 of 64 x 512", "16 x 512, all spans <= 30, H 1024")


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("name", headlines_first(WORKLOADS, HEADLINES))
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward and backward"])
def test_spans_on_gpu(
    keep_row: Callable[..., None], gpu_ceilings: dict[str, float], name: str, parts: str, backward: bool
) -> None:
    load = WORKLOADS[name]
    hidden, spans, plan, scores = inputs(load)
    columns = load.hidden * len(PARTS[parts])
    grad = torch.randn(len(plan), columns, device="cuda", generator=torch.Generator("cuda").manual_seed(1)).to(DTYPE)
    options = {"scores": scores} if parts == "attention" else {}

    def ours(x: Tensor, backend: str) -> Tensor:
        return ops.span_pool(x, plan, PARTS[parts], backend=backend, **options)

    def result(way: Callable[[Tensor], Tensor], dtype: torch.dtype = DTYPE) -> Tensor:
        leaf = hidden.to(dtype).requires_grad_(backward)
        output = way(leaf)
        return torch.autograd.grad(output, leaf, grad.to(dtype))[0] if backward else output

    def in_chunks(way: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype = DTYPE) -> Tensor:
        """`result`, as the gathered tokens of all spans and their gradients do not fit."""
        rows = max(1, 2**29 // (load.max_width * load.hidden))
        outputs = []
        total = torch.zeros(hidden.shape, dtype=torch.promote_types(dtype, torch.float32), device="cuda")
        for chunk, incoming in zip(spans.split(rows), grad.split(rows), strict=True):
            leaf = hidden.to(dtype).requires_grad_(backward)
            output = way(leaf, chunk)
            if backward:
                total += torch.autograd.grad(output, leaf, incoming.to(dtype))[0]
            else:
                outputs.append(output)
        return total.to(dtype) if backward else torch.cat(outputs)

    def definition(x: Tensor, chunk: Tensor) -> Tensor:
        return ops.span_pool(x, chunk, PARTS[parts], backend="eager", **options)

    reference, eager = in_chunks(definition, torch.float64), in_chunks(definition)
    # Forward: hidden is read, the output written; backward: its gradient is read, that of hidden written.
    passes = 2 if backward else 1
    moved = passes * (hidden.numel() + len(plan) * columns) * hidden.element_size()
    operations = 0 if parts == "start,end" else 2 * passes * len(plan) * load.hidden  # as on a CPU
    axes = {"tokens": len(hidden), "spans": len(plan), "width": load.max_width, "documents": load.documents}
    direction, title = BOTH if backward else FORWARD, f"{parts}, {name}"
    comparison = Comparison("span_pool", title, direction, axes, moved, operations, gpu_ceilings, reference)
    for backend in BACKENDS:
        reason = ops.backends.refusal(backend, "cuda", DTYPE)
        if reason is not None:
            comparison.refuse(backend, "ours", reason)
            continue
        allowed = assert_agrees(result(lambda x, b=backend: ours(x, b)), eager, reference)
        comparison.measure(backend, "ours", lambda b=backend: result(lambda x: ours(x, b)), allowed=allowed)
    del eager
    usual, way = plain(parts, scores)
    if backward:
        comparison.measure(f"{usual}, in chunks", "eager", lambda: in_chunks(way))
    else:
        comparison.measure(usual, "eager", lambda: chunked(way, hidden, spans, load.max_width))
        for peer, take in others(parts, hidden, spans, scores).items():
            comparison.measure(peer, "peer", take)
    keep_row(comparison.row())
