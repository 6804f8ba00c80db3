"""Linear layers through another product than PyTorch's own, and where they leave it to PyTorch."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_checks import poisoned_memory
from torch import Tensor, nn
from torch.autograd import forward_ad

from spanbert_kernels import ops
from spanbert_kernels.nn.feed_forward import feed_forward
from spanbert_kernels.nn.linear import run_linear
from spanbert_kernels.ops import onednn, products
from spanbert_kernels.testing import assert_as_exact_as_eager

Inputs = tuple[Tensor, Tensor, Tensor | None]
ROWS, IN, OUT = 100, 48, 36

needs_onednn = pytest.mark.skipif(
    products.CHOICE.candidates["onednn"].refusal() is not None, reason="oneDNN does not multiply float32 here"
)


@pytest.fixture(autouse=True)
def taken(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The choice is oneDNN; the shapes of the weights that it multiplied by."""
    shapes: list[torch.Size] = []
    onednn = products.PRODUCTS["onednn"]

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        shapes.append(weight.shape)
        return onednn(x, weight, bias)

    monkeypatch.setitem(products.PRODUCTS, "onednn", counted)
    monkeypatch.setenv(products.VARIABLE, "onednn")
    return shapes


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def dense() -> Inputs:
    return random(ROWS, IN), random(OUT, IN), random(OUT)


CASES: dict[str, Callable[[], Inputs]] = {
    "dense": dense,
    "without bias": lambda: (random(ROWS, IN), random(OUT, IN), None),
    "three dimensions": lambda: (random(5, 20, IN), random(OUT, IN), random(OUT)),
    "transposed": lambda: (random(IN, ROWS).t(), random(IN, OUT).t(), random(OUT)),
    "parts": lambda: (random(ROWS, 3 * IN)[:, IN : 2 * IN], random(OUT, 2 * IN)[:, 5 : 5 + IN], random(2 * OUT)[::2]),
    "every other": lambda: (random(2 * ROWS, 2 * IN)[::2, ::2], random(2 * OUT, 2 * IN)[::2, ::2], random(OUT)),
    "expanded": lambda: (random(1, IN).expand(ROWS, IN), random(1, IN).expand(OUT, IN), random(1).expand(OUT)),
    "overlapping": lambda: (
        random(IN + ROWS).as_strided((ROWS, IN), (1, 1)),
        random(IN + OUT).as_strided((OUT, IN), (1, 1)),
        random(OUT),
    ),
    "one column": lambda: (random(ROWS, IN), random(1, IN), random(1)),
    "from one column": lambda: (random(ROWS, 1), random(OUT, 1), random(OUT)),
}
INCOMING: dict[str, Callable[[torch.Size], Tensor]] = {
    "dense": lambda shape: random(*shape),
    "expanded": lambda shape: random(1).expand(shape),
    "transposed": lambda shape: random(*shape[::-1]).permute(*reversed(range(len(shape)))),
}


def run(
    function: Callable[..., Tensor], inputs: Inputs, grad: Tensor, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    leaves = [None if each is None else each.detach().to(dtype).requires_grad_() for each in inputs]
    output = function(*leaves)
    grads = torch.autograd.grad(output, [leaf for leaf in leaves if leaf is not None], grad.to(dtype))
    return [output.detach(), *grads]


@needs_onednn
@pytest.mark.parametrize("incoming", INCOMING)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case: str, incoming: str, taken: list[torch.Size]) -> None:
    inputs = CASES[case]()
    grad = INCOMING[incoming](torch.Size([*inputs[0].shape[:-1], inputs[1].shape[0]]))
    kept = [None if each is None else each.clone() for each in (*inputs, grad)]
    found = run(products.linear, inputs, grad)
    assert len(taken) == 3
    exact, eager = run(F.linear, inputs, grad, torch.float64), run(F.linear, inputs, grad)
    for result, reference, plain in zip(found, exact, eager, strict=True):
        # sums of equal terms round alike in some orders, and leave PyTorch's own with no error
        loose = 100 * torch.finfo(torch.float32).eps * reference.abs().max() if "expanded" in (case, incoming) else 0
        if loose:
            assert (result - reference).abs().max() <= loose
        else:
            assert_as_exact_as_eager(result, reference, plain)
        assert result.shape == plain.shape
    for before, after in zip(kept, (*inputs, grad), strict=True):
        assert before is None or (after is not None and torch.equal(before, after))
    with poisoned_memory():
        again = run(products.linear, inputs, grad)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


