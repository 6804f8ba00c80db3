"""What an instruction of one warp asks of a multiprocessor with four schedulers, in cycles, pipe by pipe.

The rates are those of compute capability 9.0 in the table of arithmetic throughput of NVIDIA's programming guide, and
of wgmma by the data sheet; a product by mma.sync reaches 62 % of that. Latencies, bank conflicts and misses are not
counted: what comes out is a least time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from .sass import Instruction

ISSUE, ALU, FMA, XU, TENSOR, SHARED = PIPES = ("issue", "ALU", "FMA", "XU", "tensor", "shared memory")
SCHEDULERS = 4  # each issues an instruction a cycle, to units of its own
SHARED_BYTES = 128  # a cycle, of shared memory and the first cache together
PRODUCTS = 512  # multiplications in 16 bits of a scheduler's tensor core, a cycle
MMA_SYNC = 0.62  # of which older instructions reach so much
# Cycles of a scheduler's unit that a warp's 32 lanes take.
FULL, HALF, SIXTEENTH_OF_128 = 1.0, 2.0, 8.0
ON_FMA = {"FFMA": FULL, "FMUL": FULL, "FADD": FULL, "HFMA2": FULL, "HADD2": FULL, "HMUL2": FULL, "IMAD": HALF}
ON_XU = {"MUFU", "F2F", "F2I", "I2F", "FRND", "POPC", "FLO", "BREV"}
MEMORY = {
    *("LDS", "STS", "LDSM", "STSM", "ATOMS", "SHFL"),
    *("LDG", "STG", "LDGSTS", "LD", "ST", "LDL", "STL", "ATOM", "ATOMG", "RED"),
}
# Control, special registers and constants, which take a slot and little else.
SLOT_ALONE = {
    *(
        "BAR",
        "BMOV",
        "BPT",
        "BRA",
        "BREAK",
        "BRX",
        "BSSY",
        "BSYNC",
        "CALL",
        "CCTL",
        "CS2R",
        "DEPBAR",
        "ELECT",
        "ERRBAR",
    ),
    *("EXIT", "FENCE", "JMP", "LDC", "LDGDEPBAR", "LEPC", "MEMBAR", "NANOSLEEP", "NOP", "R2UR", "RET", "S2R", "S2UR"),
    *("SYNCS", "WARPGROUP", "WARPGROUPDEPBAR", "WARPSYNC", "YIELD"),
}
SHAPE = re.compile(r"\d+x(\d+)x(\d+)")
MMA_SHAPES = {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8, "1684": 16 * 8 * 4, "884": 8 * 8 * 4, "16832": 16 * 8 * 32}


def cycles(instruction: Instruction) -> Mapping[str, float]:
    """Cycles of a multiprocessor for each pipe that a warp's instruction uses.

    Example:
        >>> cycles(Instruction("FFMA"))
        {'issue': 0.25, 'FMA': 0.25}
        >>> cycles(Instruction("LDS.128"))
        {'issue': 0.25, 'shared memory': 4.0}
        >>> cycles(Instruction("HGMMA.64x64x16.F32.BF16", "R24, gdesc[UR8], R24"))
        {'issue': 0.25, 'tensor': 8.0, 'shared memory': 8.0}
    """
    base, slot = instruction.base, {ISSUE: 1 / SCHEDULERS}
    if base in ON_FMA:
        return {**slot, FMA: ON_FMA[base] / SCHEDULERS}
    if base in ON_XU:
        return {**slot, XU: SIXTEENTH_OF_128 / SCHEDULERS}
    if base == "HGMMA":
        return {**slot, **_warpgroup_product(instruction)}
    if base == "HMMA":
        shape = next(MMA_SHAPES[each] for each in instruction.name.split(".") if each in MMA_SHAPES)
        rate = PRODUCTS * MMA_SYNC / (2 if "TF32" in instruction.name else 1)
        return {**slot, TENSOR: shape / rate / SCHEDULERS}
    if base in MEMORY:
        return {**slot, SHARED: max(1.0, instruction.width * 32 / SHARED_BYTES)}
    if base in SLOT_ALONE or base.startswith("U"):
        return slot
    return {**slot, ALU: HALF / SCHEDULERS}


def _warpgroup_product(instruction: Instruction) -> dict[str, float]:
    """A warp's quarter of a product of 64 rows; what lies in shared memory is read from there once."""
    shape = SHAPE.search(instruction.name)
    assert shape is not None, instruction
    (columns, depth), size = map(int, shape.groups()), 4 if "TF32" in instruction.name else 2
    both = instruction.operands.split(",")[1].lstrip().startswith("gdesc")
    read = ((64 if both else 0) + columns) * depth * size
    return {
        TENSOR: 64 * columns * depth * (size / 2) / PRODUCTS / SCHEDULERS / 4,
        SHARED: read / SHARED_BYTES / 4,
    }
