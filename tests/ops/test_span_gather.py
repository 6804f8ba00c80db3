"""span_gather: the shared checks over its table, then what its two forms mean."""

from __future__ import annotations

import sys
from functools import partial

import places
import pytest
import torch
from gather_cases import gather_by_loop
from op_checks import Case, OpChecks, Tensors, place_parameters
from pool_cases import pool_inputs, with_plan
from torch import Tensor

from spanbert_kernels.ops import SpanPlan, backends, enumerate_spans, plan_spans, span_gather

on_every_backend = pytest.mark.parametrize(
    "backend", place_parameters(backends._registry["span_gather"]), indirect=True
)


def here(tensor: Tensor) -> Tensor:
    """The tensor where the backend under test works."""
    return tensor.to(places.current.device)


def without_spans(size: int) -> Tensors:
    return {**pool_inputs(size), "spans": torch.zeros(0, 2, dtype=torch.int64)}


def without_tokens(size: int) -> Tensors:
    return {"hidden": torch.zeros(0, 5, dtype=torch.float64), "spans": torch.tensor([[0, -1]] * (2 * size))}


def row(
    name: str, inputs: object = pool_inputs, *, planned: bool = False, large: bool = False, **options: bool
) -> Case:
    call, oracle = partial(span_gather, **options), partial(gather_by_loop, **options)
    arguments = {"arguments": with_plan} if planned else {}
    twice = ("cuda", "triton", "cpu", "eager")
    return Case(name, inputs, call, oracle, twice=twice, large=large, **arguments)  # type: ignore[arg-type]


class TestShared(OpChecks):
    operation = "span_gather"
    cases = (
        row("packed"),
        row("padded", padded=True),
        row("half-open", end_inclusive=False),
        row("plan", planned=True),
        row("padded plan", planned=True, padded=True),
        row("no spans", without_spans),
        row("no spans, padded", without_spans, padded=True),
        row("no tokens", without_tokens),
        row("no tokens, padded", without_tokens, padded=True),
        # Two blocks of columns with a rest, spans of several tiles, tokens that many spans hold.
        row("large", partial(pool_inputs, tokens=24, columns=260, spans=20, width=22), large=True),
    )


@on_every_backend
def test_a_token_receives_the_sum_over_its_spans(backend: str) -> None:
    hidden = here(torch.zeros(4, 2)).requires_grad_()
    tokens, _ = span_gather(hidden, here(torch.tensor([[0, 2], [1, 2], [2, 3], [2, 1]])), backend=backend)
    tokens.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[:, 0].tolist() == [1, 2, 3, 1]


@on_every_backend
def test_many_overlapping_spans_sum_in_float32(backend: str) -> None:
    """4096 gradients of one would stop at 256 if they were added in bfloat16."""
    hidden = here(torch.zeros(1, 1, dtype=torch.bfloat16)).requires_grad_()
    span_gather(hidden, here(torch.zeros(4096, 2, dtype=torch.int64)), backend=backend)[0].sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.item() == 4096


@on_every_backend
def test_padding_holds_zeros_beside_inf_and_nan(backend: str) -> None:
    hidden = here(torch.tensor([[torch.nan], [1.0], [torch.inf], [2.0]]))
    spans = here(torch.tensor([[1, 1], [3, 3], [0, 2]]))
    tokens, mask = span_gather(hidden, spans, padded=True, backend=backend)
    assert mask.tolist() == [[True, False, False], [True, False, False], [True, True, True]]
    assert tokens[:2, :, 0].tolist() == [[1, 0, 0], [2, 0, 0]]


@on_every_backend
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_gradient_stays_with_its_tokens(backend: str, bad: float) -> None:
    """Token 2 lies between spans that hold others, token 3 in no span at all."""
    hidden = here(torch.ones(5, 3)).requires_grad_()
    spans = here(torch.tensor([[0, 1], [2, 2], [1, 2], [4, 4]]))
    tokens, _ = span_gather(hidden, spans, backend=backend)
    grad = torch.ones(6, 3)
    grad[[0, 5]] = bad
    tokens.backward(here(grad))
    assert hidden.grad is not None
    assert hidden.grad[1:4, 0].tolist() == [2, 2, 0]
    assert not hidden.grad[[0, 4]].isfinite().any()


@on_every_backend
def test_indices_of_both_kinds_and_plans_give_the_same(backend: str) -> None:
    hidden = here(torch.randn(7, 3))
    spans = here(torch.tensor([[4, 6], [0, 0], [3, 2], [1, 5]]))
    tokens, offsets = span_gather(hidden, spans, backend=backend)
    assert offsets.tolist() == [0, 3, 4, 4, 9]
    assert torch.equal(tokens, hidden[[4, 5, 6, 0, 1, 2, 3, 4, 5]])
    for other in (spans.int(), plan_spans(spans, num_tokens=7)):
        found = span_gather(hidden, other, backend=backend)
        assert torch.equal(found[0], tokens)
        assert torch.equal(found[1], offsets)


