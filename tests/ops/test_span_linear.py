"""span_linear: the shared checks over its tables, then what is special about projecting first."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_cases import (
    EVERY,
    LINEAR,
    LINEAR_BLOCKS,
    LINEAR_BY_DOCUMENT,
    LINEAR_CASES,
    MENTION,
    POOLED_FIRST_BY_DOCUMENT,
    POOLED_FIRST_CASES,
    ProjectedChecks,
    layer_inputs,
    linear_by_loop,
    multiply_as_on_a_gpu,
    use_small_blocks,
)
from op_checks import (
    Case,
    Place,
    RecordRawCalls,
    Setting,
    Tensors,
    cast,
    check_result,
    every_backend,
    run_setting,
)
from pool_cases import pool_inputs, with_plan
from torch import Tensor

from spanbert_kernels.ops import backends, enumerate_spans, span_linear

everywhere = every_backend("span_linear")


class TestShared(ProjectedChecks):
    operation = "span_linear"
    cases = LINEAR_CASES


class TestPooledFirst(ProjectedChecks):
    """Fewer spans than tokens, and `max`: span_pool's kernels run as well."""

    operation = "span_linear"
    cases = POOLED_FIRST_CASES
    once_only = "span_(linear|pool)"

    def test_raw_operators(self, logic: Case, best_backend: str) -> None:
        with RecordRawCalls() as record:
            run_setting(Setting(logic), best_backend)
        names = [func.name().split("::")[1].removesuffix("_triton") for func, _, _ in record.calls]
        ours = [name for name in names if name.endswith(("_forward", "_backward"))]
        way = ["span_pool_forward", "span_linear_forward", "span_linear_backward", "span_pool_backward"]
        if "max" not in logic.name:  # one product over pooled spans, which is PyTorch's
            way = ["span_pool_forward", "span_pool_backward"]
        # Once for each tensor of tokens.
        assert list(dict.fromkeys(ours)) == ([] if best_backend == "eager" else way)


@pytest.mark.slow
class TestByDocument(ProjectedChecks):
    operation = "span_linear"
    cases = LINEAR_BY_DOCUMENT


@pytest.mark.slow
class TestPooledFirstByDocument(TestPooledFirst):
    cases = POOLED_FIRST_BY_DOCUMENT


@everywhere
@pytest.mark.parametrize("case", [LINEAR_BY_DOCUMENT[0], POOLED_FIRST_BY_DOCUMENT[-1]], ids=lambda case: case.name)
def test_by_document(backend: str, case: Case) -> None:
    """What every test run checks of those: values and gradients, the spans in any order of their documents."""
    setting = Setting(case, size=2)
    check_result(setting, backend, run_setting(setting, backend))


def make(parts: list[str], dtype: torch.dtype = torch.float32, *, outputs: int = 7, **inputs: Any) -> Tensors:
    sizes = {"heads": 2, "table": 3, "spans": 13, **inputs}
    return cast(layer_inputs(1, partial(pool_inputs, **sizes), parts, outputs), dtype)


@everywhere
@pytest.mark.parametrize("count", [13, 9, 8])
def test_the_way_is_chosen_by_the_number_of_spans(backend: str, count: int) -> None:
    """Nine tokens: as many products as spans from nine spans on."""
    tensors = make(LINEAR, spans=count)
    with RecordRawCalls() as record:
        span_linear(**tensors, parts=LINEAR, backend=backend)
    pooled = [func.name() for func, _, _ in record.calls if "span_pool" in func.name()]
    assert len(pooled) == (1 if count < 9 and backend != "eager" else 0)


@everywhere
def test_no_product_has_a_row_a_span(backend: str) -> None:
    """Projecting first: the products' operands have T rows."""
    if backend == "eager":
        pytest.skip("the definition multiplies pooled spans")
    tensors = make(LINEAR, spans=50)
    with RecordAll() as record:
        span_linear(**tensors, parts=LINEAR, backend=backend)
    products = [args for name, args in record.calls if name in ("aten::mm", "aten::addmm", "aten::addmm_")]
    rows = {tensor.shape[0] for args in products for tensor in args[:1]}
    assert rows == {9, 3}


