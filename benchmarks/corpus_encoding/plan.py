"""What is measured, in this order: each a row of the table in the docs."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

from .documents import MIXES

MAIN = "log-normal"
# Of all documents, those of a point of the curve: about as many tokens each, so that the last batch of a worker counts
# for as little in all of them.
SHARES = {MAIN: 1 / 8, "sentences as they are": 1 / 3, "all of 16": 2 / 5, "all of 128": 1 / 16}


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
        ['stages of 62 documents, all of 128', 'bare of 1,000 documents, log-normal']
    """
    fewer = {mix: max(1, int(documents * share)) for mix, share in SHARES.items()}
    yield PlannedMeasurement("stages", "all of 128", fewer["all of 128"])
    yield PlannedMeasurement("bare", MAIN, documents)
    yield PlannedMeasurement("encode", MAIN, documents)
    for mix in MIXES:
        yield PlannedMeasurement("bare", mix, fewer[mix])
        yield PlannedMeasurement("encode", mix, fewer[mix])
        yield PlannedMeasurement("encode", mix, fewer[mix], workers=2)
    for workers in (1, 2):
        yield PlannedMeasurement("encode", MAIN, fewer[MAIN], "ray", workers)


def missing(measurement: PlannedMeasurement) -> str | None:
    """Why it cannot be measured here."""
    if measurement.engine == "ray" and importlib.util.find_spec("ray") is None:
        return "Ray is not installed: pip install 'spanbert-kernels[scale]'"
    return None
