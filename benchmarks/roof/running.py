"""A workload's least time: its call recorded, what it launches compiled, and all of it added up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from . import keeping, nvcc
from .card import Card
from .model import roof_of
from .recording import recorded
from .rows import RoofRow
from .workloads import WORKLOADS, Roofed


def row_of(name: str, workload: Roofed, card: Card) -> RoofRow:
    """A row of the table."""
    with recorded() as recording:
        prepared = workload.prepare()
        recording.launches.clear()
        recording.waits = 0
        prepared.run()
    floor = 1e6 * prepared.moved / card.bandwidth
    launches = tuple(roof_of(launch, card) for launch in (*recording.launches, *prepared.launches))
    return RoofRow(name, workload.goal, workload.most_launches, floor, launches, recording.waits)


def measurable(workload: Roofed) -> bool:
    """Whether its kernels can be compiled here."""
    return not workload.nvcc or nvcc.is_there()


def worse(names: Iterable[str], card: Card) -> Iterator[str]:
    """What of these rows is worse now than in the newest record, or not in it; of another Triton it says nothing."""
    record = keeping.load(keeping.newest())
    kept = record.rows("now")
    for name in names:
        if not (record.is_of_this_triton and measurable(WORKLOADS[name])):
            continue
        if name in kept:
            yield from keeping.complaints(row_of(name, WORKLOADS[name], card), kept[name])
        else:
            yield f"{name}: the record has no such row"


def headlines() -> list[str]:
    """The rows that every test run compiles."""
    return [name for name, workload in WORKLOADS.items() if workload.headline]
