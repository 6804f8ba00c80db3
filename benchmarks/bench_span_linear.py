"""A linear layer with relu over spans, the layer of `bench_span_score` without the second one, result and all.

Where the spans outnumber the tokens the tokens are projected first, where they are fewer pooled spans are multiplied:
both sides of that choice are measured, each against the usual way and the other one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from baselines import all_spans, endpoints_and_attention
from bench_span_score import HIDDEN, LENGTH, MAX_WIDTH, PARTS, UNITS, layer_inputs
from registry import Inputs, Provider, Suite, Way, Work, Workload, register
from torch import Tensor

from spanbert_kernels import ops

EAGER = "pool, then a layer"


def inputs(workload: Workload, dtype: torch.dtype) -> Inputs:
    """All spans, or a random choice of some."""
    spans, count = all_spans(LENGTH, MAX_WIDTH), workload.options.get("spans")
    plan = ops.enumerate_spans(torch.tensor([0, LENGTH]), MAX_WIDTH)
    if count is not None:
        spans = spans[torch.randperm(len(spans), generator=torch.Generator().manual_seed(2))[:count]]
        plan = ops.plan_spans(spans, num_tokens=LENGTH)
    return Inputs(layer_inputs(dtype)[:-1], {"spans": spans, "plan": plan})


def work(workload: Workload, inputs: Inputs) -> Work:
    spans = len(inputs.given["spans"])
    numbers = sum(leaf.numel() for leaf in inputs.leaves) + spans * UNITS
    products = 2 * 3 * min(LENGTH, spans) * HIDDEN * UNITS
    return Work({"tokens": LENGTH, "spans": spans}, numbers * inputs.leaves[0].element_size(), products)


def ours(workload: Workload, inputs: Inputs) -> Way:
    plan = inputs.given["plan"]
    return lambda h, s, t, weight, bias: ops.span_linear(h, plan, PARTS, weight, bias, s, t, activation="relu")


def pooled_first(workload: Workload, inputs: Inputs) -> Way:
    plan = inputs.given["plan"]
    return lambda h, s, t, weight, bias: F.relu(F.linear(ops.span_pool(h, plan, PARTS, s, t), weight, bias))


def eager(workload: Workload, inputs: Inputs) -> Way:
    spans = inputs.given["spans"]

    def way(hidden: Tensor, scores: Tensor, table: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.relu(F.linear(endpoints_and_attention(hidden, spans, scores, table), weight, bias))

    return way


SUITE = register(
    Suite(
        "span_linear",
        (
            Workload("all spans up to 30 of 512"),
            *(Workload(f"{n:,} of the spans", options={"spans": n}, quick=n == LENGTH) for n in (2048, 512, 128)),
        ),
        {
            "ours": Provider(ours, "ours"),
            EAGER: Provider(eager, "eager"),
            "ours, span_pool then a layer": Provider(pooled_first),
        },
        inputs,
        work,
        reference=EAGER,
    )
)


def test_row(record: Callable[..., None], workload: Workload) -> None:
    record(workload)
