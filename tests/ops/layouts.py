"""Layouts of tensors: strided, transposed, flipped, expanded, sliced. What lies between the elements is NaN, or an
index that no tensor has.

Expansion and overlapping windows change the values (`CHANGING`); every other layout holds the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Layout = Callable[[Tensor], Tensor]


def filled(tensor: Tensor, *shape: int) -> Tensor:
    return tensor.new_full(shape, float("nan") if tensor.is_floating_point() else -(10**9))


def strided(tensor: Tensor) -> Tensor:
    view = filled(tensor, *tensor.shape[:-1], 2 * tensor.shape[-1] + 1)[..., 1::2]
    return view.copy_(tensor)


def spaced_rows(tensor: Tensor) -> Tensor:
    """Dense last dimension inside wider rows, as a part of a fused projection has it."""
    view = filled(tensor, *tensor.shape[:-1], tensor.shape[-1] + 5)[..., 3 : 3 + tensor.shape[-1]]
    return view.copy_(tensor)


def every_other_row(tensor: Tensor) -> Tensor:
    """A slice of every second row, the first of them one row into the storage."""
    return filled(tensor, 2 * tensor.shape[0] + 1, *tensor.shape[1:])[1::2].copy_(tensor)


def transposed(tensor: Tensor) -> Tensor:
    order = tuple(reversed(range(tensor.dim())))
    return tensor.permute(order).contiguous().permute(order)


def flipped(tensor: Tensor) -> Tensor:
    """As `Tensor.flip` lays out its result; there are no negative strides in PyTorch."""
    order = tuple(range(tensor.dim()))
    return transposed(tensor).flip(order).flip(order)


def offset(tensor: Tensor) -> Tensor:
    """Dense, but beginning one element into its storage: not aligned to a vector."""
    return filled(tensor, tensor.numel() + 2)[1:-1].view(tensor.shape).copy_(tensor)


def odd_strides(tensor: Tensor) -> Tensor:
    """Where a dimension has one element its stride means nothing, and may be more than there is memory."""
    strides = [10**12 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    return tensor.as_strided(tensor.shape, strides)


def expanded(tensor: Tensor, dimension: int) -> Tensor:
    """Stride 0 in one dimension: one row for all, as a sum's gradient has it, or the same column or head."""
    if tensor.dim() <= dimension or not tensor.numel():
        return tensor
    return tensor.narrow(dimension, 0, 1).expand(tensor.shape)


def one_element(tensor: Tensor) -> Tensor:
    """Stride 0 in every dimension, as the gradient of a sum over everything has it."""
    return tensor.flatten()[:1].view([1] * tensor.dim()).expand(tensor.shape) if tensor.numel() else tensor


def windows(tensor: Tensor) -> Tensor:
    """Rows that overlap in memory: row i begins one element behind row i - 1."""
    if tensor.dim() < 2 or not tensor.numel():
        return tensor
    line = torch.cat([tensor[:, 0].reshape(len(tensor), -1)[:, 0], tensor[-1].flatten()])
    return line.as_strided(tensor.shape, (1, *tensor[0].contiguous().stride()))


KEEPING: dict[str, Layout] = {
    "strided": strided,
    "spaced rows": spaced_rows,
    "every other row": every_other_row,
    "transposed": transposed,
    "flipped": flipped,
    "offset": offset,
    "odd strides": odd_strides,
}
CHANGING: dict[str, Layout] = {
    **{f"expanded along {dimension}": partial(expanded, dimension=dimension) for dimension in range(3)},
    "one element": one_element,
    "windows": windows,
}
LAYOUTS = {**KEEPING, **CHANGING}


def fits(layout: str, name: str, tensor: Tensor) -> bool:
    """Whether a layout is another one than the dense tensor's, with values that the argument may have."""
    indices, gradient = not tensor.is_floating_point(), name.startswith("incoming")
    # Offsets that all are the same are none, and PyTorch's own products refuse gradients whose rows overlap.
    if (indices and layout in CHANGING and name != "spans") or ((indices or gradient) and layout == "windows"):
        return False
    if indices and layout in ("expanded along 1", "one element") and bool((tensor < 0).any()):
        return False  # an empty span of no tokens becomes one outside
    laid = LAYOUTS[layout](tensor)
    return laid.stride() != tensor.stride() or laid.storage_offset() != tensor.storage_offset()
