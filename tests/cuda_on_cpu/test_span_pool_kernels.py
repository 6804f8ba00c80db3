"""What the CUDA kernels of span_pool do beyond the operation's shared checks: groups of tokens, wide spans, runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_on_cpu import library
from torch import Tensor

from spanbert_kernels.ops import enumerate_spans, plans, span_pool
from spanbert_kernels.ops.span_pool import PARTS

GROUP, STAGED = 8, 16  # tokens of a group, groups in shared memory: csrc/span_pool/cuda_forward.cuh


@pytest.fixture(scope="module")
def operators() -> Any:
    reason = library.load()
    if reason is not None:
        pytest.skip(reason)
    return getattr(torch.ops, library.NAMESPACE)


def work_of(pairs: list[tuple[int, int]], tokens: int) -> plans.SpanWork:
    """Half-open spans."""
    start, end = torch.tensor(pairs).unbind(1)
    return plans.work_for((start, end), "cuda", tokens)


def codes(*parts: str) -> list[int]:
    return [PARTS.index(part) for part in parts]


def both_ways(
    operators: Any, work: plans.SpanWork, hidden: Tensor, scores: Tensor | None, table: Tensor | None, *parts: str
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Output and gradients of the kernels, and of the eager backend."""
    rest = (*work, scores, table, None, codes(*parts))
    output, argmax, lse = operators.span_pool_forward(hidden, *rest, True)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    kernels = (output, *operators.span_pool_backward(grad, hidden, argmax, lse, *rest))

    assert work.starts is not None
    assert work.ends is not None
    rows = torch.arange(work.num_spans) if work.rows is None else work.rows
    spans = torch.empty(work.num_spans, 2, dtype=torch.int64)
    spans[rows] = torch.stack([work.starts, work.ends], 1)
    sources = [x.double().requires_grad_() for x in (hidden, scores, table) if x is not None]
    names = [name for name, x in (("scores", scores), ("width_embedding", table)) if x is not None]
    named = dict(zip(names, sources[1:], strict=True))
    expected = span_pool(sources[0], spans, parts, **named, end_inclusive=False, backend="eager")
    return kernels, (expected.detach(), *torch.autograd.grad(expected, sources, grad.double()))


def check(kernels: tuple[Tensor, ...], expected: tuple[Tensor, ...], atol: float = 2e-4) -> None:
    for found, ref in zip([k for k in kernels if k.numel()], expected, strict=True):
        torch.testing.assert_close(found.double(), ref, rtol=1e-5, atol=atol)


def test_a_span_alone_has_the_bits_that_it_has_among_others(operators: Any) -> None:
    """Alone, its groups are computed on the spot; among others, they are read from shared memory."""
    tokens = 60
    hidden, scores = torch.randn(tokens, 20), 3 * torch.randn(tokens, 2)
    pairs = [(a, b) for a in range(0, tokens, 3) for b in range(a + 1, tokens + 1, 4)]
    parts = codes("sum", "mean", "max", "attention")
    together, _, _ = operators.span_pool_forward(hidden, *work_of(pairs, tokens), scores, None, None, parts, False)
    for i in range(0, len(pairs), 7):
        alone, _, _ = operators.span_pool_forward(
            hidden, *work_of(pairs[i : i + 1], tokens), scores, None, None, parts, False
        )
        assert torch.equal(alone[0], together[i]), pairs[i]
    for part in parts:
        single, _, _ = operators.span_pool_forward(hidden, *work_of(pairs, tokens), scores, None, None, [part], False)
        assert single.shape[1] in (20, 40)
        columns = {0: slice(0, 20), 1: slice(20, 40), 2: slice(40, 60), 3: slice(60, 100)}[parts.index(part)]
        assert torch.equal(single, together[:, columns]), "alone, a part has a kernel of its own"


@pytest.mark.parametrize("columns", [8, 11])
def test_spans_wider_than_the_groups_in_shared_memory(operators: Any, columns: int) -> None:
    """Up to whole documents; more than 256 tokens, so that the maximum's offsets are int32."""
    tokens = 3 * GROUP * STAGED
    hidden, scores, table = torch.randn(tokens, columns), torch.randn(tokens, 1), torch.randn(300, 2)
    pairs = [(0, tokens), (5, tokens - 3), (8, 8 + GROUP * STAGED), (100, 370), (7, 8), (tokens - 1, tokens), (3, 3)]
    work = work_of(pairs * 3, tokens)
    assert work.max_width == 0
    check(*both_ways(operators, work, hidden, scores, table, *PARTS))


