"""oneDNN's products, called with rows in a few sizes alone.

oneDNN compiles code for every size that it meets, half a megabyte to two each, and PyTorch keeps it as long as the
process lives: texts of a thousand lengths would cost gigabytes. So rows are multiplied in blocks of `LARGEST`, then in
one block of a multiple of `COARSE`, and what is left is filled up to a multiple of `FINE`; sums over rows, which the
gradient of a weight is, in blocks by powers of two. That costs a copy of the result, a tenth of a product's time or so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels.ops import large

LARGEST, COARSE, FINE = 1024, 64, 16
_LEAST_SUM = 64


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    activation: tuple[str, str] = ("none", ""),
) -> Tensor:
    """`x W^T + b`, then the residual or an activation.

    Args:
        x: `[..., in]`, on a CPU.
        weight: `[out, in]`, dense by rows or by columns, or what `pack` made of it.
        bias: `[out]`.
        residual: `[..., out]`; with it there is no activation.
        activation: oneDNN's name of one, and of its algorithm: gelu with none (exact) or tanh, relu.

    Returns:
        `[..., out]`.

    Example:
        >>> linear(torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)).tolist()
        [[4.0, 4.0, 4.0, 4.0], [4.0, 4.0, 4.0, 4.0]]
    """

    def multiply(rows: Tensor, added: Tensor | None = None) -> Tensor:
        if added is not None:
            summed: Tensor = torch.ops.mkldnn._linear_pointwise.binary(rows, added, weight, bias, "add")
            return summed
        name, algorithm = activation
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, name, [], algorithm)
        return product

    return _by_rows(multiply, [x] if residual is None else [x, residual], weight.shape[0])


def pack(weight: Tensor) -> Tensor:
    """A weight `[out, in]` in the layout that oneDNN's kernels want, for `linear`."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def transposed_product(first: Tensor, second: Tensor) -> Tensor:
    """`first^T second`, a sum over rows.

    Args:
        first: `[rows, out]`.
        second: `[rows, in]`, dense.

    Returns:
        `[out, in]`.

    Example:
        >>> transposed_product(torch.ones(5, 2), torch.ones(5, 3)).tolist()
        [[5.0, 5.0, 5.0], [5.0, 5.0, 5.0]]
    """
    result: Tensor | None = None
    begin = 0
    for size, count in sizes_of_sums(len(first)):
        one, other = (_filled(each[begin : begin + count], size).t() for each in (first, second))
        part: Tensor = torch.ops.mkldnn._linear_pointwise(one, other, None, "none", [], "")
        result = part if result is None else result.add_(part)
        begin += count
    return first.new_zeros(first.shape[1], second.shape[1]) if result is None else result


def sizes_of_rows(rows: int) -> Iterator[tuple[int, int]]:
    """Of so many rows the blocks: the size that is multiplied, and how many of the rows are in it.

    Example:
        >>> list(sizes_of_rows(1100)), list(sizes_of_rows(100))
        ([(1024, 1024), (80, 76)], [(112, 100)])
    """
    while rows > LARGEST:
        yield LARGEST, LARGEST
        rows -= LARGEST
    coarse = rows // COARSE * COARSE if rows > 4 * COARSE else 0
    if coarse:
        yield coarse, coarse
    if rows > coarse:
        yield -(-(rows - coarse) // FINE) * FINE, rows - coarse


def sizes_of_sums(rows: int) -> Iterator[tuple[int, int]]:
    """The same for sums over rows, which can have rows of zeros: no more of them than in ever smaller blocks.

    Example:
        >>> list(sizes_of_sums(1200)), list(sizes_of_sums(20)), list(sizes_of_sums(219))
        ([(1024, 1024), (128, 128), (64, 48)], [(64, 20)], [(256, 219)])
    """
    size = LARGEST
    while rows > 0:
        while size > _LEAST_SUM and size - _LEAST_SUM >= rows:
            size //= 2
        yield size, min(size, rows)
        rows -= size


def _by_rows(multiply: Callable[..., Tensor], given: list[Tensor], columns: int) -> Tensor:
    """The product `[..., columns]` of matrices of so many rows; no view, since its caller may change it in place."""
    shape = given[0].shape[:-1]
    rows = math.prod(shape)
    blocks = list(sizes_of_rows(rows))
    if torch.compiler.is_compiling() or (blocks == [(rows, rows)] and given[0].dim() == 2):
        return multiply(*given)
    result = large.new_empty(given[0], *shape, columns)
    matrices, of_rows = [each.reshape(rows, each.shape[-1]) for each in given], result.view(rows, columns)
    begin = 0
    for size, count in blocks:
        own = [_filled(each[begin : begin + count], size) for each in matrices]
        of_rows[begin : begin + count] = multiply(*own)[:count]
        begin += count
    return result


def _filled(rows: Tensor, size: int) -> Tensor:
    """With rows of zeros below."""
    return rows if len(rows) == size else F.pad(rows, (0, 0, 0, size - len(rows)))
