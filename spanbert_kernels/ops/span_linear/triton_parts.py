"""Float32 in two numbers of 16 bits, for products on tensor cores, in one pass (`products.parts_of`)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spanbert_kernels.ops import products
from spanbert_kernels.ops.span_linear.operators import split_in_parts
from spanbert_kernels.ops.triton_arguments import dense_rows, on

COLUMNS = 1024  # of a program; a thread has eight, whose parts are 16 bytes
WARPS = 4


@triton.jit(do_not_specialize=["rows"])
def write_parts(values, stride, unit, parts, rows, columns, COLUMNS: tl.constexpr):
    blocks = tl.cdiv(columns, COLUMNS)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    column = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)
    inside = column < columns
    value = tl.load(values + row * stride + column, mask=inside, other=0.0)
    if unit is not None:
        value = value / tl.load(unit)
    high = value.to(parts.dtype.element_ty)
    low = tl.where(tl.abs(value) < float("inf"), value - high.to(tl.float32), 0.0)
    place = parts + row * 2 * columns + column
    tl.store(place, high, mask=inside)
    tl.store(place + columns, low.to(parts.dtype.element_ty), mask=inside)


@split_in_parts.triton
def split(values: Tensor, unit: Tensor | None, like: Tensor) -> Tensor:
    rows, columns = values.shape
    parts, values = like.new_empty(rows, 2 * columns), dense_rows(values)
    if values.numel():
        with on(values.device):
            write_parts[(rows * triton.cdiv(columns, COLUMNS),)](
                values, values.stride(0), unit, parts, rows, columns, COLUMNS=COLUMNS, num_warps=WARPS
            )
    return parts


def parts_of(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """`products.parts_of` by the kernel."""
    unit = products.unit_of(values, dtype)
    return split_in_parts("triton", values, unit, values.new_empty(0, dtype=dtype)), unit


products.PARTS_OF["cuda"] = parts_of