def test_offsets_of_a_byte_reach_256_tokens(operators: Any) -> None:
    hidden = torch.zeros(260, 8)
    hidden[255, :4] = 1
    hidden[259] = 2
    start, end = torch.tensor([0, 4]), torch.tensor([256, 260])
    work = plans.work_for((start, end), "cuda", 260)._replace(max_width=256)
    kernels, expected = both_ways(operators, work, hidden, None, None, "max")
    check(kernels, expected)
    argmax = operators.span_pool_forward(hidden, *work, None, None, None, codes("max"), True)[1]
    assert argmax.dtype == torch.uint8
    assert argmax.tolist() == [[255] * 4 + [0] * 4, [255] * 8]


def test_thousands_of_copies_of_one_span(operators: Any) -> None:
    """Several runs of the width table's partial sums."""
    hidden, table = torch.randn(12, 3), torch.randn(3, 2)
    work = work_of([(2, 11)] * 4500 + [(1, 2)] * 50, 12)
    check(*both_ways(operators, work, hidden, None, table, "sum", "max", "width"), atol=2e-3)


def test_scores_of_any_size(operators: Any) -> None:
    """A group's maximum can lie far above that of a span with some of its tokens, and the other way round."""
    tokens = 40
    hidden = torch.randn(tokens, 6)
    scores = torch.randn(tokens, 1)
    scores[9] = 1000
    scores[30] = -1000
    scores[16:24] = -torch.inf
    pairs = [(8, 9), (10, 16), (8, 16), (24, 32), (30, 31), (12, 28), (0, 40), (15, 25), (25, 31)]
    check(*both_ways(operators, work_of(pairs, tokens), hidden, scores, None, "attention"), atol=2e-3)


def test_enumerated_spans_read_no_bounds(operators: Any) -> None:
    """The forward takes them from the work list: whatever stands in `starts` and `ends`."""
    hidden, scores = torch.randn(11, 5), torch.randn(11, 2)
    plan = enumerate_spans(torch.tensor([0, 4, 4, 11]), 3)
    work = plan.device_work()
    parts = codes("end", "attention", "max", "mean")
    output, _, _ = operators.span_pool_forward(hidden, *work, scores, None, None, parts, False)
    assert work.starts is not None
    nonsense = work._replace(starts=work.starts + 10**9, ends=work.starts - 7)
    again, _, _ = operators.span_pool_forward(hidden, *nonsense, scores, None, None, parts, False)
    assert torch.equal(output, again)
    expected = span_pool(hidden.double(), plan, ["end", "attention", "max", "mean"], scores.double(), backend="eager")
    torch.testing.assert_close(output.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "parts", "copies"),
    [(torch.bfloat16, ["mean", "max"], 1), (torch.float16, ["sum", "mean"], 1), (torch.bfloat16, ["mean"], 5)],
)
def test_sums_of_16_bits_are_products(operators: Any, dtype: torch.dtype, parts: list[str], copies: int) -> None:
    """Several tiles of spans and chunks of columns, spans wider than the weights at hand, more than are listed."""
    tokens, columns = 210, 136
    hidden = torch.randn(tokens, columns).to(dtype)
    pairs = [(a, min(a + 1 + (7 * a) % 61, tokens)) for a in range(tokens)] * copies
    pairs += [(0, tokens), (3, 190), (5, 5), (tokens - 1, tokens)]
    start, end = torch.tensor(pairs)[torch.randperm(len(pairs))].unbind(1)
    work = plans.work_for((start, end), "cuda", tokens)
    rest = (*work, None, None, None, codes(*parts))
    output, argmax, lse = operators.span_pool_forward(hidden, *rest, True)
    grad = torch.randn(output.shape).to(dtype)
    own, _, _ = operators.span_pool_backward(grad, hidden, argmax, lse, *rest)
    exact = hidden.double().requires_grad_()
    expected = span_pool(exact, torch.stack([start, end], 1), parts, end_inclusive=False, backend="eager")
    (gradient,) = torch.autograd.grad(expected, exact, grad.double())
    # The result is rounded once; of a sum in float32, the weights' two halves keep 16 bits.
    error = torch.finfo(dtype).eps / 2
    for found, ref in ((output, expected), (own, gradient)):
        assert (found.double() - ref).abs().max() <= error * ref.abs().max() * 1.01
        near = (found.double() - ref).abs() <= 1.01 * error * ref.abs() + 2**-14
        assert near.all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("widest", [0, 200])
