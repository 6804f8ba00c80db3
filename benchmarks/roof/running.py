"""A workload's least time: its call recorded, what it launches compiled, and all of it added up."""

from __future__ import annotations

from dataclasses import dataclass

from .card import Card
from .model import LaunchRoof, roof_of
from .recording import recorded
from .workloads import Roofed


@dataclass(frozen=True)
class RoofRow:
    """The least time of a workload, in microseconds.

    Attributes:
        name: of the workload.
        goal: what was asked for.
        most_launches: how many launches were asked for at most.
        floor: for the bytes that any way must move.
        launches: in their order.
        waits: how often the host waits for the GPU.
    """

    name: str
    goal: float | None
    most_launches: int | None
    floor: float
    launches: tuple[LaunchRoof, ...]
    waits: int

    @property
    def pipes(self) -> float:
        """What the slowest pipe of each launch takes, all launches together."""
        return sum(max(each.pipes.values(), default=0.0) for each in self.launches)

    @property
    def memory(self) -> float:
        """What each launch takes for its tensors, all launches together."""
        return sum(each.memory for each in self.launches)

    @property
    def least(self) -> float:
        """What no launch can take less than, all launches together."""
        return sum(max(each.memory, *each.pipes.values()) if each.pipes else each.memory for each in self.launches)

    @property
    def predicted(self) -> float:
        return sum(each.predicted for each in self.launches)

    @property
    def slowest(self) -> LaunchRoof:
        return max(self.launches, key=lambda each: each.predicted)


def row_of(name: str, workload: Roofed, card: Card) -> RoofRow:
    """A row of the table."""
    with recorded() as recording:
        prepared = workload.prepare()
        recording.launches.clear()
        recording.waits = 0
        prepared.run()
    floor = 1e6 * prepared.moved / card.bandwidth
    launches = tuple(roof_of(launch, card) for launch in recording.launches)
    return RoofRow(name, workload.goal, workload.most_launches, floor, launches, recording.waits)
