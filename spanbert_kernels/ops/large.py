"""Large tensors on a CPU that are about to be written: on huge pages, where PyTorch would take them 4 KiB at a time.

Where rows are as long as pages, or a good part of one, a column's elements share few sets of a cache; small pages lie
anywhere in memory and hide some of that, huge ones do not.
"""

from __future__ import annotations

import ctypes
import math

import torch
from torch import Tensor

from spanbert_kernels.ops import library

# From here on it is worth it: as kLargeBytes in csrc/common/huge_pages.h.
BYTES = 4 << 20
_LINE, _ALIKE = 64, 1024  # bytes: of a cache's line, and between rows that share sets


def new_empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """`like.new_empty(shape, dtype=dtype)`, whose many pages, if the system has yet to give them, are huge ones.

    Example:
        >>> new_empty(torch.ones(3), 2, 5).shape
        torch.Size([2, 5])
    """
    if torch.compiler.is_compiling():
        return like.new_empty(shape, dtype=dtype)
    dtype = dtype or like.dtype
    size = math.prod(shape) * dtype.itemsize
    own = type(like) in (Tensor, torch.nn.Parameter) and like.device.type == "cpu" and like.layout == torch.strided
    if size < BYTES or not own or library.load_cpu() is not None:
        return like.new_empty(shape, dtype=dtype)
    memory: Tensor = torch.ops.spanbert_kernels.packed_linear_memory(size)
    # No view of those bytes: what a step under autograd returns may be changed in place.
    return like.new_empty(0, dtype=dtype).set_(memory.untyped_storage()).resize_(shape)


def new_zeros(like: Tensor, *shape: int) -> Tensor:
    """`like.new_zeros(shape)`, in such memory, by one thread: several that touch new pages wait for each other, and two
    took ten times as long as one.

    Example:
        >>> new_zeros(torch.ones(3), 1, 2).tolist()
        [[0.0, 0.0]]
    """
    made = new_empty(like, *shape)
    if made.nbytes < BYTES or made.device.type != "cpu":
        return made.zero_()
    ctypes.memset(made.data_ptr(), 0, made.nbytes)
    return made


def new_rows(like: Tensor, rows: int, columns: int, dtype: torch.dtype | None = None) -> Tensor:
    """`like.new_empty(rows, columns, dtype=dtype)` for what is read soon and then gone: large rows lie a little apart.

    Example:
        >>> new_rows(torch.ones(3), 1024, 2048).stride()
        (2064, 1)
    """
    if torch.compiler.is_compiling() or like.device.type != "cpu":
        return like.new_empty(rows, columns, dtype=dtype)
    size = (dtype or like.dtype).itemsize
    if rows * columns * size < BYTES or columns * size % _ALIKE:
        return new_empty(like, rows, columns, dtype=dtype)
    return new_empty(like, rows, columns + _LINE // size, dtype=dtype)[:, :columns]
