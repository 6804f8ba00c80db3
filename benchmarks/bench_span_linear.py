"""A linear layer with relu over spans, the layer of `bench_span_score` without the second one, result and all.

Where the spans outnumber the tokens the tokens are projected first, where they are fewer pooled spans are multiplied:
both sides of that choice are measured, each against the usual way and the other one.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from baselines import endpoints_and_attention
from bench_span_score import HIDDEN, LENGTH, MAX_WIDTH, PARTS, all_spans, inputs
from conftest import assert_agrees
from torch import Tensor

from spanbert_kernels import ops

EAGER = "pool, then a layer"


@pytest.mark.parametrize("count", [None, 4 * LENGTH, LENGTH, LENGTH // 4])
@torch.inference_mode()
def test_layer(compare: Callable[..., None], count: int | None) -> None:
    """All spans, and random choices of some."""
    hidden, scores, table, weight, bias, _ = inputs()
    spans = all_spans(LENGTH, MAX_WIDTH)
    plan = ops.enumerate_spans(torch.tensor([0, LENGTH]), MAX_WIDTH)
    if count is not None:
        spans = spans[torch.randperm(len(spans), generator=torch.Generator().manual_seed(2))[:count]]
        plan = ops.plan_spans(spans, num_tokens=LENGTH)

    def mine() -> Tensor:
        return ops.span_linear(hidden, plan, PARTS, weight, bias, scores, table, activation="relu")

    def pooled_first() -> Tensor:
        pooled = ops.span_pool(hidden, plan, PARTS, scores, table)
        return F.relu(F.linear(pooled, weight, bias))

    def eager(*tensors: Tensor) -> Tensor:
        first, bias_, *rest = tensors
        return F.relu(F.linear(endpoints_and_attention(*rest[:1], spans, *rest[1:]), first, bias_))

    def usual() -> Tensor:
        return eager(weight, bias, hidden, scores, table)

    exact = eager(*(x.double() for x in (weight, bias, hidden, scores, table)))
    error = assert_agrees(mine(), usual(), exact)
    assert hidden.shape[1] == HIDDEN
    compare(mine, {EAGER: usual, "span_pool, then a layer": pooled_first}, error=error)
