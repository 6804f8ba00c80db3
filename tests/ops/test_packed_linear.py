"""packed_linear: the shared checks under no_grad, then what it refuses."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from op_checks import Case, OpChecks, Tensors
from packed_cases import linear_by_rows, with_packed, without_gradients
from torch import Tensor

from spanbert_kernels.ops.packed_linear import PackedWeight, pack_weight, packed_linear


def inputs(
    size: int, *, rows: int = 3, columns: int = 5, out: int = 7, bias: bool = True, residual: bool = True
) -> Tensors:
    generator = torch.Generator().manual_seed(size)
    shapes = {"x": (rows * size, columns), "weight": (out, columns)}
    shapes |= {"bias": (out,)} if bias else {}
    shapes |= {"residual": (rows * size, out)} if residual else {}
    return {n: torch.randn(shape, generator=generator, dtype=torch.float64) for n, shape in shapes.items()}


def row(name: str, *, large: bool = False, **shapes: Any) -> Case:
    return Case(name, partial(inputs, **shapes), without_gradients, linear_by_rows, arguments=with_packed, large=large)


class TestShared(OpChecks):
    operation = "packed_linear"
    cases = (
        row("bias and residual"),
        row("bare", bias=False, residual=False),
        row("residual alone", bias=False),
        row("no rows", rows=0),
        row("one row", rows=1, residual=False),
        # More rows and columns than one tile of any instruction set, with rests.
        row("large", rows=29, columns=150, out=211, large=True),
    )


@pytest.mark.parametrize("out", [1, 15, 16, 17, 64, 65])
def test_a_packed_weight_holds_the_weight(out: int) -> None:
    weight = torch.randn(out, 5)
    packed = pack_weight(weight)
    count, columns, width = packed.panels.shape
    rows = packed.panels.transpose(1, 2).reshape(count * width, columns)
    assert torch.equal(rows[:out], weight)
    assert not rows[out:].any()
    assert packed.out_features == out


def test_it_has_no_gradient_and_says_so() -> None:
    x, weight = torch.randn(2, 5), torch.randn(3, 5)
    with pytest.raises(RuntimeError, match="packed_linear has no gradient"):
        packed_linear(x.requires_grad_(), pack_weight(weight))
    assert not packed_linear(x.detach(), pack_weight(weight.requires_grad_())).requires_grad


def bad(error: type[Exception], text: str, **changes: Any) -> Any:
    return pytest.param(error, text, changes, id=text[:40])


@pytest.mark.parametrize(
    ("error", "text", "changes"),
    [
        bad(ValueError, r"x must have shape \[T, in\], got \[5\]", x=torch.zeros(5)),
        bad(ValueError, r"x must have the weight's 5 columns, got \[2, 4\]", x=torch.zeros(2, 4)),
        bad(TypeError, "weight must come from pack_weight, got Tensor", weight=torch.zeros(3, 5)),
        bad(TypeError, "weight is torch.float32, but x is torch.float64", x=torch.zeros(2, 5).double()),
        bad(TypeError, "weight is on cpu, but x is on meta", x=torch.zeros(2, 5, device="meta")),
        bad(ValueError, r"bias must be \[3\], got \[4\]", bias=torch.zeros(4)),
        bad(TypeError, "bias is torch.float16, but x is torch.float32", bias=torch.zeros(3).half()),
        bad(ValueError, r"residual must be \[2, 3\], got \[1, 3\]", residual=torch.zeros(1, 3)),
    ],
)
def test_bad_arguments(error: type[Exception], text: str, changes: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"x": torch.zeros(2, 5), "weight": pack_weight(torch.zeros(3, 5)), **changes}
    assert isinstance(arguments["weight"], PackedWeight | Tensor)
    with pytest.raises(error, match=text):
        packed_linear(**arguments)


@pytest.mark.parametrize(
    ("error", "text", "weight"),
    [
        (ValueError, r"weight must have shape \[out, in\], got \[3\]", torch.zeros(3)),
        (TypeError, "weight must be floating point, got torch.int64", torch.zeros(3, 5).long()),
    ],
)
def test_bad_weights(error: type[Exception], text: str, weight: Tensor) -> None:
    with pytest.raises(error, match=text):
        pack_weight(weight)
