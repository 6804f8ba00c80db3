"""Span plans: what they hold, and what they refuse."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pool_cases import buckets, enumerated_by_loop
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from spanbert_kernels.ops import (
    SpanPlan,
    backends,
    enumerate_spans,
    plan_attention,
    plan_spans,
    span_gather,
    span_linear,
    span_pool,
    span_score,
    spans_to_limits,
)
from spanbert_kernels.ops.plans import width_index, work_for

small = settings(deadline=None, derandomize=True, max_examples=50)
pairs = st.lists(st.tuples(st.integers(0, 9), st.integers(-1, 9)), max_size=12)


@small
@given(pairs)
def test_a_plan_is_sorted_and_keeps_the_spans_in_their_rows(spans: list[tuple[int, int]]) -> None:
    tensor = torch.tensor(spans, dtype=torch.int64).view(-1, 2)
    plan = plan_spans(tensor, num_tokens=10)
    assert len(plan) == plan.num_spans == len(spans)
    assert plan.starts is not None
    assert plan.ends is not None
    assert plan.rows is not None
    order = list(zip(plan.starts.tolist(), plan.ends.tolist(), strict=True))
    assert order == sorted(order)
    assert sorted(plan.rows.tolist()) == list(range(len(spans)))
    assert plan.max_width == max([0, *(last + 1 - start for start, last in spans)])
    start, end = plan.bounds()
    for n, (first, last) in enumerate(spans):
        if last >= first:
            assert (int(start[n]), int(end[n])) == (first, last + 1)
        else:
            assert int(start[n]) == int(end[n]), "an empty span stays empty"
    assert torch.equal(plan.pairs(), torch.stack([start, end - 1], 1))


@small
@given(st.lists(st.integers(0, 6), max_size=5), st.integers(1, 8), st.sampled_from([torch.int32, torch.int64]))
def test_enumerated_spans_in_order(lengths: list[int], max_width: int, dtype: torch.dtype) -> None:
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(dtype)
    plan = enumerate_spans(cu_seqlens, max_width)
    expected = enumerated_by_loop(cu_seqlens, max_width)
    assert torch.equal(plan.pairs(), expected)
    assert plan.num_spans == len(expected)
    assert plan.num_tokens == sum(lengths)
    assert plan.max_width == min(max_width, max(lengths, default=0))


def test_equal_spans_keep_their_order() -> None:
    plan = plan_spans(torch.tensor([[1, 2], [0, 0], [1, 2], [1, 2]]))
    assert plan.rows is not None
    assert plan.rows.tolist() == [1, 0, 2, 3]
    assert plan.num_tokens == 3


def test_both_ends_and_both_kinds_of_indices() -> None:
    spans = torch.tensor([[4, 6], [0, 1]])
    expected = plan_spans(spans)
    for other in (plan_spans(spans.int()), plan_spans(spans + torch.tensor([0, 1]), end_inclusive=False)):
        assert torch.equal(other.pairs(), expected.pairs())
        assert other.num_tokens == expected.num_tokens == 7


def test_no_spans() -> None:
    plan = plan_spans(torch.zeros(0, 2, dtype=torch.int32), num_tokens=4)
    assert (len(plan), plan.num_tokens, plan.max_width) == (0, 4, 0)
    assert plan.pairs().shape == (0, 2)


def test_a_plan_does_not_follow_its_tensors() -> None:
    spans, cu_seqlens = torch.tensor([[0, 1], [2, 3]]), torch.tensor([0, 2, 4])
    plan, enumerated = plan_spans(spans), enumerate_spans(cu_seqlens, 2)
    before = plan.pairs(), enumerated.pairs()
    spans.fill_(0)
    cu_seqlens.fill_(0)
    assert torch.equal(plan.pairs(), before[0])
    assert torch.equal(enumerated.pairs(), before[1])


@pytest.mark.parametrize(
    ("error", "text", "spans", "options"),
    [
        (TypeError, "spans must be int32 or int64, got torch.float32", torch.zeros(1, 2), {}),
        (TypeError, "spans must be a tensor .* got list", [[0, 1]], {}),
        (ValueError, r"spans must have shape \[N, 2\], got \[1, 3\]", torch.zeros(1, 3).long(), {}),
        (
            ValueError,
            "span 1 covers tokens 2 to 5, but hidden has 5",
            torch.tensor([[0, 0], [2, 5]]),
            {"num_tokens": 5},
        ),
        (ValueError, "span 0 covers tokens -2 to 1", torch.tensor([[-2, 1]]), {}),
        (ValueError, "num_tokens must be at least 0, got -1", torch.tensor([[0, -1]]), {"num_tokens": -1}),
    ],
)
def test_bad_spans(error: type[Exception], text: str, spans: torch.Tensor, options: dict[str, Any]) -> None:
    with pytest.raises(error, match=text):
        plan_spans(spans, **options)


@pytest.mark.parametrize(
    ("error", "text", "cu_seqlens", "max_width"),
    [
        (ValueError, "max_width must be at least 1, got 0", torch.tensor([0, 2]), 0),
        (ValueError, r"cu_seqlens\[2\] = 1 comes after 3", torch.tensor([0, 3, 1]), 2),
        (ValueError, "cu_seqlens must start with 0, got 1", torch.tensor([1, 3]), 2),
        (ValueError, "cu_seqlens must hold at least one offset", torch.zeros(0).long(), 2),
        (ValueError, r"cu_seqlens must have shape .* got \[1, 2\]", torch.tensor([[0, 3]]), 2),
        (TypeError, "cu_seqlens must be int32 or int64, got torch.uint8", torch.tensor([0, 3]).byte(), 2),
    ],
)
def test_bad_offsets(error: type[Exception], text: str, cu_seqlens: torch.Tensor, max_width: int) -> None:
    with pytest.raises(error, match=text):
        enumerate_spans(cu_seqlens, max_width)


def test_width_index() -> None:
    widths = torch.tensor([0, 1, 2, 3, 9])
    assert width_index(widths, 3, None).tolist() == [0, 0, 1, 2, 2]
    assert width_index(widths, 4, buckets).tolist() == [0, 0, 1, 2, 3]


def test_lists_made_under_inference_serve_training_and_a_changed_plan_makes_its_own() -> None:
    for plan in (plan_spans(torch.tensor([[2, 3], [0, 1]])), enumerate_spans(torch.tensor([0, 4]), 2)):
        with torch.inference_mode():
            work, bounds = plan.device_work(), plan.bounds()
        assert plan.device_work() is work
        assert plan.bounds() is bounds
        assert not any(tensor.is_inference() for tensor in (*work[:6], *bounds) if tensor is not None)
    changed = dataclasses.replace(plan, cu_seqlens=torch.tensor([0, 1, 4]), num_spans=6)
    assert changed.bounds()[0].tolist() == [0, 1, 1, 2, 2, 3]


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_a_plan_made_under_inference_serves_training(backend: str) -> None:
    """Also one of spans that are inference tensors themselves, and one of none."""
    if backends.refusal(backend, "cpu", torch.float32) is not None:
        pytest.skip("no compiled kernels here")

    def make() -> list[SpanPlan]:
        spans, none = torch.tensor([[2, 3], [0, 1], [1, 0]]), torch.zeros(0, 2, dtype=torch.int64)
        return [plan_spans(spans), enumerate_spans(torch.tensor([0, 4]), 2), plan_spans(none, num_tokens=4)]

    with torch.inference_mode():
        plans = make()
    for plan, expected in zip(plans, make(), strict=True):
        held = [tensor for tensor in vars(plan).values() if isinstance(tensor, torch.Tensor)]
        assert held
        assert not any(tensor.is_inference() for tensor in held)
        grads = []
        for each in (plan, expected):
            hidden, scores = torch.ones(4, 2, requires_grad=True), torch.zeros(4, requires_grad=True)
            pooled = span_pool(hidden, each, ["max", "mean", "attention"], scores=scores, backend=backend)
            gathered, _ = span_gather(hidden, each, backend=backend)
            linear = span_linear(hidden, each, ["mean"], torch.ones(3, 2), backend=backend)
            scored = span_score(hidden, each, ["end"], torch.ones(3, 2), None, torch.ones(3), backend=backend)
            (pooled.sum() + gathered.sum() + linear.sum() + scored.sum()).backward()
            assert hidden.grad is not None
            grads.append(hidden.grad)
        assert torch.equal(*grads)


def test_work_lists_find_the_spans_of_every_token() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(0, 20, (60,), generator=generator)
    end = (start + torch.randint(0, 7, (60,), generator=generator)).clamp(max=20)
    for spans in (plan_spans(torch.stack([start, end], 1), num_tokens=20, end_inclusive=False), (start, end)):
        work = work_for(spans, "triton", 20)
        assert work.starts is not None
        assert work.ends is not None
        assert work.first is not None
        assert work.reach is not None
        for token in range(20):
            held = ((work.starts <= token) & (token < work.ends)).nonzero()[:, 0].tolist()
            assert all(int(work.reach[token]) <= i < int(work.first[token + 1]) for i in held)
            assert not held or held[0] == int(work.reach[token])


@small
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12)), max_size=8), st.sampled_from([None, 1, 3]))
def test_spans_from_starts_to_limits(given: list[tuple[int, int]], max_width: int | None) -> None:
    """Start by start in the order given, narrowest first; the plan sorts for itself."""
    starts, limits = torch.tensor(given, dtype=torch.int64).view(-1, 2).unbind(1)
    plan = spans_to_limits(starts, limits.int(), max_width=max_width, num_tokens=12)
    expected = [
        [start, end - 1]
        for start, limit in given
        for end in range(start + 1, min(limit, start + (max_width or 99)) + 1)
    ]
    assert plan.pairs().tolist() == expected
    assert plan.num_tokens == 12
    assert plan.max_width == max([0, *(last + 1 - start for start, last in expected)])
    hidden = torch.arange(12.0)[:, None]
    assert span_pool(hidden, plan, ["end"])[:, 0].tolist() == [last for _, last in expected]


def test_limits_that_leave_the_tokens() -> None:
    with pytest.raises(ValueError, match=r"limits\[1\] is 4, but there are 3 tokens"):
        spans_to_limits(torch.tensor([1, 1]), torch.tensor([2, 4]), num_tokens=3)
    with pytest.raises(ValueError, match=r"starts\[0\] is 5, but there are 4 tokens"):
        spans_to_limits(torch.tensor([5]), torch.tensor([4]))
    with pytest.raises(ValueError, match="limits must have one entry for each of the 2 starts, got 1"):
        spans_to_limits(torch.tensor([1, 2]), torch.tensor([4]))
    with pytest.raises(ValueError, match=r"the number of spans must be at most \d+, got 4000000000"):
        spans_to_limits(torch.zeros(2, dtype=torch.int64), torch.tensor([2 * 10**9] * 2))


def test_spans_that_do_not_count_have_no_token() -> None:
    """Whatever their numbers are: padding of any kind."""
    spans, mask = torch.tensor([[1, 2], [99, -7], [-1, -1], [0, 0]]), torch.tensor([True, False, False, True])
    plan = plan_spans(spans, num_tokens=3, mask=mask)
    hidden = torch.tensor([[1.0], [2.0], [4.0]])
    for taken in ({"spans": plan}, {"spans": spans, "mask": mask}):
        assert span_pool(hidden, parts=["sum"], **taken)[:, 0].tolist() == [6, 0, 0, 1]  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mask is for a span tensor: give it to plan_spans"):
        span_pool(hidden, plan, ["sum"], mask=mask)
    with pytest.raises(TypeError, match=r"mask must be bool, got torch\.int64"):
        plan_spans(spans, mask=mask.long())
    with pytest.raises(ValueError, match=r"mask must have one entry for each of the 4 spans, got \[3\]"):
        plan_spans(spans, mask=mask[1:])


def enumerated(offsets: Tensor) -> Any:
    return enumerate_spans(offsets, 2)


def to_limits(limits: Tensor) -> Any:
    return spans_to_limits(torch.tensor([0, 1]), limits)


PLANNERS = {
    "enumerate_spans": (enumerated, torch.tensor([0, 2, 3])),
    "plan_spans": (plan_spans, torch.tensor([[0, 1], [1, 2]])),
    "plan_attention": (plan_attention, torch.tensor([0, 2, 3])),
    "spans_to_limits": (to_limits, torch.tensor([1, 3])),
}


@pytest.mark.parametrize("name", PLANNERS)
def test_where_nothing_can_be_read_it_says_where_to_plan(name: str) -> None:
    plan, values = PLANNERS[name]
    outside = "call this before and outside of it, and hand the result in"
    with pytest.raises(TypeError, match=rf"is a batch of torch\.func\.vmap, of which no values can be read: {outside}"):
        torch.func.vmap(plan)(torch.stack([values, values]))
    with FakeTensorMode() as mode, pytest.raises(TypeError, match=f"is a fake tensor, .*: {outside}"):
        plan(mode.from_tensor(values))

    def pooled(hidden: Tensor, values: Tensor) -> Tensor:
        return hidden * plan(values).num_tokens

    torch._dynamo.reset()
    hidden = torch.ones(3, 2)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=f"{name} reads values on the host, .*: {outside}"):
        torch.compile(pooled, backend="eager", fullgraph=True)(hidden, values)
    assert torch.equal(torch.compile(pooled, backend="eager")(hidden, values), 3 * hidden)
    jacobian = torch.func.jacrev(lambda hidden: pooled(hidden, values))(hidden)
    assert torch.equal(jacobian.view(6, 6), 3 * torch.eye(6))
