"""What sending takes between GPUs, by published rates of links and NCCL's own model of its latencies."""

from __future__ import annotations

import math
from dataclasses import dataclass

MACHINE = 8  # GPUs


@dataclass(frozen=True)
class Links:
    """Rates and latencies of a cluster of machines of eight GPUs, each with a network card of its own.

    Rates: NVLink 4 has 900 GB/s a GPU both ways together (NVIDIA H200 data sheet), the network 400 Gb/s a GPU
    (InfiniBand NDR, as NVIDIA's own H200 systems of MLPerf Inference 4.1). Latencies: NCCL's `tuning.cc`, of LL128.

    Attributes:
        nvlink: bytes a second from a GPU to others of its machine.
        network: bytes a second from a GPU to other machines.
        reached: the share of both that is assumed to be reached, as much as of a GPU's memory.
        base: seconds that a collective takes at least.
        ring: seconds a step of a ring, inside a machine and between two.
        tree: the same of a tree.
    """

    nvlink: float = 450e9
    network: float = 50e9
    reached: float = 0.8
    base: float = 14e-6
    ring: tuple[float, float] = (1.9e-6, 4.0e-6)
    tree: tuple[float, float] = (1.25e-6, 8.5e-6)

    def rate(self, gpus: int) -> float:
        """Bytes a second of a ring: between machines there are as many as GPUs in one, each through its own card.

        Example:
            >>> Links(reached=1.0).rate(8), Links(reached=1.0).rate(64)
            (450000000000.0, 400000000000.0)
        """
        return self.reached * (self.nvlink if gpus <= MACHINE else min(self.nvlink, MACHINE * self.network))

    def gather(self, size: float, gpus: int) -> float:
        """Seconds of an all-gather that leaves `size` bytes on each, or of a reduce-scatter of as many.

        Example:
            >>> Links(reached=1.0, base=0, ring=(0, 0)).gather(450e9, 8)
            0.875
            >>> Links(nvlink=math.inf, network=math.inf, base=0).gather(1.0, 16) == (15 - 2) * 1.9e-6 + 2 * 4.0e-6
            True
        """
        if gpus == 1:
            return 0.0
        machines = math.ceil(gpus / MACHINE)
        between = machines if machines > 1 else 0
        steps = (gpus - 1 - between) * self.ring[0] + between * self.ring[1]
        return self.base + steps + (gpus - 1) / gpus * size / self.rate(gpus)

    def reduce(self, size: float, gpus: int) -> float:
        """Seconds of an all-reduce: of a ring or of two trees, whichever is faster.

        Example:
            >>> Links(reached=1.0, base=0, ring=(0, 0)).reduce(450e9, 8)
            1.75
        """
        if gpus == 1:
            return 0.0
        machines = math.ceil(gpus / MACHINE)
        between = 2 * machines if machines > 1 else 0
        ring = (2 * (gpus - 1) - between) * self.ring[0] + between * self.ring[1]
        inside = min(gpus, MACHINE) - 1
        tree = 2 * (inside * self.tree[0] + math.log2(machines) * self.tree[1])
        return self.base + min(ring, tree) + 2 * (gpus - 1) / gpus * size / self.rate(gpus)

    def between_machines(self, size: float, machines: int) -> float:
        """Seconds of an all-reduce of `size` bytes of each GPU with the GPUs of its place in other machines."""
        if machines == 1:
            return 0.0
        latency = min(2 * (machines - 1) * self.ring[1], 2 * math.log2(machines) * self.tree[1])
        return self.base + latency + 2 * (machines - 1) / machines * size / (self.reached * self.network)

    def send(self, size: float, gpus: int) -> float:
        """Seconds of `size` bytes from each GPU to another; where there are machines, some cross in every round."""
        return self.base + self.ring[0 if gpus <= MACHINE else 1] + size / self.rate_of_one(gpus)

    def rate_of_one(self, gpus: int) -> float:
        """Bytes a second from one GPU to one other of so many."""
        return self.reached * (self.nvlink if gpus <= MACHINE else self.network)


H200S = Links()
