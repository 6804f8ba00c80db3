"""The words of `ops/philox.py` in a Triton kernel."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def philox_words(seed, draw, query, head):
    """The four words of Philox4x32-10 for counters (draw, query, head, 0), uint32 of one shape; `seed` is int64.

    `tl.philox` multiplies twice for the two halves of a product; a product of 64 bits is one instruction.
    """
    first_key = seed.to(tl.uint32)
    second_key = (seed >> 32).to(tl.uint32)
    a = draw
    b = query
    c = head
    d = head * 0
    for _ in tl.static_range(10):
        left = a.to(tl.uint64) * 0xD2511F53
        right = c.to(tl.uint64) * 0xCD9E8D57
        a = (right >> 32).to(tl.uint32) ^ b ^ first_key
        b = right.to(tl.uint32)
        c = (left >> 32).to(tl.uint32) ^ d ^ second_key
        d = left.to(tl.uint32)
        first_key = first_key + 0x9E3779B9
        second_key = second_key + 0xBB67AE85
    return a, b, c, d
