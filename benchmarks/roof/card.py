"""The GPU that is reckoned with: how much of everything it has, and how fast."""

from __future__ import annotations

from dataclasses import dataclass

# What kernels reach of the rates of memory and of the busiest pipe.
OF_BANDWIDTH, OF_PIPES = 0.8, 0.65


@dataclass(frozen=True)
class Card:
    """A GPU's constants.

    Attributes:
        name: as its maker calls it.
        architecture: of the machine code, such as 90.
        multiprocessors: how many there are.
        clock: cycles a second under load.
        bandwidth: bytes a second of its memory, by its data sheet.
        products16, products32: operations a second of matrix products in 16 and 32 bits, by its data sheet.
        launch: seconds that the shortest launch takes beside others, an estimate.
        registers, shared, warps, blocks: what a multiprocessor has of 32-bit registers, of bytes of shared memory, and
            how many warps and blocks it holds at a time.
    """

    name: str
    architecture: int
    multiprocessors: int
    clock: float
    bandwidth: float
    products16: float
    products32: float
    launch: float
    registers: int = 65536
    shared: int = 228 * 1024
    warps: int = 64
    blocks: int = 32

    def seconds(self, cycles: float) -> float:
        """Of so many cycles of one multiprocessor, where all share the work evenly.

        Example:
            >>> H200.seconds(132 * 1.9e9)
            1.0
        """
        return cycles / self.multiprocessors / self.clock

    def blocks_at_once(self, registers: int, warps: int, shared: int) -> int:
        """How many blocks of a kernel a multiprocessor holds.

        Args:
            registers: of a thread.
            warps: of a block.
            shared: bytes of a block.

        Example:
            >>> H200.blocks_at_once(128, 4, 40_000), H200.blocks_at_once(32, 2, 0)
            (4, 32)
        """
        of_warp = -(-registers // 8) * 8 * 32
        by_shared = self.shared // (shared + 1024)  # the driver keeps a kilobyte of each block
        return min(self.registers // of_warp // warps, by_shared, self.warps // warps, self.blocks)


H200 = Card("H200", 90, 132, 1.9e9, 4.8e12, 989e12, 67e12, 2e-6)
