"""Layouts of equal values: strided, transposed, expanded and offset tensors.

What lies between the elements is NaN, or an index that no tensor has.
"""

from __future__ import annotations

from collections.abc import Callable

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


def transposed(tensor: Tensor) -> Tensor:
    order = tuple(reversed(range(tensor.dim())))
    return tensor.permute(order).contiguous().permute(order)


def offset(tensor: Tensor) -> Tensor:
    """Dense, but beginning one element into its storage: not aligned to a vector."""
    return filled(tensor, tensor.numel() + 2)[1:-1].view(tensor.shape).copy_(tensor)


def expanded(tensor: Tensor) -> Tensor:
    """Stride 0 in the second dimension: the same column, or the same head, everywhere."""
    return tensor[:, :1].expand(tensor.shape) if tensor.dim() > 1 and tensor.is_floating_point() else tensor


def windows(tensor: Tensor) -> Tensor:
    """Rows that overlap in memory: row i begins one element behind row i - 1."""
    if tensor.dim() < 2 or not tensor.is_floating_point() or not len(tensor):
        return tensor
    line = torch.cat([tensor[:, 0].reshape(len(tensor), -1)[:, 0], tensor[-1].flatten()])
    return line.as_strided(tensor.shape, (1, *tensor[0].contiguous().stride()))


def expanded_rows(tensor: Tensor) -> Tensor:
    """One row for all, as the gradient of a sum over rows has it."""
    return tensor[:1].expand(tensor.shape)


# Rows that are all equal make some gradients vanish, which leaves the rule no scale: for incoming gradients only.
INPUT_LAYOUTS = {
    "strided": strided,
    "spaced rows": spaced_rows,
    "transposed": transposed,
    "offset": offset,
    "expanded": expanded,
    "windows": windows,
}
GRAD_LAYOUTS = {"strided": strided, "transposed": transposed, "expanded": expanded, "expanded rows": expanded_rows}
LAYOUTS = {"dense": torch.clone, **INPUT_LAYOUTS, **GRAD_LAYOUTS}
