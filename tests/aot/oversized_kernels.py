"""A product in configurations that the checks must refuse: too few registers for the tile, and too many stages."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl

from spanbert_kernels.ops.aot import AotConfiguration, configurations_of, meta


@triton.jit
def product_kernel(a, b, c, depth, SIZE: tl.constexpr, STEP: tl.constexpr):
    row = tl.arange(0, SIZE)[:, None]
    column = tl.arange(0, SIZE)[None, :]
    inner = tl.arange(0, STEP)
    product = tl.zeros([SIZE, SIZE], tl.float32)
    for first in range(0, depth, STEP):
        left = tl.load(a + row * depth + (first + inner)[None, :])
        right = tl.load(b + (first + inner)[:, None] * SIZE + column)
        product = tl.dot(left, right, product)
    tl.store(c + row * SIZE + column, product)


def aot_configurations() -> list[AotConfiguration]:
    matrix, sums = meta(4096, 4096, dtype=torch.float16), meta(4096, 4096)
    sizes = {"fits": (64, 4, 2, 128), "spills": (64, 2, 2, 64), "shared": (128, 8, 24, None)}

    def call(size: int, warps: int, stages: int, registers: int | None) -> Any:
        options = {"num_warps": warps, "num_stages": stages, "maxnreg": registers}
        return product_kernel[(1,)](matrix, matrix, sums, 4096, size, 32, **options)

    return configurations_of({name: partial(call, *size) for name, size in sizes.items()})