class RecordAll(RecordRawCalls):
    """Every operator by its name."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls.append((func.name(), args))  # type: ignore[arg-type]
        return func(*args, **(kwargs or {}))


@everywhere
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
@pytest.mark.parametrize("count", [13, 5])
def test_empty_spans_give_the_activated_bias(backend: str, activation: str, count: int) -> None:
    tensors = make(EVERY, spans=count)
    empty = torch.tensor([[3, 2], [0, -1], [8, 5], [9, 8]])
    tensors["spans"] = torch.cat([empty[:2], tensors["spans"][: count - 4], empty[2:]])
    output = span_linear(**tensors, parts=EVERY, activation=activation, backend=backend)
    expected = {"none": lambda x: x, "relu": torch.relu, "gelu": torch.nn.functional.gelu}[activation](tensors["bias"])
    for i in (0, 1, -2, -1):
        torch.testing.assert_close(output[i], expected)


@everywhere
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
def test_a_span_depends_on_its_own_tokens_alone(backend: str, poison: float) -> None:
    tensors = make(LINEAR, outputs=45, tokens=18)
    spans = torch.tensor([[0, 2], [1, 2], [4, 6], [6, 6], [9, 12], [9, 10], [2, 1]] * 3)
    tensors["spans"] = spans
    expected = span_linear(**tensors, parts=LINEAR, activation="gelu", backend=backend)
    for token in (3, 7, 8, 13):
        tensors["hidden"][token] = poison
        tensors["scores"][token] = poison
    # The poisoned tokens have spans of their own, nested with clean ones.
    more = {**tensors, "spans": torch.cat([spans, torch.tensor([[0, 3], [9, 13]])])}
    output = span_linear(**more, parts=LINEAR, activation="gelu", backend=backend)
    # In Triton's interpreter a BLAS multiplies, whose sums depend on a row's place among the others.
    tolerance = 1e-6 if backend == "triton" else 0.0
    torch.testing.assert_close(output[:21], expected, rtol=tolerance, atol=tolerance)
    leaves = {n: tensors[n].requires_grad_() for n in ("hidden", "scores")}
    output = span_linear(**tensors, parts=LINEAR, activation="gelu", backend=backend)
    for grad in torch.autograd.grad(output.sum(), list(leaves.values())):
        assert grad.isfinite().all()
        assert not grad[[3, 7, 8, 13, 14]].any()


@everywhere
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_bad_gradient_stays_with_its_tokens(backend: str, poison: float) -> None:
    """Also where other spans hold them too: those hand their tokens beside them clean gradients."""
    tensors = make(LINEAR, outputs=45, tokens=18)
    tensors["spans"] = torch.tensor([[3, 6], [1, 4], [2, 2], [5, 9], [7, 7], [3, 4], [3, 9], [10, 12]] * 3)
    leaves = {n: tensors[n].requires_grad_() for n in ("hidden", "scores")}
    output = span_linear(**tensors, parts=LINEAR, activation="gelu", backend=backend)
    incoming = torch.ones_like(output)
    expected = torch.autograd.grad(output, list(leaves.values()), incoming, retain_graph=True)
    incoming[0] = poison
    held = torch.zeros(18, dtype=torch.bool)
    held[3:7] = True
    for grad, clean in zip(torch.autograd.grad(output, list(leaves.values()), incoming), expected, strict=True):
        assert torch.equal(grad.isfinite().flatten(1).all(1), ~held)
        torch.testing.assert_close(grad[~held], clean[~held])


@everywhere
def test_relu_of_nan_is_nan(backend: str) -> None:
    hidden = torch.tensor([[torch.nan], [1.0]])
    output = span_linear(hidden, torch.tensor([[0, 0], [1, 1]]), ["start"], torch.ones(1, 1), activation="relu",
                         backend=backend)  # fmt: skip
    assert output.isnan()[:, 0].tolist() == [True, False]


@everywhere
def test_gelu_over_its_whole_range(backend: str) -> None:
    """Against erfc in float64: also where 1 + erf would have lost every digit.

    Eager is as exact as PyTorch's own, which differs between processors.
    """
    x = torch.linspace(-12, 12, 4801)
    spans = torch.stack([torch.arange(len(x))] * 2, 1)
    leaf = x[:, None].clone().requires_grad_()
    output = span_linear(leaf, spans, ["start"], torch.ones(1, 1), activation="gelu", backend=backend)
    exact = x.double().requires_grad_()
    expected = exact * 0.5 * torch.special.erfc(-exact * 0.5**0.5)
    own_error = float((torch.nn.functional.gelu(x).double() - expected.detach()).abs().max())
    tolerance = own_error if backend == "eager" else 6e-7
    torch.testing.assert_close(output[:, 0].double(), expected, rtol=0, atol=tolerance)
    (grad,) = torch.autograd.grad(output.sum(), leaf)
    torch.testing.assert_close(grad[:, 0].double(), torch.autograd.grad(expected.sum(), exact)[0], rtol=0, atol=6e-7)


@everywhere
def test_bfloat16_hidden_with_float32_parameters(backend: str) -> None:
    """What autocast gives: tokens in bfloat16, parameters in float32."""
    tensors = make(MENTION)
    hidden = tensors["hidden"].bfloat16()
    names = ("weight", "bias", "scores", "width_embedding")
    leaves = {n: tensors[n].clone().requires_grad_() for n in names}
    output = span_linear(hidden, tensors["spans"], MENTION, **leaves, backend=backend)
    exact = {n: tensors[n].double().requires_grad_() for n in names}
    expected = linear_by_loop(hidden=hidden.double(), spans=tensors["spans"], parts=MENTION, **exact)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.double(), expected, rtol=2**-6, atol=2**-6)
    found = torch.autograd.grad(output.sum(), list(leaves.values()))
    for grad, ref in zip(found, torch.autograd.grad(expected.sum(), list(exact.values())), strict=True):
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad.double(), ref, rtol=2**-5, atol=2**-5)


@everywhere
def test_only_what_is_asked_for_gets_a_gradient(backend: str) -> None:
    tensors = make(EVERY)
    for name in ("hidden", "weight", "bias", "scores", "width_embedding"):
        leaves = {n: t.clone().requires_grad_(n == name) for n, t in tensors.items()}
        output = span_linear(**leaves, parts=EVERY, backend=backend)
        output.sum().backward()
        assert leaves[name].grad is not None
        assert all(t.grad is None for n, t in leaves.items() if n != name)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    tokens=st.integers(1, 30),
    outputs=st.integers(1, 70),
    heads=st.integers(1, 3),
    spans=st.integers(0, 60),
    width=st.integers(1, 12),
    seed=st.integers(1, 10**6),
    planned=st.booleans(),
    activation=st.sampled_from(["none", "relu", "gelu"]),
    parts=st.lists(st.sampled_from(EVERY), min_size=1, max_size=7, unique=True),
)
def test_any_spans(
    tokens: int, outputs: int, heads: int, spans: int, width: int, seed: int, planned: bool, activation: str,
    parts: list[str],
) -> None:  # fmt: skip
    if backends.refusal("cpu", "cpu", torch.float64) is not None:
        pytest.skip("no compiled kernels here")
    inputs = partial(pool_inputs, tokens=tokens, columns=4, heads=heads, spans=spans, width=width, table=4)
    tensors = layer_inputs(seed, lambda size: inputs(1), parts, outputs)
    results = []
    for name in ("cpu", "eager"):
        leaves = {n: t.clone().requires_grad_(t.is_floating_point()) for n, t in tensors.items()}
        arguments = with_plan(leaves) if planned else leaves
        output = span_linear(**arguments, parts=parts, activation=activation, backend=name)
        grad = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
        sources = [leaf for leaf in leaves.values() if leaf.requires_grad]
        results.append((output, *torch.autograd.grad(output, sources, grad, materialize_grads=True, allow_unused=True)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("backend", [Place("triton", "interpreter")], indirect=True, ids=str)
def test_triton_in_several_blocks(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)
    setting = Setting(LINEAR_BLOCKS)
    check_result(setting, backend, run_setting(setting, backend))


@pytest.mark.parametrize("backend", [Place("triton", "interpreter")], indirect=True, ids=str)
def test_enumerations_have_a_gradient_kernel_of_their_own(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as their sums fit into registers, and not spans in any order."""
    from spanbert_kernels.ops.span_linear import triton_widths

    taken: list[int] = []
    own = triton_widths.EnumeratedGradients

    def note(*given: Any) -> Any:
        taken.append(given[2])
        return own(*given)

    monkeypatch.setattr(triton_widths, "EnumeratedGradients", note)
    monkeypatch.setattr(triton_widths, "MOST_SUMS", 4)
    hidden, cu_seqlens = torch.ones(6, 2, requires_grad=True), torch.tensor([0, 6])
    every = [enumerate_spans(cu_seqlens, width) for width in (2, 4, 5)]
    for spans in (*every, every[0].pairs()):
        span_linear(hidden, spans, ["start", "end"], torch.ones(1, 4), backend=backend).sum().backward()
    assert taken == [2, 4]


