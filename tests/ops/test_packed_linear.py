"""packed_linear: the shared checks under no_grad, then what it refuses."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from op_checks import Case, OpChecks, Tensors
from packed_cases import linear_by_rows, with_packed, without_gradients
from places import Place, at, isas_of, unavailable
from torch import Tensor

from spanbert_kernels.ops.choices import PRECISIONS, Precision
from spanbert_kernels.ops.packed_linear import PackedWeight, pack_weight, packed_linear, products, reference


def inputs(
    size: int, *, rows: int = 3, columns: int = 5, out: int = 7, bias: bool = True, residual: bool = True
) -> Tensors:
    generator = torch.Generator().manual_seed(size)
    shapes = {"x": (rows * size, columns), "weight": (out, columns)}
    shapes |= {"bias": (out,)} if bias else {}
    shapes |= {"residual": (rows * size, out)} if residual else {}
    return {n: torch.randn(shape, generator=generator, dtype=torch.float64) for n, shape in shapes.items()}


def row(name: str, *, own: bool = False, large: bool = False, **shapes: Any) -> Case:
    arguments = partial(with_packed, own=own)
    return Case(name, partial(inputs, **shapes), without_gradients, linear_by_rows, arguments=arguments, large=large)


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
        row("products of its own", own=True),
        row("of its own, pairs as they are", own=True, columns=6, residual=False),
        row("of its own, large", own=True, rows=29, columns=151, out=211, large=True),
        # Deeper than what is summed by itself.
        row("deep", rows=9, columns=2200, out=20, large=True),
        row("of its own, deep", own=True, rows=9, columns=2200, out=20, large=True),
    )


def skip_if_refused(precision: Precision) -> None:
    reason = unavailable(Place("cpu")) or products.products_refusal(precision)
    if reason is not None:
        pytest.skip(reason)


@pytest.mark.parametrize("out", [1, 15, 16, 17, 64, 65])
def test_a_packed_weight_holds_the_weight(out: int) -> None:
    weight = torch.randn(out, 5)
    packed = pack_weight(weight)
    count, columns, width = packed.panels.shape
    rows = packed.panels.transpose(1, 2).reshape(count * width, columns)
    assert torch.equal(rows[:out], weight)
    assert not rows[out:].any()
    assert packed.out_features == out


@pytest.mark.parametrize("out", [1, 16, 65])
@pytest.mark.parametrize("columns", [1, 4, 6, 9])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_packed_weight_is_read_back_as_it_is_multiplied(precision: Precision, columns: int, out: int) -> None:
    weight = torch.randn(out, columns)
    assert torch.equal(pack_weight(weight, precision).unpacked(), reference.rounded(weight, precision))


@pytest.mark.parametrize("isa", isas_of("packed_linear"))
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "columns", "out"), [(1, 3, 5), (3, 97, 50), (19, 800, 100), (0, 4, 4), (3, 0, 4)])
def test_products_of_another_precision(
    dtype: torch.dtype, precision: Precision, rows: int, columns: int, out: int, isa: str
) -> None:
    """Of inputs and weights rounded as the definition says: up to the rounding of sums and, in 8 bits, of inputs in the
    middle between two steps.
    """
    place = Place("cpu", isa)
    if (reason := unavailable(place)) is not None:
        pytest.skip(reason)
    torch.manual_seed(0)
    x, weight = torch.randn(rows, columns, dtype=dtype), torch.randn(out, columns, dtype=dtype)
    bias, residual = torch.randn(out, dtype=dtype), torch.randn(rows, out, dtype=dtype)
    with at(place):
        if products.products_refusal(precision) is not None:
            with pytest.raises(RuntimeError, match="no products of that precision"):
                packed_linear(x, pack_weight(weight, precision))
            return
        packed = pack_weight(weight, precision)
        result = packed_linear(x, packed, bias, residual)
    exact = reference.rounded(x.float(), precision).double() @ packed.unpacked().double().T + bias + residual
    allowed = 1e-4 + torch.finfo(dtype).eps * exact.abs()
    if precision == "int8" and x.numel():
        step = x.double().abs().amax(1, keepdim=True) / 127
        middle = ((x.double() / step % 1) - 0.5).abs() < 1e-4
        allowed += (middle * step) @ packed.unpacked().double().abs().T
    assert ((result.double() - exact).abs() <= allowed).all()


def test_int8_keeps_what_is_no_number() -> None:
    x = torch.tensor([[1.0, 2.0], [float("nan"), 1.0], [float("inf"), 1.0]])
    skip_if_refused("int8")
    result = packed_linear(x, pack_weight(torch.eye(2), "int8"), backend="cpu")
    assert result.isnan().any(1).tolist() == [False, True, True]


def test_the_measured_way_of_bfloat16_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weight = torch.randn(3, 5).bfloat16()
    assert pack_weight(weight).precision == "float32"
    skip_if_refused("bfloat16")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(products.VARIABLE, "bfloat16")
    assert pack_weight(weight).precision == "bfloat16"
    assert pack_weight(weight.float()).precision == pack_weight(weight.half()).precision == "float32"
    monkeypatch.setenv(products.VARIABLE, "measure")
    assert pack_weight(weight).precision in ("float32", "bfloat16")
    with at(Place("cpu", "portable")):
        monkeypatch.setenv(products.VARIABLE, "bfloat16")
        assert pack_weight(weight).precision == "float32"


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


def test_float64_has_no_other_products() -> None:
    with pytest.raises(ValueError, match="a weight of float64 is multiplied as it is, not in int8"):
        pack_weight(torch.zeros(3, 5).double(), "int8")
