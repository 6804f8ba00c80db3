"""The three stages of the demo: what people run today beside what this package runs, on the same documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels.cli.agreement import Agreement
from spanbert_kernels.cli.measuring import Timing

__all__ = ["StageResult", "offsets_of"]


def offsets_of(lengths: Sequence[int]) -> Tensor:
    """Where each of the runs of these lengths begins, and the last one's end, int32.

    Example:
        >>> offsets_of([3, 2]).tolist()
        [0, 3, 5]
    """
    return F.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0))


@dataclass(frozen=True)
class StageResult:
    """One stage: what was done, how much of it, how long each way took and how far apart they are.

    Attributes:
        title: of the row.
        baseline, accelerated: the two ways, in words.
        unit, count: what was worked on, and how many.
        timing: times and memory.
        agreement: largest difference and the tolerance rule.
        backends: (operation, backend) of the package's calls that ran.
        paths: what else tells which code ran, in words.
        sampled: a sentence where time did not allow all of the work; empty where it did.
        notes: what else a reader must know about this stage.
        changed_predictions: how many tokens have another prediction; None where there are none to compare.
    """

    title: str
    baseline: str
    accelerated: str
    unit: str
    count: int
    timing: Timing
    agreement: Agreement
    backends: list[tuple[str, str]]
    paths: list[str] = field(default_factory=list)
    sampled: str = ""
    notes: list[str] = field(default_factory=list)
    changed_predictions: int | None = None

    @property
    def speed_up(self) -> float:
        return self.timing.baseline_seconds / self.timing.accelerated_seconds

    @property
    def relative_error(self) -> float:
        """The largest difference of the two ways as a share of the largest value."""
        return self.agreement.largest_difference / (self.agreement.largest_value or 1.0)

    def as_dict(self) -> dict[str, Any]:
        """Plain values alone."""
        return {
            **asdict(self),
            "speed_up": self.speed_up,
            "relative_error": self.relative_error,
            "within_tolerance": self.agreement.holds,
        }
