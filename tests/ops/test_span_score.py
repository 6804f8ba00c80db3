"""span_score: the shared checks over its tables, then dropout, memory and bad arguments."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_cases import (
    LINEAR,
    MENTION,
    SCORE_BLOCKS,
    SCORE_BY_DOCUMENT,
    SCORE_CASES,
    SCORE_POOLED_FIRST_BY_DOCUMENT,
    SCORE_POOLED_FIRST_CASES,
    ProjectedChecks,
    layer_inputs,
    multiply_as_on_a_gpu,
    score_by_loop,
    use_small_blocks,
)
from op_checks import (
    Case,
    Place,
    RecordRawCalls,
    Setting,
    Tensors,
    cast,
    check_error,
    check_result,
    differentiable,
    every_backend,
    place_parameters,
    run_setting,
    sizes_of_terms,
    yardsticks,
)
from pool_cases import pool_inputs, with_plan
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spanbert_kernels.ops import backends, enumerate_spans, philox, span_linear, span_score
from spanbert_kernels.testing import deviation

everywhere = every_backend("span_score")


class TestShared(ProjectedChecks):
    operation = "span_score"
    cases = SCORE_CASES


class TestPooledFirst(ProjectedChecks):
    """Fewer spans than tokens: span_pool's kernels run as well."""

    operation = "span_score"
    cases = SCORE_POOLED_FIRST_CASES
    once_only = "span_(score|pool)"

    def test_raw_operators(self, logic: Case, best_backend: str) -> None:
        with RecordRawCalls() as record:
            run_setting(Setting(logic), best_backend)
        names = [func.name().split("::")[1].removesuffix("_triton") for func, _, _ in record.calls]
        ours = [name for name in names if name.endswith(("_forward", "_backward"))]
        way = ["span_pool_forward", "span_score_forward", "span_score_backward", "span_pool_backward"]
        # Once for each tensor of tokens.
        assert list(dict.fromkeys(ours)) == ([] if best_backend == "eager" else way)


@pytest.mark.slow
class TestByDocument(ProjectedChecks):
    operation = "span_score"
    cases = SCORE_BY_DOCUMENT


@pytest.mark.slow
class TestPooledFirstByDocument(TestPooledFirst):
    cases = SCORE_POOLED_FIRST_BY_DOCUMENT


@everywhere
@pytest.mark.parametrize("case", [SCORE_BY_DOCUMENT[0], SCORE_POOLED_FIRST_BY_DOCUMENT[-1]], ids=lambda case: case.name)
def test_by_document(backend: str, case: Case) -> None:
    """What every test run checks of those: values and gradients, the spans in any order of their documents."""
    setting = Setting(case, size=2)
    check_result(setting, backend, run_setting(setting, backend))


def make(parts: list[str], *, outputs: int = 7, scores: int = 2, **inputs: Any) -> Tensors:
    sizes = {"heads": 2, "table": 3, "spans": 13, **inputs}
    return cast(layer_inputs(1, partial(pool_inputs, **sizes), parts, outputs, scores=scores), torch.float32)


@everywhere
def test_one_score_comes_without_a_dimension(backend: str) -> None:
    tensors = make(LINEAR, scores=1)
    expected = span_score(**tensors, parts=LINEAR, backend=backend)
    for out_bias in (tensors["out_bias"], tensors["out_bias"][0]):
        own = {**tensors, "out_weight": tensors["out_weight"][0], "out_bias": out_bias}
        found = span_score(**own, parts=LINEAR, backend=backend)
        assert found.shape == (13,)
        torch.testing.assert_close(found, expected[:, 0])


