"""The rule by which a result is as exact as plain PyTorch's, for tests of this package and of code that uses it.

A result `x` may differ from the exact one by twice the error that plain PyTorch makes in the same precision, and by one
rounding: `max|x - exact| <= 2 max|eager - exact| + eps(dtype) max|exact|`, where `exact` is computed in float64. No
number in it is picked by hand.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["allowed_error", "assert_as_exact_as_eager", "deviation", "tolerance"]


def deviation(found: Tensor, exact: Tensor) -> float:
    """The largest absolute difference of two tensors of one shape; NaN where they differ in what is not finite.

    Args:
        found: a result of any shape, dtype and device.
        exact: what it should be, usually in float64. An infinity or a NaN in it is wanted at the same place in `found`.

    Returns:
        The difference in float64; 0 for tensors without an element.

    Raises:
        AssertionError: the shapes differ.

    Example:
        >>> deviation(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0]))
        0.5
        >>> deviation(torch.tensor([1.0, torch.inf]), torch.tensor([1.0, 2.0]))
        nan
    """
    if found.shape != exact.shape:
        raise AssertionError(f"shape {list(found.shape)} instead of {list(exact.shape)}")
    found, exact = found.detach().to(exact.device, torch.float64), exact.detach().double()
    finite = exact.isfinite()
    if not finite.all():
        if not torch.equal(found[~finite].nan_to_num(), exact[~finite].nan_to_num()):
            return math.nan
        found, exact = found[finite], exact[finite]
    if not found.isfinite().all():
        return math.nan
    return float((found - exact).abs().max()) if found.numel() else 0.0


def allowed_error(eager_error: float, dtype: torch.dtype, largest: float) -> float:
    """The rule in numbers: `2 * eager_error + eps(dtype) * largest`; integers have no rounding.

    Args:
        eager_error: of plain PyTorch's result in that precision.
        dtype: of the result that is judged.
        largest: the exact result's largest absolute value.

    Returns:
        The largest error that the rule allows.

    Example:
        >>> allowed_error(0.5, torch.float32, 4.0) - 1.0 == 4.0 * torch.finfo(torch.float32).eps
        True
    """
    return 2 * eager_error + (torch.finfo(dtype).eps * largest if dtype.is_floating_point else 0.0)


def tolerance(exact: Tensor, eager: Tensor, dtype: torch.dtype | None = None) -> float:
    """How far from `exact` a result may be that should be as exact as `eager`.

    Args:
        exact: the result in float64.
        eager: plain PyTorch's, in the precision of the result that is judged.
        dtype: of the result that is judged, where `eager` is less precise: nothing is more exact than float64, whose
            `eager` is one of float32. Its error counts in proportion to the two machine epsilons.

    Returns:
        The largest absolute difference that is allowed.

    Example:
        >>> exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
        >>> tolerance(exact, torch.tensor([1.0, 2.25])) == 2 * 0.25 + torch.finfo(torch.float32).eps * 2.0
        True
    """
    dtype = dtype or eager.dtype
    error = deviation(eager, exact)
    if dtype != eager.dtype:
        error *= min(1.0, torch.finfo(dtype).eps / torch.finfo(eager.dtype).eps)
    values = exact[exact.isfinite()]
    return allowed_error(error, dtype, float(values.abs().max()) if values.numel() else 0.0)


def assert_as_exact_as_eager(found: Tensor, exact: Tensor, eager: Tensor) -> None:
    """Holds a result to the rule.

    Args:
        found: the result that is judged.
        exact: the same in float64.
        eager: the same by plain PyTorch in the precision of `found`, or in float32 where `found` is in float64.

    Raises:
        AssertionError: another shape, a value that is not finite where it should be, or an error beyond `tolerance`.

    Example:
        >>> x = torch.linspace(-3, 3, 7)
        >>> exact, eager = x.double().exp(), x.exp()
        >>> assert_as_exact_as_eager(torch.exp2(x * 1.442695), exact, eager)
        >>> assert_as_exact_as_eager(x.exp() * 1.00001, exact, eager)
        Traceback (most recent call last):
        AssertionError: off by 0.0002..., allowed ...
    """
    error, allowed = deviation(found, exact), tolerance(exact, eager, found.dtype)
    if not error <= allowed:
        raise AssertionError(f"off by {error:.3g}, allowed {allowed:.3g}")
