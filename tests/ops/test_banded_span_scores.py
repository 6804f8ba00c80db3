"""banded_span_scores: the shared checks over its table, then the band's edges."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from banded_cases import RANK_ONE, call, oracle, scores_by_loop
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import Case, OpChecks, Tensors
from torch import Tensor

from spanbert_kernels.ops import backends, banded_span_scores


def inputs(
    size: int,
    *,
    lengths: tuple[int, ...] | None = None,
    columns: tuple[int, int] = (5, 5),
    weighted: bool = True,
    tokens: int = 11,
    rank_one: tuple[str, ...] = (),
) -> Tensors:
    generator = torch.Generator().manual_seed(size)
    tokens = sum(lengths) * size if lengths else tokens * size
    shapes = {"start": (tokens, columns[0]), "end": (tokens, columns[1])}
    shapes |= {"weight": columns} if weighted else {}
    shapes |= {name: (1,) if name == "bias" else (tokens,) for name in rank_one}
    tensors = {n: torch.randn(shape, generator=generator, dtype=torch.float64) for n, shape in shapes.items()}
    if weighted:
        # Else the scores of equal columns are a small difference of large terms, which leaves the rule no scale.
        tensors["weight"] += 1
    if lengths:
        tensors["cu_seqlens"] = torch.tensor([0, *lengths]).cumsum(0) * size
    return tensors


def largest_terms(tensors: Tensors, gradients: Tensors, grads: list[Tensor]) -> dict[str, float]:
    """The gradients of weight and bias are sums over all spans, which may all but cancel: of equal columns, or of the
    incoming gradients themselves.
    """
    term, found = grads[0].abs().max(), {}
    if "weight" in tensors:
        weight = term * tensors["start"].abs().max() * tensors["end"].abs().max()
        found["weight"] = float(torch.maximum(weight, gradients["weight"].abs().max()))
    if "bias" in tensors:
        found["bias"] = float(torch.maximum(term, gradients["bias"].abs().max()))
    return found


def row(name: str, max_width: int = 3, *, large: bool = False, **shapes: Any) -> Case:
    return Case(
        name,
        partial(inputs, **shapes),
        partial(call, max_width=max_width),
        partial(oracle, max_width=max_width),
        twice=("eager",),
        terms=largest_terms,
        compiled=("eager",) if name == "documents" else (),
        large=large,
    )


class TestShared(OpChecks):
    operation = "banded_span_scores"
    cases = (
        row("one document"),
        row("documents", lengths=(4, 0, 1, 6)),
        row("no weight", weighted=False),
        row("rectangular weight", columns=(4, 7), lengths=(5, 3)),
        row("width 1", 1),
        row("wider than the tokens", 50, tokens=4),
        row("documents of one token", 2, lengths=(1,) * 9),
        # Several blocks of tokens, with a rest, and a band wider than the smallest block.
        row("blocks", 9, tokens=70, lengths=(50, 20), large=True),
        row("wide band", 40, tokens=90, large=True),
        row("with a number for each token", lengths=(4, 0, 7), rank_one=RANK_ONE),
    )


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 45), max_size=4),
    max_width=st.integers(1, 50),
    columns=st.integers(1, 5),
    weighted=st.booleans(),
    rank_one=st.sets(st.sampled_from(RANK_ONE)),
)
def test_against_the_loop(lengths: list[int], max_width: int, columns: int, weighted: bool, rank_one: set[str]) -> None:
    generator = torch.Generator().manual_seed(0)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
    start, end = torch.randn(2, sum(lengths), columns, dtype=torch.float64, generator=generator)
    weight = torch.randn(columns, columns, dtype=torch.float64, generator=generator) if weighted else None
    options = {
        name: torch.randn(1 if name == "bias" else len(start), generator=generator).double() for name in rank_one
    }
    found = banded_span_scores(start, end, weight, max_width, cu_seqlens, **options)
    torch.testing.assert_close(found, scores_by_loop(start, end, weight, cu_seqlens, max_width=max_width, **options))


def test_no_tokens() -> None:
    start, end = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, 3, requires_grad=True)
    for cu_seqlens in (None, torch.tensor([0]), torch.tensor([0, 0])):
        scores = banded_span_scores(start, end, torch.zeros(3, 3), 4, cu_seqlens)
        assert scores.shape == (0, 4)
        (gradient,) = torch.autograd.grad(scores.sum(), start)
        assert gradient.shape == (0, 3)


def test_no_columns() -> None:
    scores = banded_span_scores(torch.zeros(3, 0), torch.zeros(3, 0), None, 2)
    assert scores.tolist() == [[0, 0], [0, 0], [0, -torch.inf]]


def test_spans_outside_the_document_score_minus_infinity_and_gradients_stay_finite() -> None:
    start, end, weight = (torch.randn(*shape, requires_grad=True) for shape in ((6, 3), (6, 3), (3, 3)))
    scores = banded_span_scores(start, end, weight, 3, torch.tensor([0, 2, 6]))
    outside = [(0, 2), (1, 1), (1, 2), (4, 2), (5, 1), (5, 2)]
    assert (scores == -torch.inf).nonzero().tolist() == [list(place) for place in outside]
    # As a user would train with them: a softmax over the row, and over all.
    (scores.softmax(1)[:, 0].sum() + scores.flatten().logsumexp(0)).backward()
    for leaf in (start, end, weight):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert leaf.grad.abs().sum() > 0


def test_what_comes_in_outside_the_document_is_not_read() -> None:
    start, end = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    scores = banded_span_scores(start, end, None, 2, torch.tensor([0, 2, 4]))
    grad = torch.ones(4, 2)
    expected = torch.autograd.grad(scores, (start, end), grad, retain_graph=True)
    grad[scores == -torch.inf] = torch.nan
    for a, b in zip(torch.autograd.grad(scores, (start, end), grad), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("side", ["start", "end"])
def test_beside_inf_and_nan(side: str, value: float) -> None:
    """One bad number, in a document between others: what does not use it has the results of a run without it."""
    bounds, width = torch.tensor([0, 4, 7, 40]), 3
    clean = {name: torch.randn(40, 4, generator=torch.Generator().manual_seed(i)) for i, name in enumerate(("s", "e"))}
    dirty = {name: tensor.clone() for name, tensor in clean.items()}
    dirty["s" if side == "start" else "e"][5, 1] = value
    grad = torch.randn(40, width)

    def run(tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
        leaves = [tensor.clone().requires_grad_() for tensor in tensors.values()]
        scores = banded_span_scores(*leaves, None, width, bounds)
        return scores, *torch.autograd.grad(scores, leaves, grad)

    (scores, *grads), (expected, *expected_grads) = run(dirty), run(clean)
    spans = [(5, 0), (5, 1)] if side == "start" else [(5, 0), (4, 1)]
    for t, w in spans:
        assert not scores[t, w].isfinite()
        scores[t, w] = expected[t, w]
    assert torch.equal(scores, expected)
    # Its partners: the ends 5 and 6 of start 5, or the starts 4 and 5 of end 5: 3 and 7 are in other documents.
    grad_of_bad, grad_of_partner = grads if side == "start" else reversed(grads)
    expected_bad, expected_partner = expected_grads if side == "start" else reversed(expected_grads)
    partners = [5, 6] if side == "start" else [4, 5]
    assert (~grad_of_partner.isfinite()).nonzero().tolist() == [[t, 1] for t in partners]
    grad_of_partner[partners] = expected_partner[partners]
    assert torch.equal(grad_of_partner, expected_partner)
    assert torch.equal(grad_of_bad, expected_bad)


def test_a_gradient_of_inf_reaches_its_own_tokens_alone() -> None:
    start, end = (torch.randn(40, 3, requires_grad=True) for _ in range(2))
    grad = torch.ones(40, 3)
    grad[7, 2] = torch.inf
    scores = banded_span_scores(start, end, None, 3)
    for gradient, token in zip(torch.autograd.grad(scores, (start, end), grad), (7, 9), strict=True):
        assert (~gradient.isfinite()).any(1).nonzero().tolist() == [[token]]


def test_sums_are_in_float32() -> None:
    """4096 products of one would stop at 256 if they were added in bfloat16."""
    start, end = (torch.ones(3, 4096, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    assert banded_span_scores(start, end, None, 1).flatten().tolist() == [4096.0] * 3
    # What stands between the two products is not rounded: 257 - 256, where bfloat16 has no 257.
    weight = torch.tensor([[256.0, -256.0], [1.0, 0.0]], dtype=torch.bfloat16)
    one = torch.ones(1, 2, dtype=torch.bfloat16)
    assert banded_span_scores(one, one, weight, 1).item() == 1
    # A token is the start of 300 spans.
    start, end = (torch.ones(600, 1, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    banded_span_scores(start, end, None, 300).sum().backward()
    assert start.grad is not None
    assert start.grad[0].item() == 300


def test_memory_of_the_product_is_the_bands() -> None:
    """No tensor of a call, forward or backward, comes near tokens x tokens."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            results = out if isinstance(out, tuple | list) else (out,)
            for result in results:
                if isinstance(result, Tensor):
                    largest = max(largest, result.untyped_storage().nbytes() // result.element_size())
            return out

    tokens, width, columns = 4000, 10, 8
    start, end = (torch.randn(tokens, columns, requires_grad=True) for _ in range(2))
    with Watch():
        banded_span_scores(start, end, None, width).exp().sum().backward()
    assert tokens * width <= largest <= tokens * (32 + width + columns), largest


def test_what_ran_is_recorded() -> None:
    with backends.record() as calls:
        banded_span_scores(torch.ones(2, 1), torch.ones(2, 1), None, 1)
    assert calls == [("banded_span_scores", "eager")]


def test_one_side_alone_and_a_start_that_is_ruled_out() -> None:
    numbers = torch.tensor([1.0, -torch.inf, 3.0], requires_grad=True)
    scores = banded_span_scores(None, None, None, 2, start_scores=numbers)
    assert scores.tolist() == [[1, 1], [-torch.inf, -torch.inf], [3, -torch.inf]]
    scores[0].logsumexp(0).backward()
    assert numbers.grad is not None
    assert numbers.grad.tolist() == [1, 0, 0]
    ends = banded_span_scores(None, None, None, 2, end_scores=numbers.detach(), bias=torch.tensor([0.5]))
    assert ends.tolist() == [[1.5, -torch.inf], [-torch.inf, 3.5], [3.5, -torch.inf]]


ONE = torch.ones(3, 2)


@pytest.mark.parametrize(
    ("error", "text", "arguments"),
    [
        (TypeError, "start must be floating point, got torch.int64", {"start": ONE.long()}),
        (TypeError, "end is torch.float64, but start is torch.float32", {"end": ONE.double()}),
        (TypeError, "end is on meta, but start is on cpu", {"end": ONE.to("meta")}),
        (TypeError, "weight must be a tensor", {"weight": 1.0}),
        (TypeError, "weight is torch.float64, but start is torch.float32", {"weight": torch.ones(2, 2).double()}),
        (TypeError, "cu_seqlens must be int32 or int64", {"cu_seqlens": torch.tensor([0.0, 3.0])}),
        (ValueError, r"start must have shape \[T, H1\], got \[2\]", {"start": torch.ones(2)}),
        (ValueError, r"end must have the 3 tokens of start, got \[2, 2\]", {"end": ONE[:2]}),
        (ValueError, "end must have the 2 columns of start, got 4", {"end": torch.ones(3, 4)}),
        (ValueError, r"weight must be \[2, 2\], got \[2, 3\]", {"weight": torch.ones(2, 3)}),
        (ValueError, "start and end come together", {"end": None}),
        (ValueError, "there is nothing to add", {"start": None, "end": None}),
        (ValueError, "weight stands between", {"start": None, "end": None, "start_scores": ONE[:, 0], "weight": ONE}),
        (ValueError, "start_scores must hold one number for each of 3 tokens, got 2", {"start_scores": ONE[0]}),
        (TypeError, "end_scores is torch.float64, but start is torch.float32", {"end_scores": ONE[:, 0].double()}),
        (ValueError, r"bias must be one number, \[\] or \[1\], got \[2\]", {"bias": ONE[0]}),
        (ValueError, "max_width must be at least 1, got 0", {"max_width": 0}),
        (ValueError, "cu_seqlens must end with the number of tokens, 3, but", {"cu_seqlens": torch.tensor([0, 4])}),
        (ValueError, "has no backend 'cpu'; it has eager", {"backend": "cpu"}),
    ],
)
def test_bad_arguments(error: type[Exception], text: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=text):
        banded_span_scores(**{"start": ONE, "end": ONE, "weight": None, "max_width": 2, **arguments})
