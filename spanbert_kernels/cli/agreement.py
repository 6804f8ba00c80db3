"""Whether two ways agree: their largest difference everywhere, and the package's tolerance rule where it is largest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spanbert_kernels.testing import deviation, tolerance


@dataclass(frozen=True)
class Agreement:
    """How far the accelerated way is from the baseline, and how far both are from float64.

    Attributes:
        largest_difference: between the two ways, over all results.
        largest_value: of the baseline's results.
        where: the piece of the results that holds the largest difference, in words.
        baseline_error, accelerated_error: largest difference from the float64 reference in that piece.
        allowed: what the rule of `spanbert_kernels.testing` grants the accelerated way there: it must be about as exact
            as the baseline, or as what defines a way that is less exact by intention.
    """

    largest_difference: float
    largest_value: float
    where: str
    baseline_error: float
    accelerated_error: float
    allowed: float

    @property
    def holds(self) -> bool:
        """Whether the accelerated way is within the tolerance; a NaN anywhere is a no."""
        return self.accelerated_error <= self.allowed and not math.isnan(self.largest_difference)


class Difference:
    """Running maxima over pieces of results that both ways made, and the piece that differs most.

    Example:
        >>> difference = Difference()
        >>> difference.see("first", torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]))
        True
        >>> difference.see("second", torch.tensor([9.0]), torch.tensor([9.0]))
        False
        >>> difference.error, difference.value, difference.worst[0]
        (0.5, 9.0, 'first')
    """

    def __init__(self) -> None:
        self.error = -1.0  # below any difference: the first piece is the largest so far even if it is exact
        self.value = 0.0
        self.worst: tuple[Any, Tensor, Tensor] = None, torch.empty(0), torch.empty(0)

    def see(self, piece: Any, baseline: Tensor, accelerated: Tensor) -> bool:
        """Take a piece in, which is kept if no other before differed as much: then True.

        Raises:
            RuntimeError: the shapes differ.
        """
        if baseline.shape != accelerated.shape:
            raise RuntimeError(f"the two ways differ in shape: {list(baseline.shape)} and {list(accelerated.shape)}")
        if not baseline.numel():
            return False
        # One copy at most, in place: at a gigabyte of spans the comparison would dwarf the work.
        value = float(torch.linalg.vector_norm(baseline.flatten(), math.inf))
        error = float((accelerated - baseline).abs_().amax())
        # max() would drop a NaN, and a NaN is exactly what must be seen.
        self.value = value if math.isnan(value) else max(self.value, value)
        worst = not math.isnan(self.error) and not error <= self.error
        if worst:
            self.error, self.worst = error, (piece, baseline, accelerated)
        return worst

    def judge(self, where: str, reference: Tensor, defined: Tensor | None = None) -> Agreement:
        """Apply the tolerance rule to the piece that differs most, which `reference` is in float64.

        `defined` is that piece by plain PyTorch with the accelerated way's own rounding, where that has another.

        If the accelerated way is within the tolerance there, then no result anywhere differs from the baseline by more
        than the sum of both errors there: elsewhere the difference is smaller.
        """
        _, baseline, accelerated = self.worst
        return Agreement(
            largest_difference=math.nan if math.isnan(self.error) else max(self.error, 0.0),
            largest_value=self.value,
            where=where,
            baseline_error=deviation(baseline, reference),
            accelerated_error=deviation(accelerated, reference),
            allowed=tolerance(reference, baseline if defined is None else defined),
        )