def test_maxima_of_16_bits(operators: Any, dtype: torch.dtype, widest: int) -> None:
    """By tables and without, with ties, zeros of both signs, infinities and NaN; winners of four bytes and of one."""
    tokens, columns = 240, 72
    generator = torch.Generator().manual_seed(2)
    values = torch.tensor([0.0, -0.0, 1.5, -1.5, -3.0, 2.0**-24, -(2.0**-24), torch.inf, -torch.inf, torch.nan])
    hidden = values[torch.randint(-2, 9, (tokens, columns), generator=generator).abs()].to(dtype)
    hidden[:, 8:] = torch.randint(-9, -1, (tokens, columns - 8), generator=generator).to(dtype)
    hidden[17, 3] = hidden[100, 9] = torch.nan
    start = torch.randint(0, tokens, (170,), generator=generator)
    width = torch.randint(0, 70, (170,), generator=generator)
    start[:3], width[:3] = torch.tensor([0, 7, 30]), torch.tensor([200, 15, 129])
    end = torch.minimum(start + width, torch.tensor(tokens))
    work = plans.work_for((start, end), "cuda", tokens)._replace(max_width=widest)
    rest = (*work, None, None, None, codes("max"))
    exact = hidden.double().requires_grad_()
    expected = span_pool(exact, torch.stack([start, end], 1), ["max"], end_inclusive=False, backend="eager")
    output, _, _ = operators.span_pool_forward(hidden, *rest, False)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=0, equal_nan=True)
    kept, argmax, lse = operators.span_pool_forward(hidden, *rest, True)
    torch.testing.assert_close(kept, output, rtol=0, atol=0, equal_nan=True)
    assert argmax.dtype == (torch.uint8 if widest else torch.int32)
    grad = torch.randint(-4, 5, output.shape, generator=generator).to(dtype)
    found, _, _ = operators.span_pool_backward(grad, hidden, argmax, lse, *rest)
    (gradient,) = torch.autograd.grad(expected, exact, grad.double())
    torch.testing.assert_close(found.double(), gradient, rtol=0, atol=0)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_products_keep_inf_and_nan_to_their_spans(operators: Any, poison: float) -> None:
    hidden = torch.randn(40, 8).bfloat16()
    work = work_of([(a, a + 5) for a in range(0, 35)], 40)
    rest = (*work, None, None, None, codes("mean", "sum"))
    clean, argmax, lse = operators.span_pool_forward(hidden, *rest, True)
    hidden[17, 2] = poison
    output, _, _ = operators.span_pool_forward(hidden, *rest, True)
    bad = output.isfinite().logical_not()
    assert bad.sum() == 2 * 5
    assert bad[13:18, [2, 10]].all()
    assert torch.equal(output[~bad], clean[~bad])
    assert torch.equal(output[13:18, 2].isnan(), torch.full((5,), poison != poison))
    grad = torch.randn(35, 16).bfloat16()
    expected, _, _ = operators.span_pool_backward(grad, hidden, argmax, lse, *rest)
    grad[20, 3] = poison
    found, _, _ = operators.span_pool_backward(grad, hidden, argmax, lse, *rest)
    bad = found.isfinite().logical_not()
    assert bad.sum() == 5
    assert bad[20:25, 3].all()
    torch.testing.assert_close(found[~bad], expected[~bad], rtol=2**-7, atol=2**-9)


@pytest.mark.parametrize(("part", "dtype"), [("mean", torch.bfloat16), ("sum", torch.float32)])
def test_one_sum_of_all_spans(operators: Any, part: str, dtype: torch.dtype) -> None:
    """Of more tokens than a warp has lanes, and in a tile of columns that not all lanes have a part of."""
    hidden = torch.randn(53, 16).to(dtype)
    plan = enumerate_spans(torch.tensor([0, 3, 3, 53]), 40)
    output, _, _ = operators.span_pool_forward(hidden, *plan.device_work(), None, None, None, codes(part), False)
    expected = span_pool(hidden.double(), plan, [part], backend="eager")
    error = torch.finfo(dtype).eps * (1 if dtype == torch.bfloat16 else 20)
    assert (output.double() - expected).abs().max() <= error * expected.abs().max()


def test_work_lists_that_lie_stay_inside_memory(operators: Any) -> None:
    """Rows outside the output are left out, spans outside the tokens count as empty."""
    hidden = torch.ones(4, 8)
    work = work_of([(0, 2), (1, 3)], 4)
    assert work.rows is not None
    lie = work._replace(rows=torch.tensor([1, 10**6]))
    output, _, _ = operators.span_pool_forward(hidden, *lie, None, None, None, codes("sum"), False)
    assert (output[1] == 2).all()
    far = work._replace(ends=torch.tensor([2, 10**9]))
    output, argmax, lse = operators.span_pool_forward(hidden, *far, None, None, None, codes("max"), True)
    assert output[:, 0].tolist() == [1, 0]
    rest = (*far, None, None, None, codes("max"))
    grad, _, _ = operators.span_pool_backward(torch.ones(2, 8), hidden, argmax, lse, *rest)
    assert grad[:, 0].tolist() == [1, 0, 0, 0]