class LargestTensor(TorchDispatchMode):
    """The most elements that a result of any operator has."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.untyped_storage().nbytes() // 4 for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


@everywhere
def test_the_layer_between_is_never_formed(backend: str) -> None:
    """No operator returns a tensor of [N, O] elements; span_linear, for comparison, does."""
    if backend == "eager":
        pytest.skip("the definition forms it")
    tensors = make(MENTION, outputs=64, scores=1, tokens=24, heads=1)
    tensors["spans"] = enumerate_spans(torch.tensor([0, 24]), 16)
    spans, projected = len(tensors["spans"]), 24 * 3 * 64
    assert projected < spans * 64
    leaves = {n: t.requires_grad_() if isinstance(t, Tensor) else t for n, t in tensors.items()}
    # The mode sees the backward's operators too: they run in this thread.
    with LargestTensor() as largest:
        output = span_score(**leaves, parts=MENTION, dropout_p=0.1, backend=backend)
        output.sum().backward()
    assert leaves["hidden"].grad is not None
    assert largest.elements <= projected
    layer = {n: t for n, t in leaves.items() if not n.startswith("out_")}
    with LargestTensor() as largest:
        span_linear(**layer, parts=MENTION, backend=backend)
    assert largest.elements == spans * 64


def test_eager_works_in_chunks_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    from spanbert_kernels.ops.span_pool import reference as span_pool

    tensors = make(MENTION, outputs=64, heads=1, spans=300, tokens=40)
    call = partial(span_score, **tensors, parts=MENTION, dropout_p=0.4, seed=torch.tensor([3]), backend="eager")
    with LargestTensor() as largest:
        expected = call()
    assert largest.elements >= 300 * 64
    monkeypatch.setattr(span_pool, "EAGER_CHUNK", 64 * 40)
    with LargestTensor() as largest:
        found = call()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert largest.elements < 300 * 64


@pytest.mark.parametrize("backend", [Place("triton", "interpreter")], indirect=True, ids=str)
def test_triton_in_several_blocks(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)
    setting = Setting(SCORE_BLOCKS)
    check_result(setting, backend, run_setting(setting, backend))


@pytest.mark.parametrize("backend", [Place("cpu")], indirect=True, ids=str)
@pytest.mark.parametrize(
    ("case", "rows"),
    [(SCORE_CASES[2], [16 * 3]), (SCORE_BY_DOCUMENT[0], [16 * 2, 16, 16]), (SCORE_BY_DOCUMENT[1], [35 * 2])],
    ids=["dropout", "by document", "norm"],
)
def test_products_as_on_a_gpu(backend: str, case: Case, rows: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 16 bits, and the columns of zeros score nothing; a norm counts its columns."""
    shapes = multiply_as_on_a_gpu(monkeypatch)
    setting = Setting(case, dtype=torch.float16)
    check_result(setting, backend, run_setting(setting, backend))
    assert [count for count, _ in shapes[: len(rows)]] == rows
    assert len(shapes) == 3 * len(rows)  # two gradients each