@needs_onednn
@pytest.mark.parametrize("case", [*CASES, "feed forward"])
def test_nothing_is_multiplied_by_onednns_reference(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Which takes seconds where others take milliseconds; oneDNN's own words say what ran."""
    wide = (random(1030, 48), random(1024, 48), random(1024))  # rows of results that lie apart, where it is MKL's turn
    x, weight, bias = CASES.get(case, lambda: wide)()
    products.products()  # what oneDNN is asked before it is taken
    leaves = [each.detach().requires_grad_() for each in (x, weight, random(48, len(weight)))]
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        if case in CASES:
            output = products.linear(*leaves[:2], bias)
        else:
            output = feed_forward(*leaves[:2], bias, leaves[2], None, "gelu")
        output.backward(random(*output.shape))
        ctypes.CDLL(None).fflush(None)
    said = [line for line in capfd.readouterr().out.splitlines() if ",exec,cpu,inner_product," in line]
    assert len(said) >= (3 if case in CASES else 6)
    assert [line for line in said if ",ref" in line] == []


@needs_onednn
@pytest.mark.parametrize("shape", [(112,), (100,), (1124,), (4, 28), (4, 25), (2, 562)])
def test_results_may_be_changed_in_place(shape: tuple[int, ...], taken: list[torch.Size]) -> None:
    """As bare results of PyTorch's own may, whatever sizes rows come in."""
    weight = random(OUT, IN).requires_grad_()
    result = products.linear(random(*shape, IN), weight)
    assert taken
    result[..., 0] += 5.0
    result.sum().backward()
    torch.testing.assert_close(
        weight.grad, random(*shape, IN).flatten(0, -2).sum(0).expand(OUT, IN), rtol=1e-4, atol=1e-3
    )


def test_rows_come_in_few_sizes() -> None:
    """All of them, once each, whatever their number; of sizes there are few."""
    for sizes, least, most in (onednn.sizes_of_rows, 16, 40), (onednn.sizes_of_sums, 64, 5):
        found = {rows: list(sizes(rows)) for rows in range(5000)}
        assert all(sum(count for _, count in own) == rows for rows, own in found.items())
        assert all(count == size for own in found.values() for size, count in own[:-1])
        assert all(0 < count <= size < count + least for own in found.values() for size, count in own[-1:])
        assert len({size for own in found.values() for size, _ in own}) <= most


@needs_onednn
def test_onednn_compiles_for_few_sizes(capfd: pytest.CaptureFixture[str]) -> None:
    """Of texts of many lengths, forward and backward: it keeps for good what it compiled."""
    products.products()
    weight, bias = random(40, 48).requires_grad_(), random(40)
    shapes = []
    with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
        for rows in range(64, 1300, 9):
            products.linear(random(rows, 48).requires_grad_(), weight, bias).sum().backward()
            ctypes.CDLL(None).fflush(None)
            said = [line.split(",") for line in capfd.readouterr().out.splitlines()]
            shapes += [tuple(words[-6:-1]) for words in said if "inner_product" in words and "exec" in words]
    assert len(shapes) > 3 * 138
    assert len(set(shapes)) < 80


def test_what_is_filled_up_and_added_up_is_exact() -> None:
    for rows in 0, 1, 15, 100, 300, 1111, 2100:
        x, grad, weight, bias = random(rows, 24), random(rows, 40), random(40, 24), random(40)
        found = [onednn.linear(x, weight, bias), onednn.linear(x, onednn.pack(weight), bias, grad)]
        found += [onednn.linear(x, weight, None, None, ("relu", "")), onednn.transposed_product(grad, x)]
        exact, eager = (
            [product, product + g, (a @ w.t()).relu(), g.t() @ a]
            for a, g, w, b in ([each.double() for each in (x, grad, weight, bias)], (x, grad, weight, bias))
            for product in [a @ w.t() + b]
        )
        for one, reference, plain in zip(found, exact, eager, strict=True):
            assert_as_exact_as_eager(one, reference, plain)


@needs_onednn
@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True), (False,) * 3])
def test_only_what_is_wanted_is_computed_and_kept(wanted: tuple[bool, ...], taken: list[torch.Size]) -> None:
    leaves = [each.requires_grad_(want) for each, want in zip(dense(), wanted, strict=True) if each is not None]
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        output = products.linear(*leaves)
    assert output.requires_grad == any(wanted)
    kept_storages = {each.untyped_storage().data_ptr() for each in kept}
    assert kept_storages == {
        *([leaves[1].untyped_storage().data_ptr()] if wanted[0] else []),
        *([leaves[0].untyped_storage().data_ptr()] if wanted[1] else []),
    }
    if any(wanted):
        output.sum().backward()
    assert [each.grad is not None for each in leaves] == list(wanted)
    assert len(taken) == 1 + sum(wanted[:2])