@pytest.mark.parametrize(
    ("backend", "case", "dtype", "blocks"),
    [
        (Place("cpu"), LINEAR_CASES[0], torch.bfloat16, [6]),
        (Place("triton", "interpreter"), LINEAR_CASES[1], torch.float16, [3]),
        (Place("cpu"), LINEAR_BY_DOCUMENT[0], torch.float16, [2, 1, 1]),
        (Place("cpu"), LINEAR_BY_DOCUMENT[1], torch.bfloat16, [1]),
        (Place("cpu"), LINEAR_CASES[3], torch.float32, []),
        (Place("cpu"), POOLED_FIRST_CASES[3], torch.float16, []),
    ],
    indirect=["backend"],
    ids=lambda each: each.name if isinstance(each, Case) else None,
)
def test_products_as_on_a_gpu(
    backend: str, case: Case, dtype: torch.dtype, blocks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 16 bits where the tokens and the weight have no more, each of seven columns and nine of zeros; both ways."""
    shapes = multiply_as_on_a_gpu(monkeypatch, backend)
    setting = Setting(case, dtype=dtype)
    check_result(setting, backend, run_setting(setting, backend))
    backward = shapes[len(blocks) :]
    assert [rows for rows, _ in shapes[: len(blocks)]] == [16 * count for count in blocks]
    assert [columns for _, columns in backward[::2]] == [2 * 16 * count for count in blocks]  # both parts of gradients
    assert len(backward) == 2 * len(blocks)


def bad(error: type[Exception], text: str, **changes: Any) -> Any:
    return pytest.param(error, text, changes, id=text[:40])


H, S, W = torch.zeros(4, 3), torch.zeros(5, 2, dtype=torch.int64), torch.zeros(2, 6)


@everywhere
@pytest.mark.parametrize(
    ("error", "text", "changes"),
    [
        bad(ValueError, r"weight must have shape \[O, D\] with D = 6, the columns of start, mean, got \[2, 5\]",
            weight=torch.zeros(2, 5)),
        bad(ValueError, r"weight must have shape \[O, D\], got \[6\]", weight=torch.zeros(6)),
        bad(TypeError, "weight must be floating point, got torch.int64", weight=W.long()),
        bad(TypeError, "weight is on meta, but hidden is on cpu", weight=W.to("meta")),
        bad(ValueError, r"bias must have shape \[2\], got \[3\]", bias=torch.zeros(3)),
        bad(ValueError, r"bias must have shape \[2\], got \[1, 2\]", bias=torch.zeros(1, 2)),
        bad(TypeError, "bias is on meta", bias=torch.zeros(2, device="meta")),
        bad(ValueError, "activation must be .*, got 'tanh'", activation="tanh"),
        bad(ValueError, "unknown part 'median'", parts=["median"]),
        bad(ValueError, "part 'attention' needs scores", parts=["attention"]),
        bad(ValueError, "span 1 covers tokens 3 to 4, but hidden has 4 tokens", spans=torch.tensor([[0, 3], [3, 4]])),
        bad(ValueError, r"hidden must have shape \[T, H\], got \[4\]", hidden=H[:, 0]),
    ],
)  # fmt: skip
def test_bad_arguments(backend: str, error: type[Exception], text: str, changes: dict[str, Any]) -> None:
    arguments = {"hidden": H, "spans": S, "parts": ["start", "mean"], "weight": W, "backend": backend, **changes}
    with pytest.raises(error, match=text):
        span_linear(**arguments)


def test_eager_works_in_chunks_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    from spanbert_kernels.ops.span_linear import reference
    from spanbert_kernels.ops.span_pool import reference as span_pool

    tensors = make(EVERY, torch.float64, spans=40)
    expected = span_linear(**tensors, parts=EVERY, backend="eager")
    chunks: list[int] = []
    whole = reference.span_linear

    def counting(hidden: Tensor, start: Tensor, *rest: Any) -> Tensor:
        chunks.append(len(start))
        return whole(hidden, start, *rest)

    monkeypatch.setattr(reference, "span_linear", counting)
    monkeypatch.setattr(span_pool, "EAGER_CHUNK", 7 * 25)
    torch.testing.assert_close(span_linear(**tensors, parts=EVERY, backend="eager"), expected, rtol=1e-13, atol=1e-13)
    assert len(chunks) > 2
    assert sum(chunks) == 40


@everywhere
@pytest.mark.parametrize("count", [13, 5])
def test_a_layer_of_no_columns_has_gradients_of_zeros(backend: str, count: int) -> None:
    tensors = make(LINEAR, spans=count)
    tensors |= {"weight": tensors["weight"][:0], "bias": tensors["bias"][:0]}
    leaves = {n: t.clone().requires_grad_() if t.is_floating_point() else t for n, t in tensors.items()}
    output = span_linear(**leaves, parts=LINEAR, backend=backend)
    assert output.shape == (count, 0)
    wanted = [leaf for leaf in leaves.values() if leaf.requires_grad]
    for leaf, grad in zip(wanted, torch.autograd.grad(output.sum(), wanted), strict=True):
        assert grad.shape == leaf.shape
        assert not grad.any()