@pytest.mark.parametrize("backend", place_parameters(("triton",)), indirect=True)
@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=[pytest.mark.slow] if c.large else []) for c in SCORE_CASES]
)
def test_triton_goes_back_in_chunks(backend: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the rule of the shared checks, against the definition and against all spans at once."""
    from spanbert_kernels.ops.span_score import triton as launches

    setting, chunks = Setting(case), []
    before_activation = launches._before_activation

    def counting(part: Any, *rest: Any) -> Tensor:
        chunks.append(len(part))
        return before_activation(part, *rest)

    monkeypatch.setattr(launches, "_before_activation", counting)
    whole = run_setting(setting, backend)
    (spans,) = chunks
    chunks.clear()
    outputs = setting.tensors()["weight"].shape[0]
    monkeypatch.setattr(launches, "CHUNK_BYTES", max(1, spans // 3) * outputs * 4 + 3)
    found = run_setting(setting, backend)
    assert len(chunks) > 1
    assert chunks == [*[max(1, spans // 3)] * (len(chunks) - 1), chunks[-1]]
    assert sum(chunks) == spans

    check_result(setting, backend, found)
    assert torch.equal(found.outputs[0], whole.outputs[0])
    for name, grad in found.grads.items():
        others = [other.grads[name] for other in yardsticks(setting, backend)]
        check_error(f"gradient of {name}", grad, whole.grads[name], others, sizes_of_terms(setting).get(name))


def kept_by_scores(backend: str, rows: int, columns: int, p: float, seed: int) -> Tensor:
    """Which entries of a layer of ones are kept: each column is a score of its own."""
    hidden = torch.zeros(1, 1, dtype=torch.float32)
    spans, eye = torch.zeros(rows, 2, dtype=torch.int64), torch.eye(columns)
    output = span_score(
        hidden, spans, ["start"], torch.zeros(columns, 1), torch.ones(columns), eye, dropout_p=p,
        seed=torch.tensor([seed]), backend=backend,
    )  # fmt: skip
    kept = output != 0
    torch.testing.assert_close(output, kept / (1 - p))
    return kept


@everywhere
def test_dropout_is_that_of_the_definition(backend: str) -> None:
    """By (seed, 0, row, column), over more columns than a vector generator makes at once, and a rest."""
    for columns in (1, 5, 77):
        kept = kept_by_scores(backend, 40, columns, 0.3, -(2**40) + 5)
        rows, all_columns = torch.arange(40)[:, None], torch.arange(columns)
        expected = philox.keep(torch.tensor([-(2**40) + 5]), 0.3, torch.zeros_like(rows), rows, all_columns)
        assert torch.equal(kept, expected)


@everywhere
def test_dropout_belongs_to_the_output_row(backend: str) -> None:
    """The order in which kernels take the spans does not matter: a plan, and spans without tokens between."""
    tensors = make(LINEAR, spans=20)
    tensors["spans"][[2, 11]] = torch.tensor([3, 2])
    options: dict[str, Any] = {"parts": LINEAR, "dropout_p": 0.5, "seed": torch.tensor([8]), "backend": backend}
    expected = score_by_loop(**{n: v for n, v in options.items() if n != "backend"}, **tensors)
    for arguments in (tensors, with_plan(tensors)):
        torch.testing.assert_close(span_score(**arguments, **options), expected, rtol=1e-4, atol=1e-5)


@everywhere
def test_the_seed_is_drawn_from_torch_and_kept_for_the_backward(backend: str) -> None:
    tensors = make(LINEAR, outputs=50)

    def call() -> tuple[Tensor, Tensor]:
        leaf = tensors["out_weight"].clone().requires_grad_()
        output = span_score(**{**tensors, "out_weight": leaf, "out_bias": None}, parts=LINEAR, dropout_p=0.5,
                            backend=backend)  # fmt: skip
        torch.rand(3)  # the backward draws nothing: it would be thrown off
        return output, torch.autograd.grad(output.sum(), leaf)[0]

    torch.manual_seed(3)
    first, grad = call()
    second, _ = call()
    torch.manual_seed(3)
    again, same_grad = call()
    assert not torch.equal(first, second)
    assert torch.equal(first, again)
    assert torch.equal(grad, same_grad)
    # The output is linear in out_weight: the gradient and the output must have dropped the same entries.
    assert float(first.detach().sum()) == pytest.approx(float((grad * tensors["out_weight"]).sum()), rel=1e-4)


@everywhere
@pytest.mark.parametrize("enumerated", [False, True], ids=["tensor", "enumerated"])
def test_what_is_dropped_may_be_infinite(backend: str, enumerated: bool) -> None:
    """Also where a kernel's tile has room behind the last span, for rows that would keep it."""
    columns, seed = 40, torch.tensor([11])
    kept = philox.keep(seed, 0.5, *(torch.zeros(1, dtype=torch.int64),) * 2, torch.arange(columns))
    bias = torch.where(kept, 1.0, torch.inf).requires_grad_()
    spans = enumerate_spans(torch.tensor([0, 1]), 1) if enumerated else torch.zeros(1, 2, dtype=torch.int64)
    out_weight = torch.ones(columns, requires_grad=True)
    output = span_score(torch.zeros(1, 1), spans, ["start"], torch.zeros(columns, 1), bias, out_weight,
                        dropout_p=0.5, seed=seed, backend=backend)  # fmt: skip
    assert output.item() == 2 * int(kept.sum())
    for grad in torch.autograd.grad(output.sum(), [bias, out_weight]):
        assert torch.equal(grad, 2.0 * kept)


@everywhere
@pytest.mark.parametrize("scores", [2, 7])
def test_the_norm_keeps_its_digits(backend: str, scores: int) -> None:
    """Where the mean is a thousand times the deviation, as much is left as of plain PyTorch's."""
    tensors = make(["start", "end"], outputs=90, scores=scores)
    tensors["bias"] += 1000.0
    tensors["weight"] *= 0.5
    tensors |= {"out_bias": torch.zeros(scores), "out_weight": tensors["out_weight"] + 1.0}

    def results(name: str, dtype: torch.dtype) -> list[Tensor]:
        leaves = differentiable(cast(tensors, dtype))
        norm = (None, None, 1e-5)
        output = span_score(**leaves, parts=["start", "end"], activation="none", norm=norm, backend=name)
        wanted = [leaf for name, leaf in leaves.items() if name in ("hidden", "weight", "out_weight")]
        return [output, *torch.autograd.grad(output.square().sum(), wanted)]

    exact, plain, found = (
        results("eager", torch.float64),
        results("eager", torch.float32),
        results(backend, torch.float32),
    )
    for value, own, ref in zip(found, plain, exact, strict=True):
        assert deviation(value, ref) <= 4 * deviation(own, ref) + 1e-6 * float(ref.abs().max())


@everywhere
def test_documents_do_not_touch_each_other(backend: str) -> None:
    """One that holds NaN, in its tokens, its weight and its gradients, spoils no other's scores or gradients."""
    tensors = make(["start", "end"], scores=6, tokens=12, spans=30)
    tensors["spans"][4] = torch.tensor([3, 2])
    cu_seqlens, bad = torch.tensor([0, 4, 4, 9, 12]), slice(4, 9)
    tensors["out_weight"] = torch.randn(4, 6, 7, generator=torch.Generator().manual_seed(1))
    start, last = tensors["spans"].unbind(1)
    document = torch.bucketize(start, cu_seqlens[1:], right=True)
    tensors["spans"][:, 1] = torch.minimum(last, cu_seqlens[document + 1] - 1)
    spoilt = (document == 2) & (last >= start)
    grad = torch.randn(30, 6, generator=torch.Generator().manual_seed(2))
    results = []
    for value in (0.0, torch.nan):
        given = {name: tensor.clone() for name, tensor in tensors.items()}
        given["hidden"][bad], given["out_weight"][2] = value, value
        leaves = differentiable(given)
        output = span_score(**leaves, parts=["start", "end"], norm=(None, None, 1e-5), cu_seqlens=cu_seqlens,
                            backend=backend)  # fmt: skip
        incoming = torch.where(spoilt[:, None], value, grad)
        found = torch.autograd.grad(output, [leaves["hidden"], leaves["out_weight"]], incoming)
        results.append((output[~spoilt], found[0][[0, 1, 2, 3, 9, 10, 11]], found[1][[0, 1, 3]]))
    for clean, beside in zip(*results, strict=True):
        assert beside.isfinite().all()
        torch.testing.assert_close(beside, clean)


@everywhere
def test_empty_spans_score_the_activated_bias(backend: str) -> None:
    tensors = make(LINEAR)
    tensors["spans"][[0, 5, 12]] = torch.tensor([[3, 2], [8, 5], [0, -1]])
    output = span_score(**tensors, parts=LINEAR, activation="gelu", backend=backend)
    inner = torch.nn.functional.gelu(tensors["bias"])
    expected = tensors["out_weight"] @ inner + tensors["out_bias"]
    for i in (0, 5, 12):
        torch.testing.assert_close(output[i], expected)


@pytest.mark.parametrize("backend", place_parameters(("cpu", "eager"), (Place("cpu"), Place("eager"))), indirect=True)
def test_empty_spans_are_of_no_document(backend: str) -> None:
    """Weights of documents give them zeros, and get no gradient of theirs."""
    tensors = make(LINEAR)
    tensors["spans"][[0, 5, 12]] = torch.tensor([[3, 2], [8, 5], [0, -1]])
    weights = torch.stack([tensors.pop("out_weight")] * 2).requires_grad_()
    tensors |= {"out_weight": weights, "out_bias": None, "cu_seqlens": torch.tensor([0, 4, len(tensors["hidden"])])}
    output = span_score(**tensors, parts=LINEAR, activation="gelu", backend=backend)
    assert not output[[0, 5, 12]].any()
    (gradient,) = torch.autograd.grad(output[[0, 5, 12]].sum(), weights)
    assert not gradient.any()


@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    tokens=st.integers(1, 30),
    outputs=st.integers(1, 70),
    scores=st.integers(0, 3),
    heads=st.integers(1, 3),
    spans=st.integers(0, 60),
    width=st.integers(1, 12),
    seed=st.integers(1, 10**6),
    dropout_p=st.sampled_from([0.0, 0.3]),
    parts=st.lists(st.sampled_from(LINEAR), min_size=1, max_size=6, unique=True),
)
def test_any_spans(
    tokens: int, outputs: int, scores: int, heads: int, spans: int, width: int, seed: int, dropout_p: float,
    parts: list[str],
) -> None:  # fmt: skip
    if backends.refusal("cpu", "cpu", torch.float64) is not None:
        pytest.skip("no compiled kernels here")
    inputs = partial(pool_inputs, tokens=tokens, columns=4, heads=heads, spans=spans, width=width, table=4)
    tensors = layer_inputs(seed, lambda size: inputs(1), parts, outputs, scores=scores, seed=seed)
    results = []
    for name in ("cpu", "eager"):
        leaves = {n: t.clone().requires_grad_(t.is_floating_point()) for n, t in tensors.items()}
        output = span_score(**leaves, parts=parts, dropout_p=dropout_p, backend=name)
        grad = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view(output.shape)
        sources = [leaf for leaf in leaves.values() if leaf.requires_grad]
        results.append((output, *torch.autograd.grad(output, sources, grad, materialize_grads=True, allow_unused=True)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def bad(error: type[Exception], text: str, **changes: Any) -> Any:
    return pytest.param(error, text, changes, id=text[:40])


H, S = torch.zeros(4, 3), torch.zeros(5, 2, dtype=torch.int64)


@everywhere
@pytest.mark.parametrize(
    ("error", "text", "changes"),
    [
        bad(ValueError, "span_score takes no part 'max': .* use span_linear", parts=["start", "max"]),
        bad(TypeError, "parts must be a sequence of names, got the string 'max'", parts="max"),
        bad(ValueError, r"weight must have shape \[O, D\] with D = 3", weight=torch.zeros(2, 5)),
        bad(ValueError, r"out_weight must have .* O = 2, the rows of weight, got \[3\]", out_weight=torch.zeros(3)),
        bad(ValueError, r"out_weight must have shape .* got \[1, 1, 2\]", out_weight=torch.zeros(1, 1, 2)),
        bad(TypeError, "out_weight must be floating point, got torch.int64", out_weight=torch.zeros(2).long()),
        bad(TypeError, "out_weight is on meta", out_weight=torch.zeros(2, device="meta")),
        bad(TypeError, "out_weight must be a tensor .* got NoneType", out_weight=None),
        bad(ValueError, r"out_bias must have shape \[1\], got \[2\]", out_bias=torch.zeros(2)),
        bad(ValueError, r"dropout_p must be in \[0, 1\), got 1.0", dropout_p=1.0),
        bad(TypeError, "seed must be one int64 number", dropout_p=0.1, seed=torch.zeros(2).long()),
        bad(ValueError, "activation must be .*'tanh'", activation="tanh"),
    ],
)  # fmt: skip
def test_bad_arguments(backend: str, error: type[Exception], text: str, changes: dict[str, Any]) -> None:
    arguments = {"hidden": H, "spans": S, "parts": ["start"], "weight": torch.zeros(2, 3), "bias": None,
                 "out_weight": torch.zeros(2), "backend": backend, **changes}  # fmt: skip
    with pytest.raises(error, match=text):
        span_score(**arguments)


@everywhere
@pytest.mark.parametrize("count", [13, 5])
def test_a_layer_of_no_columns_scores_the_last_bias(backend: str, count: int) -> None:
    tensors = make(LINEAR)
    tensors |= {"weight": tensors["weight"][:0], "bias": tensors["bias"][:0], "spans": tensors["spans"][:count]}
    tensors["out_weight"] = tensors["out_weight"][:, :0]
    leaves = {n: t.clone().requires_grad_() if t.is_floating_point() else t for n, t in tensors.items()}
    output = span_score(**leaves, parts=LINEAR, backend=backend)
    assert torch.equal(output, tensors["out_bias"].expand_as(output))
    wanted = {name: leaf for name, leaf in leaves.items() if leaf.requires_grad}
    for name, grad in zip(wanted, torch.autograd.grad(output.sum(), list(wanted.values())), strict=True):
        assert grad.shape == wanted[name].shape
        assert bool(grad.any()) == (name == "out_bias")
