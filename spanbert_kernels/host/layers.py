"""Layers that stand behind pooled spans, for numpy arrays: the largest of some pieces, and normalisation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from spanbert_kernels.host import library
from spanbert_kernels.host.checks import Reals

Which = NDArray[np.int32]


def maxout(rows: Reals, bias: Reals, pieces: int, *, compiled: bool | None = None) -> tuple[Reals, Which]:
    """The largest of each `pieces` numbers of a row plus the bias.

    Args:
        rows: float32 or float64 `[N, O * pieces]`, dense.
        bias: `[O * pieces]`, of the same dtype.
        pieces: how many numbers one is chosen of.
        compiled: True or False asks for one of the two ways; by default the compiled one where it was built.

    Returns:
        `[N, O]`, the first of the largest numbers or the first NaN; and which it is, int32 `[N, O]`.

    Example:
        >>> best, which = maxout(np.array([[1.0, 3.0, 2.0, 2.0]]), np.array([0.0, 0.0, 0.0, 1.0]), 2)
        >>> best.tolist(), which.tolist()
        ([[3.0, 3.0]], [[1, 1]])
    """
    found: tuple[Reals, Which] = library.way(compiled).maxout(rows, bias, pieces, library.usable_threads())
    return found


def layer_norm(
    rows: Reals, gain: Reals, shift: Reals, epsilon: float, *, compiled: bool | None = None
) -> tuple[Reals, Callable[[Reals], tuple[Reals, Reals, Reals]]]:
    """Rows with mean 0 and variance 1, times a gain plus a shift, and the way back.

    Args:
        rows: float32 or float64 `[N, O]`, dense.
        gain, shift: `[O]`, of the same dtype.
        epsilon: added to the variance.
        compiled: True or False asks for one of the two ways; by default the compiled one where it was built.

    Returns:
        `[N, O]`; and a function from its gradient, dense and of the same dtype, to those of `rows`, `gain` and `shift`.

    Example:
        >>> normed, backward = layer_norm(np.array([[1.0, 3.0]]), np.ones(2), np.zeros(2), 0.0)
        >>> normed.tolist(), backward(np.array([[1.0, 0.0]]))[1].tolist()
        ([[-1.0, 1.0]], [-1.0, 0.0])
    """
    way, threads = library.way(compiled), library.usable_threads()
    normed, mean, inverse = way.layer_norm(rows, gain, shift, epsilon, threads)

    def backward(grad: Reals) -> tuple[Reals, Reals, Reals]:
        given: tuple[Reals, Reals, Reals] = way.layer_norm_backward(grad, rows, gain, mean, inverse, threads)
        return given

    return normed, backward
