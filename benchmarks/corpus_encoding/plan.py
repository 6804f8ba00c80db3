"""What is measured, in this order: each a row of the table in the docs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

from .documents import MIXES

MAIN = "log-normal"
FEWER = 8  # times: documents of a point of the curve


@dataclass(frozen=True)
class PlannedMeasurement:
    """A measurement, without the corpus and the model.

    Attributes:
        what, engine, workers: as in `AskedMeasurement`.
        mix: of the documents' lengths.
        documents: how many.
    """

    what: str
    mix: str
    documents: int
    engine: str = "local"
    workers: int = 1

    @property
    def title(self) -> str:
        """For a line on the terminal."""
        of = f"{self.what} of {self.documents:,} documents, {self.mix}"
        return of if self.what != "encode" else f"{of}, {self.engine}, workers: {self.workers}"


def planned(documents: int) -> Iterator[PlannedMeasurement]:
    """All of them: costs by stage, the whole corpus beside the bare model, then the curves.

    Example:
        >>> [each.title for each in planned(1000)][:2]
        ['stages of 125 documents, all of 128', 'bare of 1,000 documents, log-normal']
    """
    fewer = max(1, documents // FEWER)
    yield PlannedMeasurement("stages", "all of 128", fewer)
    yield PlannedMeasurement("bare", MAIN, documents)
    yield PlannedMeasurement("encode", MAIN, documents)
    for mix in MIXES:
        yield PlannedMeasurement("bare", mix, fewer)
        yield PlannedMeasurement("encode", mix, fewer)
        yield PlannedMeasurement("encode", mix, fewer, workers=2)
    for workers in (1, 2):
        yield PlannedMeasurement("encode", MAIN, fewer, "ray", workers)


def missing(measurement: PlannedMeasurement) -> str | None:
    """Why it cannot be measured here."""
    if measurement.engine == "ray" and importlib.util.find_spec("ray") is None:
        return "Ray is not installed: pip install 'spanbert-kernels[scale]'"
    return None
