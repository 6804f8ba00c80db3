"""Rows of a large table under autograd, whose gradient, nearly all zeros, comes on huge pages.

PyTorch's own is as large as the table, and its memory new in every step: of 30,000 words of 384 numbers each, 11,000
pages that the system hands out one at a time, which takes several times as long as to fill them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels.ops import large, library, products

_NO_ROW = -1


def look_up(ids: Tensor, table: Tensor, padding_idx: int | None = None) -> Tensor:
    """`torch.nn.functional.embedding`, the same bits in the forward and in the backward.

    Args:
        ids: integers `[...]`.
        table: `[rows, H]`.
        padding_idx: a row that gets no gradient.

    Returns:
        `[..., H]`.

    Example:
        >>> table = torch.eye(3, requires_grad=True)
        >>> look_up(torch.tensor([2, 2, 0]), table, padding_idx=0).sum().backward()
        >>> table.grad.tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [2.0, 2.0, 2.0]]
    """
    if not is_gained_by(table) or not products.ordinary(ids, table):
        return F.embedding(ids, table, padding_idx)
    rows: Tensor = _LookUp.apply(ids, table, _NO_ROW if padding_idx is None else padding_idx % len(table))
    return rows


def is_gained_by(table: Tensor) -> bool:
    """Whether the gradient of a table will be wanted, on a CPU, and is large."""
    wanted = torch.is_grad_enabled() and table.requires_grad and table.device.type == "cpu"
    return wanted and table.numel() * table.element_size() >= large.BYTES and library.load_cpu() is None


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, table: Tensor, padding_idx: int) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.rows, ctx.padding_idx = len(table), padding_idx
        return F.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        if torch.is_grad_enabled() or not products.ordinary(grad):
            return None, _summed(grad, ids, ctx.rows, ctx.padding_idx), None
        of_table = large.new_zeros(grad, ctx.rows, grad.shape[-1])
        there, place = ids.flatten().unique(return_inverse=True)
        of_table[there] = _summed(grad.reshape(-1, grad.shape[-1]), place, len(there), _NO_ROW)
        if ctx.padding_idx != _NO_ROW:
            of_table[ctx.padding_idx] = 0.0
        return None, of_table, None


def _summed(grad: Tensor, ids: Tensor, rows: int, padding_idx: int) -> Tensor:
    """PyTorch's own gradient of a table."""
    found: Tensor = torch.ops.aten.embedding_dense_backward(grad, ids, rows, padding_idx, False)
    return found
