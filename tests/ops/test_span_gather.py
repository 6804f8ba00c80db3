"""span_gather: the shared checks over its table, then what its two forms mean."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from op_checks import Case, OpChecks, Tensors
from pool_cases import pool_inputs, with_plan
from torch import Tensor

from spanbert_kernels.ops import enumerate_spans, plan_spans, span_gather


def gather_by_loop(
    hidden: Tensor, spans: Tensor, *, padded: bool = False, end_inclusive: bool = True
) -> tuple[Tensor, Tensor]:
    rows = hidden.unbind(0)
    nothing = hidden.new_zeros(0, hidden.shape[1]) + 0 * hidden.sum()
    pieces = []
    for start, last in spans.tolist():
        end = last + 1 if end_inclusive else last
        pieces.append(torch.stack(rows[start:end]) if end > start else nothing)
    widths = torch.tensor([len(piece) for piece in pieces], dtype=torch.int64)
    if not padded:
        return torch.cat([nothing, *pieces]), torch.cat([torch.zeros(1, dtype=torch.int64), widths.cumsum(0)])
    width = max((len(piece) for piece in pieces), default=0)
    full = [torch.cat([piece, hidden.new_zeros(width - len(piece), hidden.shape[1])])[None] for piece in pieces]
    return torch.cat([hidden.new_zeros(0, width, hidden.shape[1]) + 0 * hidden.sum(), *full]), torch.arange(
        width
    ) < widths[:, None]


def without_spans(size: int) -> Tensors:
    return {**pool_inputs(size), "spans": torch.zeros(0, 2, dtype=torch.int64)}


def without_tokens(size: int) -> Tensors:
    return {"hidden": torch.zeros(0, 5, dtype=torch.float64), "spans": torch.tensor([[0, -1]] * (2 * size))}


def row(name: str, inputs: object = pool_inputs, planned: bool = False, **options: bool) -> Case:
    call, oracle = partial(span_gather, **options), partial(gather_by_loop, **options)
    arguments = {"arguments": with_plan} if planned else {}
    return Case(name, inputs, call, oracle, twice=("eager",), **arguments)  # type: ignore[arg-type]


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
    )


def test_a_token_receives_the_sum_over_its_spans() -> None:
    hidden = torch.zeros(4, 2, requires_grad=True)
    tokens, _ = span_gather(hidden, torch.tensor([[0, 2], [1, 2], [2, 3], [2, 1]]))
    tokens.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[:, 0].tolist() == [1, 2, 3, 1]


def test_many_overlapping_spans_sum_in_float32() -> None:
    """4096 gradients of one would stop at 256 if they were added in bfloat16."""
    hidden = torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
    span_gather(hidden, torch.zeros(4096, 2, dtype=torch.int64))[0].sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.item() == 4096


def test_padding_holds_zeros_beside_inf_and_nan() -> None:
    hidden = torch.tensor([[torch.nan], [1.0], [torch.inf], [2.0]])
    tokens, mask = span_gather(hidden, torch.tensor([[1, 1], [3, 3], [0, 2]]), padded=True)
    assert mask.tolist() == [[True, False, False], [True, False, False], [True, True, True]]
    assert tokens[:2, :, 0].tolist() == [[1, 0, 0], [2, 0, 0]]


def test_indices_of_both_kinds_and_plans_give_the_same() -> None:
    hidden = torch.randn(7, 3)
    spans = torch.tensor([[4, 6], [0, 0], [3, 2], [1, 5]])
    tokens, offsets = span_gather(hidden, spans)
    assert offsets.tolist() == [0, 3, 4, 4, 9]
    for other in (spans.int(), plan_spans(spans, num_tokens=7)):
        found = span_gather(hidden, other)
        assert torch.equal(found[0], tokens)
        assert torch.equal(found[1], offsets)


def test_enumerated_spans() -> None:
    plan = enumerate_spans(torch.tensor([0, 2, 2, 3]), max_width=2)
    tokens, offsets = span_gather(torch.arange(3.0)[:, None], plan)
    assert tokens[:, 0].tolist() == [0, 0, 1, 1, 2]
    assert offsets.tolist() == [0, 1, 3, 4, 5]


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
    with pytest.raises(ValueError, match="span_gather has no backend 'cpu'; it has eager"):
        span_gather(torch.zeros(3, 2), torch.zeros(1, 2).long(), backend="cpu")