@on_every_backend
@pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])
def test_a_plan_knows_the_sizes(backend: str, padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans of both kinds give what their pairs give, without a look at values on the host."""
    hidden = here(torch.randn(8, 3))
    spans = here(torch.tensor([[4, 6], [0, 0], [3, 2], [1, 5], [4, 6]]))
    cu_seqlens = here(torch.tensor([0, 5, 5, 6, 8]))
    plans: list[SpanPlan] = [plan_spans(spans, num_tokens=8), *(enumerate_spans(cu_seqlens, w) for w in (1, 3, 9))]
    expected = [span_gather(hidden, plan.pairs(), padded=padded, backend=backend) for plan in plans]

    def look(widths: Tensor) -> tuple[int, int]:
        raise AssertionError("a plan has the sizes")

    monkeypatch.setattr(sys.modules["spanbert_kernels.ops.span_gather"], "_read_sizes", look)
    for plan, (tokens, rest) in zip(plans, expected, strict=True):
        leaf = hidden.clone().requires_grad_()
        found = span_gather(leaf, plan, padded=padded, backend=backend)
        assert torch.equal(found[0], tokens)
        assert torch.equal(found[1], rest)
        found[0].sum().backward()
        assert leaf.grad is not None
        (start, end), token = plan.bounds(), here(torch.arange(8))[:, None]
        assert torch.equal(leaf.grad[:, 0], ((start <= token) & (token < end)).sum(1).to(leaf.grad))


def test_same_bits_for_any_number_of_threads() -> None:
    """Several tasks of rows, of token ranges and of columns; a few tokens hold most of the spans."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(0, 380, (3000,), generator=generator)
    start[:1500] = 7
    spans = torch.stack([start, start + torch.randint(0, 20, (3000,), generator=generator)], 1)
    hidden, plan = torch.randn(400, 300, generator=generator), plan_spans(spans, num_tokens=400)
    incoming = torch.randn(plan.total_width, 300, generator=generator)

    def run(threads: int, work: Tensor | SpanPlan) -> tuple[Tensor, Tensor]:
        torch.set_num_threads(threads)
        leaf = hidden.clone().requires_grad_()
        tokens, _ = span_gather(leaf, work, backend="cpu")
        return tokens.detach(), torch.autograd.grad(tokens, leaf, incoming)[0]

    tokens, grad = run(1, spans)
    exact = torch.zeros(400, 300, dtype=torch.float64)
    token = torch.cat([torch.arange(first, last + 1) for first, last in spans.tolist()])
    assert torch.equal(tokens, hidden[token])
    torch.testing.assert_close(grad.double(), exact.index_add(0, token, incoming.double()), rtol=1e-5, atol=1e-4)
    for threads, work in ((2, spans), (3, spans), (2, plan)):
        again = run(threads, work)
        assert torch.equal(again[0], tokens)
        assert torch.equal(again[1], grad)


def test_a_span_outside_the_tokens_is_empty_where_values_are_not_looked_at() -> None:
    hidden = torch.randn(4, 2)
    spans = torch.tensor([[3, 4], [0, 1], [-1, 1], [3, 3]])
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        tokens, offsets = torch.compile(span_gather, fullgraph=True, backend="eager")(hidden, spans, backend="cpu")
    assert offsets.tolist() == [0, 0, 2, 2, 3]
    assert torch.equal(tokens, hidden[[0, 1, 3]])


@pytest.mark.parametrize(
    ("error", "text", "hidden", "spans"),
    [
        (ValueError, r"hidden must have shape \[T, H\], got \[3\]", torch.zeros(3), torch.zeros(1, 2).long()),
        (
            TypeError,
            "hidden must be floating point, got torch.int64",
            torch.zeros(3, 2).long(),
            torch.zeros(1, 2).long(),
        ),
        (TypeError, "hidden must be a tensor .* got list", [[1.0]], torch.zeros(1, 2).long()),
        (TypeError, "spans must be int32 or int64, got torch.float32", torch.zeros(3, 2), torch.zeros(1, 2)),
        (ValueError, r"spans must have shape \[N, 2\], got \[1, 3\]", torch.zeros(3, 2), torch.zeros(1, 3).long()),
        (
            TypeError,
            "spans is on meta, but hidden is on cpu",
            torch.zeros(3, 2),
            torch.zeros(1, 2, device="meta").long(),
        ),
        (
            ValueError,
            "span 1 covers tokens 2 to 3, but hidden has 3",
            torch.zeros(3, 2),
            torch.tensor([[0, 0], [2, 3]]),
        ),
        (
            ValueError,
            "span 0 covers tokens -1 to 0, but hidden has 3",
            torch.zeros(3, 2),
            torch.tensor([[-1, 0], [2, 9]]),
        ),
    ],
)
def test_bad_arguments(error: type[Exception], text: str, hidden: Tensor, spans: Tensor) -> None:
    with pytest.raises(error, match=text):
        span_gather(hidden, spans)


def test_a_backend_that_it_lacks() -> None:
    with pytest.raises(ValueError, match=r"span_gather has no backend 'abacus'; it has .*cpu, eager"):
        span_gather(torch.zeros(3, 2), torch.zeros(1, 2).long(), backend="abacus")
