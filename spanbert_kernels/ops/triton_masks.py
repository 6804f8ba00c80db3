"""Masks of blocks in Triton kernels that hang on a number as well."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def only_if(condition, mask):
    """A block's mask where a condition on numbers holds, which is not a block's, else False throughout.

    The same as `mask & condition`, which the interpreter of Triton 3.9 makes integers of and then refuses.
    """
    return tl.where(condition, mask, False)
