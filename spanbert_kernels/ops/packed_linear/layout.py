"""How a packed weight lies in memory: panels of columns, `[panels, steps, width x elements]`.

A step are the elements of one column that a kernel multiplies at once: one, a pair of bfloat16 or four of 8 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from spanbert_kernels.ops.choices import Precision
from spanbert_kernels.ops.packed_linear import reference

ELEMENTS: dict[Precision, int] = {"float32": 1, "bfloat16": 2, "int8": 4}


def lay_out(weight: Tensor, width: int, precision: Precision) -> Tensor:
    """`[out, in]` as panels of `width` columns, with zeros where there is nothing."""
    (out_features, in_features), elements = weight.shape, ELEMENTS[precision]
    steps, count = -(-in_features // elements), -(-out_features // width)
    padded = torch.nn.functional.pad(weight, (0, steps * elements - in_features, 0, count * width - out_features))
    return padded.view(count, width, steps, elements).transpose(1, 2).flatten(2)


def read_back(panels: Tensor, out_features: int, in_features: int, precision: Precision) -> Tensor:
    """The weight `[out, in]` that was laid out."""
    steps = panels.unflatten(2, (-1, ELEMENTS[precision]))
    return steps.transpose(1, 2).flatten(2).flatten(0, 1)[:out_features, :in_features]


def by_column(numbers: Tensor, step: Tensor, width: int) -> Tensor:
    """Of a weight in 8 bits, int32 `[2, columns of the panels]`: the bits of each column's step, and 128 times its sum,
    which the kernel's unsigned inputs add.
    """
    rows = torch.stack([step.float().flatten().view(torch.int32), 128 * numbers.sum(1).to(torch.int32)])
    return torch.nn.functional.pad(rows, (0, -len(numbers) % width))


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight in 8 bits, and the step of each of its rows `[out, 1]`."""
    numbers, step = reference.quantized(weight.float())
    return numbers.to(torch.int8), step
