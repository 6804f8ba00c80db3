"""bias_gelu: the shared checks, its tails, and what is refused."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from gelu_cases import gelu_by_formula, gelu_inputs
from op_checks import Case, OpChecks, every_backend

from spanbert_kernels.ops import bias_gelu, library


def row(name: str, *, compiled: tuple[str, ...] = (), large: bool = False, **shapes: Any) -> Case:
    inputs = partial(gelu_inputs, **shapes)
    return Case(name, inputs, bias_gelu, gelu_by_formula, twice=("eager",), compiled=compiled, large=large)


class TestShared(OpChecks):
    operation = "bias_gelu"
    cases = (
        row("plain", compiled=("triton",)),
        row("no bias", bias=False),
        row("no rows", rows=0),
        row("no columns", columns=0),
        # More columns than a block, more rows than a tile, with rests of one.
        row("blocks", rows=5, columns=1025, large=True),
    )


@every_backend("bias_gelu")
def test_tails(backend: Any) -> None:
    """Absolute errors of a few 1e-7, and the limits at infinity."""
    middle, ends = torch.linspace(-12, 12, 1001)[None], torch.tensor([[0.0, 2.0**90, torch.inf, torch.nan]])
    x = middle.clone().requires_grad_()
    output, exact = bias_gelu(x, backend=backend), gelu_by_formula(x.double())
    assert ((output - exact).abs() / middle.abs().clamp(min=1)).max() < 2.5e-7
    grads = (torch.autograd.grad(each.sum(), x)[0] for each in (output, exact))
    torch.testing.assert_close(*grads, rtol=0, atol=6e-7)
    found = bias_gelu(ends, backend=backend)[0]
    assert found[:2].tolist() == ends[0, :2].tolist()
    assert found[2] == torch.inf or backend == "eager"  # where some of PyTorch's vectors give NaN
    assert found[3].isnan()


def test_programs_with_several_tiles_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits of x's gradient, and the same sums, however few programs there are."""
    if not library.interpreted():
        pytest.skip("Triton is not in its interpreter")
    from spanbert_kernels.ops.bias_gelu import triton as kernels

    x, grad = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(1))
    results = []
    for programs in (kernels.PROGRAMS, 2):  # three tiles of rows: the second of the last program is beyond them
        monkeypatch.setattr(kernels, "PROGRAMS", programs)
        results.append(kernels.backward(grad, x, x[0]))
    (of_x, sums), (again, sums_again) = results
    assert torch.equal(of_x, again)
    torch.testing.assert_close(sums, sums_again)


def good_call() -> dict[str, Any]:
    """What the test of wrong kinds of arguments begins from."""
    return {"x": torch.ones(6, 4), "bias": torch.ones(4)}


@pytest.mark.parametrize(
    ("error", "text", "changes"),
    [
        (ValueError, r"x must have shape \[T, I\], got \[4\]", {"x": torch.zeros(4)}),
        (ValueError, r"bias must be \[4\], got \[1\]", {"bias": torch.zeros(1)}),
        (TypeError, "bias is torch.float16, but x is torch.float32", {"bias": torch.zeros(4).half()}),
    ],
)
def test_bad_arguments(error: type[Exception], text: str, changes: dict[str, Any]) -> None:
    with pytest.raises(error, match=text):
        bias_gelu(**{**good_call(), **changes})
