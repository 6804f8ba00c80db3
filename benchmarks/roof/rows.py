"""Least times of launches, and of workloads, which are rows of a table; all in microseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LaunchRoof:
    """What a launch takes at least, in microseconds.

    Attributes:
        name: the kernel's.
        programs: how many there are, and how many of them have something to do.
        pipes: by pipe.
        memory: for its tensors, each once.
        predicted: what it is expected to take, and `limit` what decides that.
        registers, warps, blocks: of a thread, of a block, and blocks at a time on a multiprocessor.
        spilled: bytes of stack and local memory of a thread.
        shared: bytes of shared memory of a block.
        copies: for each way between threads and global memory, what part of the bytes goes 16 bytes a thread.
    """

    name: str
    memory: float
    predicted: float
    limit: str
    pipes: Mapping[str, float] = field(default_factory=dict)
    programs: tuple[int, int] = (0, 0)
    warps: int = 0
    registers: int = 0
    spilled: int = 0
    shared: int = 0
    blocks: int = 0
    copies: Mapping[str, float] = field(default_factory=dict)


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
