"""The feed-forward block: its derivatives, what it keeps for them, and where it leaves all to PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels.nn.feed_forward import feed_forward
from spanbert_kernels.ops import products
from spanbert_kernels.testing import assert_as_exact_as_eager

NAMES = ("x", "up", "up_bias", "down", "down_bias")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}
every_activation = pytest.mark.parametrize("activation", ACTIVATIONS)
ours: Callable[..., Tensor] = partial(feed_forward, activation="gelu")


def plain(
    x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None, activation: str = "gelu"
) -> Tensor:
    return F.linear(ACTIVATIONS[activation](F.linear(x, up, up_bias)), down, down_bias)


def given(dtype: torch.dtype = torch.float32, bias: bool = True, rows: int = 70) -> list[Tensor | None]:
    torch.manual_seed(3)
    shapes = ((rows, 12), (40, 12), (40,), (9, 40), (9,))
    made = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    return [each if bias or each.dim() == 2 else None for each in made]


def run(function: Callable[..., Tensor], inputs: list[Tensor | None], dtype: torch.dtype) -> list[Tensor]:
    leaves = [None if each is None else each.detach().to(dtype).requires_grad_() for each in inputs]
    output = function(*leaves)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(4)).to(inputs[0].dtype).to(dtype)  # type: ignore[union-attr]
    return [output.detach(), *torch.autograd.grad(output, [each for each in leaves if each is not None], grad)]


@every_activation
@pytest.mark.parametrize("product", ["torch", "onednn"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bias", "rows"), [(True, 70), (False, 70), (True, 1100)])
def test_values_and_gradients(
    activation: str, product: str, dtype: torch.dtype, bias: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of few rows, and of more than oneDNN multiplies at once."""
    if products.CHOICE.candidates[product].refusal() is not None:
        pytest.skip("oneDNN does not multiply float32 here")
    monkeypatch.setenv(products.VARIABLE, product)
    inputs = given(dtype, bias, rows)
    fused, original = (partial(each, activation=activation) for each in (feed_forward, plain))
    exact = run(original, inputs, torch.float64)
    for found, reference, eager in zip(run(fused, inputs, dtype), exact, run(original, inputs, dtype), strict=True):
        assert found.dtype == dtype
        assert_as_exact_as_eager(found, reference, eager)


@every_activation
def test_gradcheck_twice(activation: str) -> None:
    inputs, function = given(torch.float64, rows=3), partial(feed_forward, activation=activation)
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("rows", [70, 300])
@pytest.mark.parametrize("wanted", [*((name,) for name in NAMES), ("x", "down")])
def test_only_what_is_wanted(wanted: tuple[str, ...], rows: int) -> None:
    inputs = given(rows=rows)
    leaves = [
        each.detach().requires_grad_(name in wanted)
        for name, each in zip(NAMES, inputs, strict=True)
        if each is not None
    ]
    ours(*leaves).sum().backward()
    assert [leaf.grad is not None for leaf in leaves] == [name in wanted for name in NAMES]
    whole = [each.detach().requires_grad_() for each in inputs if each is not None]
    plain(*whole).sum().backward()
    for leaf, other in zip(leaves, whole, strict=True):
        if leaf.grad is not None:
            torch.testing.assert_close(leaf.grad, other.grad)


def test_what_follows_the_activation_is_not_kept() -> None:
    inputs = given()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.append(each) or each, lambda each: each):
        output = ours(*inputs)
    own = {id(each) for each in inputs}
    assert [each.shape for each in kept if id(each) not in own] == [torch.Size([70, 40])]
    output.sum().backward()
    again = given()
    (first,) = torch.autograd.grad(ours(*again).sum(), again[:1])
    assert torch.equal(first, inputs[0].grad)  # type: ignore[union-attr,arg-type]


@every_activation
def test_the_backward_runs_twice(activation: str) -> None:
    """What is kept is left as it was."""
    inputs = given()
    output = feed_forward(*inputs, activation)
    first, second = (torch.autograd.grad(output.sum(), inputs, retain_graph=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_the_backward_may_multiply_by_another_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where oneDNN is switched off behind the forward, which took it."""
    if products.CHOICE.candidates["onednn"].refusal() is not None:
        pytest.skip("oneDNN does not multiply float32 here")
    monkeypatch.setenv(products.VARIABLE, "onednn")
    inputs, again = given(rows=300), given(rows=300)
    output = ours(*inputs)
    with torch.backends.mkldnn.flags(enabled=False):
        output.square().sum().backward()
    plain(*again).square().sum().backward()
    for one, other in zip(inputs, again, strict=True):
        assert one is not None
        assert other is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-3)


def test_autocast_and_transforms_are_pytorch_s() -> None:
    inputs = given()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(*inputs), plain(*inputs))
    x, *rest = (None if each is None else each.detach() for each in inputs)
    assert x is not None
    found = torch.func.jacrev(lambda row: ours(row, *rest).sum(1))(x[:2])
    torch.testing.assert_close(found, torch.func.jacrev(lambda row: plain(row, *rest).sum(1))(x[:2]))
    assert torch.equal(torch.compile(ours, backend="eager", fullgraph=True)(*inputs), plain(*inputs))
