"""A product in configurations that the checks must refuse: too few threads for the tile, and too many stages."""

from __future__ import annotations

import triton
import triton.language as tl

from spanbert_kernels.ops.aot import AotConfiguration


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
    signature = {"a": "*fp16", "b": "*fp16", "c": "*fp32", "depth": "i64", "SIZE": "constexpr", "STEP": "constexpr"}
    return [
        AotConfiguration(name, product_kernel, signature, {"SIZE": size, "STEP": 32}, num_warps, num_stages, ("depth",))
        for name, size, num_warps, num_stages in (("fits", 64, 4, 2), ("spills", 128, 2, 2), ("shared", 128, 8, 24))
    ]