@needs_onednn
def test_second_derivatives_are_those_of_pytorch() -> None:
    def twice(function: Callable[..., Tensor], dtype: torch.dtype = torch.float32) -> list[Tensor]:
        leaves = [each.to(dtype).requires_grad_() for each in dense() if each is not None]
        first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
        return list(torch.autograd.grad(sum(each.square().sum() for each in first), leaves))

    exact = twice(F.linear, torch.float64)
    for found, reference, eager in zip(twice(products.linear), exact, twice(F.linear), strict=True):
        assert_as_exact_as_eager(found, reference, eager)


@needs_onednn
def test_many_gradients_at_once_are_those_of_pytorch() -> None:
    def batched(function: Callable[..., Tensor]) -> Tensor:
        x, weight, bias = dense()
        x.requires_grad_()
        many = random(3, ROWS, OUT)
        (found,) = torch.autograd.grad(function(x, weight, bias), x, many, is_grads_batched=True)
        return found

    torch.testing.assert_close(batched(products.linear), batched(F.linear))


def test_a_changed_input_is_noticed() -> None:
    x, weight, _ = dense()
    output = products.linear(x, weight.requires_grad_())
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def _with_functorch(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.func.vmap(lambda row: products.linear(row, weight, bias))(x[None])[0]


def _forward_mode(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(products.linear(forward_ad.make_dual(x, x), weight, bias)).tangent + bias


def _compiled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.compile(products.linear, fullgraph=True, backend="eager")(x, weight, bias)


def _autocast(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        result = products.linear(x, weight, bias)
        assert torch.equal(result, F.linear(x, weight, bias))
    assert result.dtype == torch.bfloat16
    return F.linear(x, weight, bias)


def _without_onednn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    with torch.backends.mkldnn.flags(enabled=False):
        return products.linear(x, weight, bias)


class Marked(Tensor):
    """A kind of tensor that somebody made."""


def _subclass(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    result = products.linear(x.as_subclass(Marked), weight, bias)
    assert type(result) is Marked
    return result.as_subclass(Tensor)


LEFT_TO_PYTORCH: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "a function transform": _with_functorch,
    "forward mode": _forward_mode,
    "torch.compile": _compiled,
    "autocast": _autocast,
    "oneDNN switched off": _without_onednn,
    "a subclass": _subclass,
    "few rows": lambda x, weight, bias: torch.cat([products.linear(each, weight, bias) for each in x.split(63)]),
    "float64": lambda x, weight, bias: products.linear(x.double(), weight.double(), bias.double()).float(),
}


@pytest.mark.parametrize("case", LEFT_TO_PYTORCH)
def test_what_is_left_to_pytorch(case: str, taken: list[torch.Size]) -> None:
    x, weight, bias = dense()
    assert bias is not None
    torch.testing.assert_close(LEFT_TO_PYTORCH[case](x, weight, bias), F.linear(x, weight, bias))
    assert taken == []


@pytest.mark.parametrize(
    "shapes",
    [((0, IN), (OUT, IN)), ((ROWS, 0), (OUT, 0)), ((ROWS, IN), (0, IN)), ((2, 0, IN), (OUT, IN)), ((IN,), (OUT, IN))],
)
def test_empty_and_flat_inputs(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    x, weight = (random(*shape) for shape in shapes)
    bias = random(len(weight))
    grad = random(*x.shape[:-1], len(weight))
    for found, wanted in zip(
        *(run(each, (x, weight, bias), grad) for each in (products.linear, F.linear)), strict=True
    ):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("x", "weight", "bias"), [((ROWS, 3), (OUT, IN), (OUT,)), ((ROWS, IN), (OUT, IN), (3,)), ((ROWS, IN), (IN,), (5,))]
)
def test_what_does_not_fit_is_refused_as_by_pytorch(x: Any, weight: Any, bias: Any) -> None:
    texts = []
    for function in (products.linear, F.linear):
        with pytest.raises(RuntimeError) as raised:
            function(random(*x), random(*weight), random(*bias))
        texts.append(str(raised.value))
    assert texts[0] == texts[1]


def test_pytorch_s_own_is_pytorch_s_own(monkeypatch: pytest.MonkeyPatch, taken: list[torch.Size]) -> None:
    """To the bit, and without a step of its own in the graph."""
    monkeypatch.setenv(products.VARIABLE, "torch")
    x, weight, bias = dense()
    output = products.linear(x.requires_grad_(), weight, bias)
    assert output.grad_fn is not None
    assert output.grad_fn.name() == "AddmmBackward0"
    assert taken == []
    assert products.products() == {"float32": f"torch (set by {products.VARIABLE})"}


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(products.VARIABLE, "mkl")
    with pytest.raises(ValueError, match=f"^{products.VARIABLE} must be one of torch, onednn, measure, got 'mkl'$"):
        products.linear(*dense())


@needs_onednn
@pytest.mark.parametrize("parts", [["start"], ["start", "end", "width"], ["max", "mean"]])
def test_projections_of_spans(parts: list[Any], taken: list[torch.Size], monkeypatch: pytest.MonkeyPatch) -> None:
    """span_linear multiplies tokens by blocks of its weight."""
    hidden, table = random(ROWS, IN), random(4, 6)
    spans = torch.arange(ROWS - 3)[:, None] + torch.tensor([[0, 1]]) + (torch.arange(ROWS - 3) % 3)[:, None] // 2
    spans = torch.cat([spans, spans])
    weight = random(OUT, sum(6 if part == "width" else IN for part in parts))

    def gradients(dtype: torch.dtype) -> list[Tensor]:
        leaves = [each.to(dtype).requires_grad_() for each in (hidden, weight, table)]
        output = ops.span_linear(
            leaves[0], spans, parts, leaves[1], width_embedding=leaves[2] if "width" in parts else None
        )
        grads = torch.autograd.grad(output, leaves, random(*output.shape).to(dtype), allow_unused=True)
        return [output.detach(), *(grad for grad in grads if grad is not None)]

    found = gradients(torch.float32)
    assert len(taken) >= 3
    exact = gradients(torch.float64)
    monkeypatch.setenv(products.VARIABLE, "torch")
    for result, reference, plain in zip(found, exact, gradients(torch.float32), strict=True):
        assert_as_exact_as_eager(result, reference, plain)


class Doubling(nn.Linear):
    """What an adapter might put in a Linear's place."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@needs_onednn
def test_modules_that_do_more_than_multiply_keep_their_effect(taken: list[torch.Size]) -> None:
    x = random(ROWS, IN)
    plain, doubling, hooked, replaced = nn.Linear(IN, OUT), Doubling(IN, OUT), nn.Linear(IN, OUT), nn.Linear(IN, OUT)
    hooked.register_forward_hook(lambda module, inputs, output: -output)
    replaced.forward = lambda input: input + 1  # type: ignore[method-assign]
    for module in (doubling, hooked, replaced):
        assert torch.equal(run_linear(module, x), module(x))
    assert taken == []
    torch.testing.assert_close(run_linear(plain, x), plain(x))
    assert taken == [torch.Size([OUT, IN])]


@pytest.mark.parametrize(("dtype", "digits"), [(torch.bfloat16, 2.0**-16), (torch.float16, 2.0**-21)])
def test_parts_of_float32(dtype: torch.dtype, digits: float) -> None:
    """Large, small and infinite numbers in two of 16 bits each."""
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(30, 9, generator=generator)
    for scale in (1e-30, 1.0, 1e30):
        values = grad * scale
        parts, unit = products.parts_of(values, dtype)
        high, low = parts.float().split(9, 1)
        unit = torch.ones(()) if unit is None else unit
        assert ((high + low) * unit - values).abs().max() <= digits * values.abs().max()
    parts, unit = products.parts_of(torch.tensor([[float("inf"), float("nan"), -2.0]]), dtype)
    assert (parts.float() * (1.0 if unit is None else unit)).nan_to_num(-1.0, 3.0).tolist() == [[3, -1, -2, 0, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_16_bits(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(products.OF_16_BITS, "cpu", lambda x, weight: x.float() @ weight.float().T)
    grad, x, weight = torch.randn(30, 9), torch.randn(30, 5).to(dtype), torch.randn(9, 5).to(dtype)
    of_x, of_weight = products.gradients_of_16_bits(grad, x, weight)
    torch.testing.assert_close(of_x, grad @ weight.float(), rtol=0, atol=2e-4)
    torch.testing.assert_close(of_weight, grad.T @ x.float(), rtol=0, atol=2e-4)
    assert products.gradients_of_16_bits(grad, None, weight)[1] is None
    assert products.gradients_of_16_bits(grad, x, None)[0] is None
