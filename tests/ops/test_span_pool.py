"""span_pool: the shared checks over its table, then what its parts mean."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_checks import DTYPES, OpChecks, cast, every_backend, place_parameters
from pool_cases import ALL, CASES, pool_by_loop, pool_inputs, with_plan

from spanbert_kernels.ops import backends, enumerate_spans, plan_spans, span_pool
from spanbert_kernels.ops.span_pool import reference


class TestShared(OpChecks):
    operation = "span_pool"
    cases = CASES


everywhere = every_backend("span_pool")


def pool(hidden: list[list[float]], spans: list[list[int]], parts: list[str], **options: Any) -> list[list[float]]:
    result: list[list[float]] = span_pool(torch.tensor(hidden), torch.tensor(spans), parts, **options).tolist()
    return result


@everywhere
def test_parts_stand_in_the_order_asked_for(backend: str) -> None:
    hidden = [[1.0, 5.0], [3.0, 2.0], [0.0, 9.0]]
    values = {"start": [1, 5], "end": [0, 9], "sum": [4, 16], "max": [3, 9]}
    for order in itertools.permutations(values):
        expected = [x for part in order for x in values[part]]
        assert pool(hidden, [[0, 2]], list(order), backend=backend) == [expected]


@everywhere
def test_heads_each_pool_all_columns(backend: str) -> None:
    hidden, spans = torch.randn(4, 3), torch.tensor([[0, 2], [1, 3]])
    scores = torch.randn(4, 2)
    together = span_pool(hidden, spans, ["attention"], scores, backend=backend)
    for head in range(2):
        alone = span_pool(hidden, spans, ["attention"], scores[:, head], backend=backend)
        torch.testing.assert_close(together[:, 3 * head : 3 * head + 3], alone)


@everywhere
def test_width_rows_are_clamped_or_bucketed(backend: str) -> None:
    table = torch.arange(3.0)[:, None]
    spans = torch.tensor([[0, 0], [0, 1], [0, 2], [0, 5], [3, 2]])
    options: dict[str, Any] = {"width_embedding": table + 1, "backend": backend}
    hidden = torch.zeros(6, 1)
    assert span_pool(hidden, spans, ["width"], **options)[:, 0].tolist() == [1, 2, 3, 3, 0]
    found = span_pool(hidden, spans, ["width"], width_rows=lambda widths: (widths > 2).long(), **options)
    assert found[:, 0].tolist() == [1, 1, 2, 2, 0]


@everywhere
def test_the_first_maximal_token_gets_the_gradient(backend: str) -> None:
    hidden = torch.tensor([[1.0, 2.0, 3.0], [4.0, 2.0, 3.0], [4.0, 2.0, 5.0], [4.0, 0.0, 5.0]], requires_grad=True)
    span_pool(hidden, torch.tensor([[0, 3], [1, 2]]), ["max"], backend=backend).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.tolist() == [[0, 1, 0], [2, 1, 0], [0, 0, 2], [0, 0, 0]]


@everywhere
def test_minus_infinity_is_a_maximum_like_any_other(backend: str) -> None:
    hidden = torch.full((3, 5), -torch.inf, requires_grad=True)
    output = span_pool(hidden, torch.tensor([[1, 2]]), ["max"], backend=backend)
    output.sum().backward()
    assert hidden.grad is not None
    assert (output == -torch.inf).all()
    assert hidden.grad[:, 0].tolist() == [0, 1, 0]


@everywhere
def test_nan_propagates_and_gets_the_gradient(backend: str) -> None:
    hidden = torch.tensor([[1.0], [torch.nan], [7.0], [torch.nan]], requires_grad=True)
    output = span_pool(hidden, torch.tensor([[0, 0], [0, 1], [0, 3], [2, 2]]), ["max"], backend=backend)
    output.sum().backward()
    assert hidden.grad is not None
    assert output[:, 0].isnan().tolist() == [False, True, True, False]
    assert hidden.grad[:, 0].tolist() == [1, 2, 1, 0]


@everywhere
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_a_span_depends_on_its_own_tokens_alone(backend: str, poison: float, dtype: torch.dtype) -> None:
    """Columns and spans enough for whole vectors and their rest; the poisoned tokens lie between and beside spans."""
    if dtype not in backends.DTYPES.get(backend, DTYPES):
        pytest.skip(f"{backend} takes no {dtype}")
    tensors = cast(pool_inputs(2, columns=37, heads=2, table=3), dtype)
    spans = torch.tensor([[0, 2], [1, 2], [4, 6], [6, 6], [9, 12], [9, 10], [2, 1]])
    hidden, scores, table = tensors["hidden"], tensors["scores"], tensors["width_embedding"]
    expected = span_pool(hidden, spans, ALL, scores, table, backend=backend)
    for token in (3, 7, 8, 13):
        hidden[token] = poison
        scores[token] = poison
    hidden, scores = hidden.requires_grad_(), scores.requires_grad_()
    # The poisoned tokens have spans of their own, nested with clean ones.
    output = span_pool(hidden, torch.cat([spans, torch.tensor([[0, 3], [9, 13]])]), ALL, scores, table, backend=backend)
    assert torch.equal(output[:7], expected)
    output = span_pool(hidden, spans, ALL, scores, table, backend=backend)
    for grad in torch.autograd.grad(output.float().sum(), (hidden, scores)):
        assert grad.isfinite().all()
        assert not grad[[3, 7, 8, 13, 14]].any()


@everywhere
def test_masked_scores_take_no_part(backend: str) -> None:
    hidden, scores = torch.randn(5, 3, requires_grad=True), torch.randn(5)
    scores[[0, 2]] = -torch.inf
    scores.requires_grad_()
    output = span_pool(hidden, torch.tensor([[0, 1], [0, 3], [2, 4]]), ["attention"], scores, backend=backend)
    kept = torch.tensor([1, 3])
    expected = scores[kept].softmax(0) @ hidden[kept]
    torch.testing.assert_close(output[0], hidden[1])
    torch.testing.assert_close(output[1], expected)
    grads = torch.autograd.grad(output.sum(), (hidden, scores))
    assert all(grad.isfinite().all() for grad in grads)
    assert not grads[1][[0, 2]].any()


@everywhere
def test_large_scores_do_not_overflow(backend: str) -> None:
    hidden, scores = torch.randn(9, 3), 1e4 * torch.randn(9)
    output = span_pool(hidden, torch.tensor([[0, 8]]), ["attention"], scores, backend=backend)
    torch.testing.assert_close(output[0], hidden[scores.argmax()])


@everywhere
def test_empty_spans_give_zeros_and_no_gradient(backend: str) -> None:
    """Behind the last token and backwards, too: there is nothing to read."""
    tensors = {n: t.float().requires_grad_() for n, t in pool_inputs(1, heads=2, table=3).items() if n != "spans"}
    spans = torch.tensor([[3, 2], [0, -1], [8, 5], [9, 8], [6, -40]])
    output = span_pool(tensors["hidden"], spans, ALL, tensors["scores"], tensors["width_embedding"], backend=backend)
    assert output.shape == (5, 5 * 7 + 3)
    assert not output.any()
    for grad in torch.autograd.grad(output.sum(), list(tensors.values())):
        assert not grad.any()


@everywhere
def test_indices_of_both_kinds_and_plans_give_the_same_bits(backend: str) -> None:
    tensors = cast(pool_inputs(3, columns=20, heads=2, table=3), torch.float32)
    spans, rest = tensors["spans"], (ALL, tensors["scores"], tensors["width_embedding"])
    expected = span_pool(tensors["hidden"], spans, *rest, backend=backend)
    half_open = spans + torch.tensor([0, 1])
    for other in (
        spans.int(),
        plan_spans(spans, num_tokens=27),
        plan_spans(half_open, num_tokens=27, end_inclusive=False),
    ):
        assert torch.equal(span_pool(tensors["hidden"], other, *rest, backend=backend), expected)
    found = span_pool(tensors["hidden"], half_open, *rest, end_inclusive=False, backend=backend)
    assert torch.equal(found, expected)


@everywhere
def test_the_order_of_the_spans_does_not_matter(backend: str) -> None:
    tensors = cast(pool_inputs(3, heads=1, table=3), torch.float32)
    rest = (ALL, tensors["scores"], tensors["width_embedding"])
    order = torch.randperm(24)
    expected = span_pool(tensors["hidden"], tensors["spans"], *rest, backend=backend)
    assert torch.equal(span_pool(tensors["hidden"], tensors["spans"][order], *rest, backend=backend), expected[order])


@pytest.mark.skipif(backends.refusal("cpu", "cpu", torch.float32) is not None, reason="no compiled kernels")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_span_among_few_is_the_same_as_among_many(dtype: torch.dtype) -> None:
    """Few are made from their tokens, many from shared blocks of tokens; both in one order."""
    hidden = torch.randn(700, 149, generator=torch.Generator().manual_seed(0)).to(dtype)
    hidden[[3, 90, 333]] = torch.nan
    widths = [1, 2, 15, 16, 17, 31, 33, 64, 100, 239, 240, 241, 300]
    few = torch.tensor([[start, start + width - 1] for width in widths for start in (0, 5, 16, 95, 399)])
    many = torch.cat([few, enumerate_spans(torch.tensor([0, 700]), 9).pairs()])
    output = span_pool(hidden, many, ["mean", "sum", "max"], backend="cpu")
    for row in range(len(few)):
        alone = span_pool(hidden, few[row : row + 1], ["mean", "sum", "max"], backend="cpu")
        assert torch.equal(alone.nan_to_num(7), output[row : row + 1].nan_to_num(7))
        assert torch.equal(alone.isnan(), output[row : row + 1].isnan())


@everywhere
def test_bfloat16_hidden_with_float32_scores_and_table(backend: str) -> None:
    """What autocast gives: products in bfloat16, parameters in float32."""
    tensors = pool_inputs(1, heads=1, table=3)
    hidden = tensors["hidden"].bfloat16()
    others = [tensors[name].float().requires_grad_() for name in ("scores", "width_embedding")]
    output = span_pool(hidden, tensors["spans"], ALL, *others, backend=backend)
    exact = [x.detach().double().requires_grad_() for x in others]
    expected = pool_by_loop(hidden.double(), tensors["spans"], *exact, parts=ALL)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.double(), expected, rtol=2**-8, atol=2**-8)
    grads = torch.autograd.grad(output.sum(), others)
    for grad, ref in zip(grads, torch.autograd.grad(expected.sum(), exact), strict=True):
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad.double(), ref, rtol=2**-6, atol=2**-6)


@pytest.mark.parametrize("backend", place_parameters(("cpu",)), indirect=True)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_number_is_read_and_rounded_as_torch_does(backend: str, dtype: torch.dtype) -> None:
    """Each bit pattern plus another one: subnormals, ties, overflow, infinities and NaN among them."""
    bits = torch.arange(2**16).sub(2**15).to(torch.int16)
    for columns in (2**16, 2**16 - 3):  # whole vectors, and a rest
        others = bits[torch.randperm(2**16, generator=torch.Generator().manual_seed(columns))]
        hidden = torch.stack([bits, others])[:, :columns].view(dtype)
        found = span_pool(hidden, torch.tensor([[0, 0], [0, 1]]), ["sum"], backend=backend)
        sums = torch.stack([hidden[0].float(), hidden[0].float() + hidden[1].float()])
        torch.testing.assert_close(found, sums.to(dtype), rtol=0, atol=0, equal_nan=True)


def test_many_overlapping_spans_sum_in_float32() -> None:
    """4096 gradients of one would stop at 256 if they were added in bfloat16."""
    for name in ("cpu", "eager"):
        if backends.refusal(name, "cpu", torch.bfloat16) is not None:
            continue
        hidden = torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
        table = torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
        spans = torch.zeros(4096, 2, dtype=torch.int64)
        span_pool(hidden, spans, ["sum", "width"], width_embedding=table, backend=name).sum().backward()
        assert hidden.grad is not None
        assert table.grad is not None
        assert (hidden.grad.item(), table.grad.item()) == (4096, 4096)


def test_eager_works_in_chunks_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = cast(pool_inputs(3, heads=2, table=3), torch.float32)
    call = partial(span_pool, **tensors, parts=ALL, width_rows=buckets_of_three, backend="eager")
    expected = call()
    chunks: list[int] = []
    whole = reference.span_pool

    def counting(hidden: torch.Tensor, start: torch.Tensor, *rest: Any) -> torch.Tensor:
        chunks.append(len(start))
        return whole(hidden, start, *rest)

    monkeypatch.setattr(reference, "span_pool", counting)
    monkeypatch.setattr(importlib.import_module("spanbert_kernels.ops.span_pool.reference"), "EAGER_CHUNK", 7 * 5 * 5)
    assert torch.equal(call(), expected)
    assert len(chunks) > 2
    assert sum(chunks) == 24


def buckets_of_three(widths: torch.Tensor) -> torch.Tensor:
    return (widths - 1).clamp(max=2)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    tokens=st.integers(1, 40),
    columns=st.integers(0, 40),
    heads=st.integers(1, 3),
    spans=st.integers(0, 60),
    width=st.integers(1, 12),
    seed=st.integers(1, 10**6),
    planned=st.booleans(),
)
def test_any_spans(tokens: int, columns: int, heads: int, spans: int, width: int, seed: int, planned: bool) -> None:
    if backends.refusal("cpu", "cpu", torch.float64) is not None:
        pytest.skip("no compiled kernels here")
    torch.manual_seed(seed)
    inputs = pool_inputs(1, tokens=tokens, columns=columns, heads=heads, spans=spans, width=width, table=4)
    inputs["hidden"] = torch.randint(-3, 4, inputs["hidden"].shape).double()  # ties for the maximum
    results = []
    for name in ("cpu", "eager"):
        leaves = {n: t.clone().requires_grad_(t.is_floating_point()) for n, t in inputs.items()}
        arguments = with_plan(leaves) if planned else leaves
        output = span_pool(**arguments, parts=ALL, backend=name)
        grad = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
        sources = [leaf for leaf in leaves.values() if leaf.requires_grad]
        results.append((output, *torch.autograd.grad(output, sources, grad, allow_unused=True)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


H, S = torch.zeros(4, 3), torch.zeros(2, 2, dtype=torch.int64)


def bad(error: type[Exception], text: str, **changes: Any) -> Any:
    return pytest.param(error, text, changes, id=text[:40])


@everywhere
@pytest.mark.parametrize(
    ("error", "text", "changes"),
    [
        bad(TypeError, "parts must be a sequence of names, got the string 'mean'", parts="mean"),
        bad(ValueError, "parts is empty; it takes any of start, end", parts=[]),
        bad(ValueError, "unknown part 'median'; there are start, end", parts=["median"]),
        bad(ValueError, r"part 'mean' is named twice in \['mean', 'max', 'mean'\]", parts=["mean", "max", "mean"]),
        bad(ValueError, "part 'attention' needs scores .* got None", parts=["attention"]),
        bad(ValueError, r"scores .* with T = 4, got \[3\]", parts=["attention"], scores=torch.zeros(3)),
        bad(ValueError, r"scores .* with T = 4, got \[4, 1, 1\]", parts=["attention"], scores=torch.zeros(4, 1, 1)),
        bad(
            TypeError,
            "scores must be floating point, got torch.int64",
            parts=["attention"],
            scores=torch.zeros(4).long(),
        ),
        bad(
            TypeError,
            "scores is on meta, but hidden is on cpu",
            parts=["attention"],
            scores=torch.zeros(4, device="meta"),
        ),
        bad(TypeError, "scores must be a tensor .* got list", parts=["attention"], scores=[0.0] * 4),
        bad(ValueError, r"part 'width' needs width_embedding \[R, E\], got None", parts=["width"]),
        bad(ValueError, "at least one row, got .0, 2.", parts=["width"], width_embedding=torch.zeros(0, 2)),
        bad(ValueError, r"shape \[R, E\], got \[2\]", parts=["width"], width_embedding=torch.zeros(2)),
        bad(TypeError, "width_embedding is on meta", parts=["width"], width_embedding=torch.zeros(2, 2, device="meta")),
        bad(
            ValueError,
            "width_rows gave row 2, but the table has 2 rows",
            parts=["width"],
            width_embedding=torch.zeros(2, 2),
            width_rows=lambda w: w + 1,
        ),
        bad(
            ValueError,
            r"width_rows must return one row per width \(2\), got \[1\]",
            parts=["width"],
            width_embedding=torch.zeros(2, 2),
            width_rows=lambda w: w[:1] - 1,
        ),
        bad(
            TypeError,
            "the result of width_rows must be int32 or int64, got torch.float32",
            parts=["width"],
            width_embedding=torch.zeros(2, 2),
            width_rows=lambda w: w / 2,
        ),
        bad(
            ValueError,
            "hidden must be a tensor for each of start, end, got a mapping of start",
            parts=["start", "width", "end"],
            hidden={"start": H},
        ),
        bad(ValueError, r"hidden must have shape \[T, H\], got \[2, 2, 3\]", hidden=torch.zeros(2, 2, 3)),
        bad(TypeError, "hidden must be floating point, got torch.complex64", hidden=H.to(torch.complex64)),
        bad(TypeError, "spans must be int32 or int64, got torch.int16", spans=S.short()),
        bad(ValueError, r"spans must have shape \[N, 2\], got \[2\]", spans=S[0]),
        bad(TypeError, "spans is on meta, but hidden is on cpu", spans=S.to("meta")),
        bad(
            ValueError,
            r"span 1 covers tokens 3 to 4, but hidden has 4 tokens \(0 to 3\)",
            spans=torch.tensor([[0, 3], [3, 4], [9, 9]]),
        ),
        bad(ValueError, "span 0 covers tokens -1 to 2", spans=torch.tensor([[-1, 2]])),
        bad(ValueError, "span 0 covers tokens 4 to 4", spans=torch.tensor([[4, 5]]), end_inclusive=False),
        bad(
            ValueError,
            "the plan was made for 9 tokens, but hidden has 4",
            spans=enumerate_spans(torch.tensor([0, 9]), 2),
        ),
        bad(
            TypeError,
            "the plan is on meta, but hidden is on cpu",
            spans=dataclasses.replace(plan_spans(S, num_tokens=4), device=torch.device("meta")),
        ),
    ],
)
def test_bad_arguments(backend: str, error: type[Exception], text: str, changes: dict[str, Any]) -> None:
    arguments = {"hidden": H, "spans": S, "parts": ["mean"], "backend": backend, **changes}
    with pytest.raises(error, match=text):
        span_pool(**arguments)


@everywhere
def test_a_bad_span_under_compile_is_an_error_or_an_empty_span(backend: str) -> None:
    """Nothing reads the spans' values while the call is traced; the kernel does."""
    torch._dynamo.reset()
    compiled = torch.compile(partial(span_pool, parts=["mean"], backend=backend), fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        if backend == "cpu":
            with pytest.raises(RuntimeError, match="span 1 covers tokens 3 to 4, but hidden has 4 tokens"):
                compiled(H, torch.tensor([[0, 0], [3, 4]]))
        else:
            assert not compiled(H + 1, torch.tensor([[3, 4], [9, 9]])).any()


@everywhere
def test_a_plan_that_lies_is_caught(backend: str) -> None:
    """Built by hand, past every check: no token outside is read."""
    lie = dataclasses.replace(plan_spans(S, num_tokens=4), ends=torch.tensor([5, 1000]))
    if backend == "cpu":
        with pytest.raises(RuntimeError, match="but hidden has 4 tokens"):
            span_pool(H, lie, ["sum"], backend=backend)
    else:
        assert not span_pool(H + 1, lie, ["sum"], backend=backend).any()


def test_scores_without_a_head() -> None:
    with pytest.raises(ValueError, match=r"at least one head, got \[4, 0\]"):
        span_pool(torch.randn(4, 3), torch.tensor([[0, 2]]), ["attention"], scores=torch.randn(4, 0))


@everywhere
@pytest.mark.parametrize("planned", [False, True], ids=["tensor", "all spans"])
def test_gradients_of_scores_do_not_see_how_the_output_is_rounded(backend: str, planned: bool) -> None:
    """Tokens far from 0: a score's gradient is a small difference, of which the output's last bit would be a part."""
    generator = torch.Generator().manual_seed(6)
    hidden = (20 + torch.randn(24, 40, generator=generator)).bfloat16()
    scores = torch.randn(24, 2, generator=generator)
    plan = enumerate_spans(torch.tensor([0, 10, 24]), 6)
    grad = torch.randn(len(plan), 80, generator=generator).bfloat16()
    grads = []
    for name, dtypes in ((backend, (torch.bfloat16, torch.float32)), ("eager", (torch.float64, torch.float64))):
        leaf = scores.to(dtypes[1]).requires_grad_()
        spans = plan if planned else plan.pairs()
        output = span_pool(hidden.to(dtypes[0]), spans, ["attention"], leaf, backend=name)
        grads.append(torch.autograd.grad(output, leaf, grad.to(dtypes[0]))[0].double())
    found, exact = grads
    assert (found - exact).abs().max() < 1e-4 * exact.abs().max()
