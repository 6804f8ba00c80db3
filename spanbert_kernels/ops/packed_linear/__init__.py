"""A linear layer for few rows, on a weight that was laid out for it: inference of short inputs on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spanbert_kernels.ops import backends, checks
from spanbert_kernels.ops.choices import PRECISIONS, Backend, Precision
from spanbert_kernels.ops.packed_linear import layout, products, reference
from spanbert_kernels.ops.packed_linear.products import OPERATION, packed_linear_forward

__all__ = ["PackedWeight", "pack_weight", "packed_linear"]

DEFAULT_WIDTH = 16


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight `[out, in]` in the order in which the kernel reads it. Made by `pack_weight`.

    Attributes:
        panels: `[panels, in, width]`, `width` rows of the weight side by side; zeros after the last row. In bfloat16
            and int8 two or four columns of the weight stand together: `[panels, in / 2, width x 2]`.
        out_features: number of rows of the weight.
        in_features: number of its columns.
        dtype: of the weight, and of what is multiplied with it.
        precision: of the products.
        step: `[out, 1]`, of each row in int8.
        by_column: the same and sums of the rows, for the kernel.

    Raises:
        ValueError: `panels` is not of three dimensions, or `out_features` rows are not in it.
        TypeError: `out_features` is no integer.

    Example:
        >>> packed = pack_weight(torch.ones(20, 5))
        >>> packed.out_features, packed.panels.shape[1], packed.panels.dtype
        (20, 5, torch.float32)
    """

    panels: Tensor
    out_features: int
    in_features: int
    dtype: torch.dtype
    precision: Precision = "float32"
    step: Tensor | None = None
    by_column: Tensor | None = None

    def __post_init__(self) -> None:
        checks.check_tensor("panels", self.panels, "[panels, in, width]")
        if self.panels.dim() != 3:
            raise ValueError(f"panels must have shape [panels, in, width], got {list(self.panels.shape)}")
        checks.check_integer("out_features", self.out_features, 0, self.panels.shape[0] * self.panels.shape[2])

    def unpacked(self) -> Tensor:
        """The weight `[out, in]`, rounded as it is multiplied.

        Example:
            >>> pack_weight(torch.tensor([[127.0, 2.4]]), "int8").unpacked().tolist()
            [[127.0, 2.0]]
        """
        weight = layout.read_back(self.panels, self.out_features, self.in_features, self.precision)
        return weight if self.step is None else weight * self.step


def pack_weight(weight: Tensor, precision: Precision | None = None) -> PackedWeight:
    """Lays out a copy of `weight [out, in]`, for this processor, to be used with `packed_linear`.

    Args:
        weight: `[out, in]`, floating point, any strides: a Linear's weight. Later changes of it are not followed.
        precision: what products multiply: "float32", inputs and weight as they are; "bfloat16", rounded to that; or
            "int8", inputs and weight in steps a row. Sums are float32. By default nothing is rounded, and weights of
            bfloat16 are multiplied in the way that was measured to be faster on this machine.

    Returns:
        The copy, on the weight's device, without a gradient.

    Raises:
        ValueError: the weight is not two-dimensional, it is float64 and a precision is asked for, or the precision has
            another name.
        TypeError: it is not floating point.

    Source: the packed panels of Goto and van de Geijn 2008, as wide as the kernel's register tile.

    Example:
        >>> pack_weight(torch.ones(3, 5)).out_features
        3
    """
    checks.check_floating("weight", weight, 2, "[out, in]")
    if precision is not None:
        checks.check_choice("precision", precision, PRECISIONS)
        if weight.dtype == torch.float64 and precision != "float32":
            raise ValueError(f"a weight of float64 is multiplied as it is, not in {precision}")
    weight = weight.detach()
    out_features, in_features = weight.shape
    compiled = backends.refusal("cpu", weight.device.type, weight.dtype) is None
    chosen = products.best_precision(weight.dtype, compiled) if precision is None else precision
    width = torch.ops.spanbert_kernels.packed_linear_width(weight) if compiled else DEFAULT_WIDTH
    step, by_column, numbers = None, None, weight
    if chosen == "bfloat16":
        numbers = weight.bfloat16()
    elif chosen == "int8":
        numbers, step = layout.quantized(weight)
        by_column = layout.by_column(numbers, step, width)
    panels = layout.lay_out(numbers, width, chosen)
    panels = products.on_huge_pages(panels) if compiled else panels.contiguous()
    return PackedWeight(panels, out_features, in_features, weight.dtype, chosen, step, by_column)


def packed_linear(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """`x W^T + bias + residual`, without gradients.

    Args:
        x: `[T, in]`, float32, bfloat16, float16 or float64, any strides.
        weight: `pack_weight(W)` of `W [out, in]`, in the dtype of x.
        bias: `[out]`.
        residual: `[T, out]`, added to the result before it is rounded.
        backend: the backend to use; by default the best one here.

    Returns:
        `[T, out]`, sums in float32 (float64 for float64).

    Raises:
        ValueError: shapes that do not fit.
        TypeError: dtypes or devices that differ.
        RuntimeError: a gradient would be needed, or this processor has no products of the weight's precision.

    Source: the register tiles of Goto and van de Geijn 2008; the prefetching is described in the kernel.

    Example:
        >>> x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
        >>> packed_linear(x, pack_weight(weight), bias=torch.ones(3)).tolist()
        [[12.0, 18.0, 24.0]]
    """
    checks.check_floating("x", x, 2, "[T, in]")
    if not isinstance(weight, PackedWeight):
        raise TypeError(f"weight must come from pack_weight, got {type(weight).__name__}")
    checks.check_device("weight", weight.panels, "x", x)
    if weight.dtype != x.dtype:
        raise TypeError(f"weight is {weight.dtype}, but x is {x.dtype}")
    if x.shape[1] != weight.in_features:
        raise ValueError(f"x must have the weight's {weight.in_features} columns, got {list(x.shape)}")
    out_features = weight.out_features
    for name, tensor, shape in (("bias", bias, (out_features,)), ("residual", residual, (x.shape[0], out_features))):
        if tensor is None:
            continue
        checks.check_floating(name, tensor, len(shape), "[out]" if name == "bias" else "[T, out]")
        checks.check_same(name, tensor, "x", x)
        if tensor.shape != shape:
            raise ValueError(f"{name} must be {list(shape)}, got {list(tensor.shape)}")
    needed = [tensor for tensor in (x, bias, residual) if tensor is not None and tensor.requires_grad]
    if needed and torch.is_grad_enabled():
        raise RuntimeError("packed_linear has no gradient: call it under torch.no_grad(), or detach its inputs")
    if OPERATION.choose(x, backend) == "eager":
        # Autocast would take the product out of float32, on this backend alone.
        with torch.autocast(x.device.type, enabled=False):
            return reference.packed_linear(x, weight.unpacked(), bias, residual, weight.precision)
    index = PRECISIONS.index(weight.precision)
    output: Tensor = packed_linear_forward(
        "cpu", x, weight.panels, weight.by_column, out_features, bias, residual, index
    )
    return output
