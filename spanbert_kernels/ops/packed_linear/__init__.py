"""A linear layer for few rows, on a weight that was laid out for it: inference of short inputs on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spanbert_kernels.ops import backends, checks
from spanbert_kernels.ops.backends import Operation
from spanbert_kernels.ops.choices import Backend
from spanbert_kernels.ops.operators import raw
from spanbert_kernels.ops.packed_linear import reference

__all__ = ["PackedWeight", "pack_weight", "packed_linear"]

OPERATION = Operation(
    "packed_linear",
    ("cpu", "eager"),
    summary="a linear layer for few rows, inference",
    instead=("eager", "it is about how a CPU reads weights from memory"),
)
DEFAULT_WIDTH = 16

torch.library.define("spanbert_kernels::packed_linear_width", "(Tensor weight) -> int")


@raw(OPERATION)
def packed_linear_forward(
    x: Tensor, panels: Tensor, out_features: int, bias: Tensor | None, residual: Tensor | None
) -> Tensor:
    return x.new_empty(x.shape[0], out_features)


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """A weight `[out, in]` in the order in which the kernel reads it. Made by `pack_weight`.

    Attributes:
        panels: `[panels, in, width]`, `width` rows of the weight side by side; zeros after the last row.
        out_features: number of rows of the weight.

    Raises:
        ValueError: `panels` is not of three dimensions, or `out_features` rows are not in it.
        TypeError: `panels` is not floating point, `out_features` no integer.

    Example:
        >>> packed = pack_weight(torch.ones(20, 5))
        >>> packed.out_features, packed.panels.shape[1], packed.panels.dtype
        (20, 5, torch.float32)
    """

    panels: Tensor
    out_features: int

    def __post_init__(self) -> None:
        checks.check_floating("panels", self.panels, 3, "[panels, in, width]")
        checks.check_integer("out_features", self.out_features, 0, self.panels.shape[0] * self.panels.shape[2])


def pack_weight(weight: Tensor) -> PackedWeight:
    """Lays out a copy of `weight [out, in]`, for this processor, to be used with `packed_linear`.

    Args:
        weight: `[out, in]`, floating point, any strides: a Linear's weight. Later changes of it are not followed.

    Returns:
        The copy, in the weight's dtype and on its device, without a gradient.

    Raises:
        ValueError: the weight is not two-dimensional.
        TypeError: it is not floating point.

    Source: the packed panels of Goto and van de Geijn 2008, as wide as the kernel's register tile.

    Example:
        >>> pack_weight(torch.ones(3, 5)).out_features
        3
    """
    checks.check_floating("weight", weight, 2, "[out, in]")
    weight = weight.detach()
    out_features, in_features = weight.shape
    compiled = backends.refusal("cpu", weight.device.type, weight.dtype) is None
    width = torch.ops.spanbert_kernels.packed_linear_width(weight) if compiled else DEFAULT_WIDTH
    count = -(-out_features // width)
    padded = torch.nn.functional.pad(weight, (0, 0, 0, count * width - out_features))
    return PackedWeight(padded.view(count, width, in_features).transpose(1, 2).contiguous(), out_features)


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
        RuntimeError: a gradient would be needed.

    Source: the register tiles of Goto and van de Geijn 2008; the prefetching is described in the kernel.

    Example:
        >>> x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
        >>> packed_linear(x, pack_weight(weight), bias=torch.ones(3)).tolist()
        [[12.0, 18.0, 24.0]]
    """
    checks.check_floating("x", x, 2, "[T, in]")
    if not isinstance(weight, PackedWeight):
        raise TypeError(f"weight must come from pack_weight, got {type(weight).__name__}")
    checks.check_same("weight", weight.panels, "x", x)
    in_features = weight.panels.shape[1]
    if x.shape[1] != in_features:
        raise ValueError(f"x must have the weight's {in_features} columns, got {list(x.shape)}")
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
            return reference.packed_linear(x, reference.unpack(weight.panels, out_features), bias, residual)
    output: Tensor = packed_linear_forward("cpu", x, weight.panels, out_features, bias, residual)
    return output
