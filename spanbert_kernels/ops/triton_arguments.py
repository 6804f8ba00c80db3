"""What Triton kernels of several operations take as one argument each.

Triton takes a NamedTuple whole, and a kernel reads its fields by name. It compiles a kernel anew where a field is None
or not, where a number is 1 or a multiple of 16, and for every value of a field under `tl.constexpr`. So numbers that
vary from batch to batch are arguments of their own, with `do_not_specialize`. What a kernel compares with None as a
whole has no field that may be None: Triton cannot compare that.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from spanbert_kernels.ops import philox
from spanbert_kernels.ops.plans import SpanWork


class Matrix(NamedTuple):
    """Rows whose columns are dense.

    Attributes:
        data: `[rows, columns]`.
        stride: elements from one row to the next.
    """

    data: Tensor
    stride: int


class Spans(NamedTuple):
    """Sorted spans and the lists that find them by token, as `plans.SpanWork` has them."""

    starts: Tensor
    ends: Tensor
    rows: Tensor | None
    first: Tensor | None
    reach: Tensor | None


class Philox(NamedTuple):
    """Which entries dropout drops (`ops/philox.py`).

    Attributes:
        seed: int64 `[1]`.
        threshold: words of the generator below it are dropped.
        keep_prob: what the kept entries are divided by.
    """

    seed: Tensor
    threshold: int
    keep_prob: float


class Tiling(NamedTuple):
    """How a program cuts its work, and a matrix product `[M, K] @ [K, D]` in it.

    Attributes:
        M: rows of the result, spans forward and tokens backward.
        K: of what is summed, so many at a time.
        D: columns of the result.
        PRECISION: of a product in float32, Triton's `input_precision`.
        INTERPRETED: whether loops have the form that the interpreter takes, and not the one that is pipelined.
    """

    M: int
    K: int
    D: int
    PRECISION: str = "ieee"
    INTERPRETED: bool = False


@functools.cache
def compiler_options(precision: str) -> dict[str, Any]:
    """What Triton's compiler is asked for beside warps and stages, as far as the installed release knows it.

    Products and sums are contracted, which all releases do so far and some warn of. Kernels of float32 products take
    all registers there are: their instructions are put into an order that takes fewer.
    """
    from triton.backends.nvidia.compiler import CUDAOptions

    asked = {"enable_fp_fusion": True, **({"sched4reg": True} if precision == "bf16x6" else {})}
    return {name: value for name, value in asked.items() if name in CUDAOptions.__dataclass_fields__}


def launch_options(num_warps: int, num_stages: int, maxnreg: int | None) -> dict[str, int]:
    """What Triton is asked for by name of warps, stages and, where there is a limit, registers.

    Example:
        >>> launch_options(8, 2, 255), launch_options(4, 1, None)
        ({'num_warps': 8, 'num_stages': 2, 'maxnreg': 255}, {'num_warps': 4, 'num_stages': 1})
    """
    registers = {} if maxnreg is None else {"maxnreg": maxnreg}
    return {"num_warps": num_warps, "num_stages": num_stages, **registers}


@dataclass(frozen=True)
class Options:
    """A kernel's block and launch options, which the interpreter passes over.

    Attributes:
        block: a NamedTuple whose fields the kernel knows when it is compiled.
        num_warps, num_stages: Triton's.
        maxnreg: Triton's, the registers that a thread may have. Without it the compiler takes fewer than there are, for
            more threads, and on some GPUs spills what they do not hold.
    """

    block: Any
    num_warps: int = 4
    num_stages: int = 1
    maxnreg: int | None = None

    @functools.cached_property
    def arguments(self) -> dict[str, Any]:
        """What a launch passes on; made once, for launches to be short."""
        block = self.block._make(map(tl.constexpr, self.block))
        precision = getattr(self.block, "PRECISION", "")
        launch = launch_options(self.num_warps, self.num_stages, self.maxnreg)
        return {"BLOCK": block, **launch, **compiler_options(precision)}


@functools.cache
def with_registers(options: Options, maxnreg: int) -> Options:
    """The same with so many registers to a thread."""
    return replace(options, maxnreg=maxnreg)


def dense_rows(tensor: Tensor) -> Tensor:
    """The tensor itself where its last dimension is dense (the other strides are free), else a copy."""
    return tensor if tensor.shape[-1] <= 1 or tensor.stride(-1) == 1 else tensor.contiguous()


def matrix(tensor: Tensor) -> Matrix:
    """`tensor [rows, columns]` for a kernel."""
    tensor = dense_rows(tensor)
    return Matrix(tensor, tensor.stride(0))


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """The tensor, if there is one, in rows without gaps."""
    return None if tensor is None else tensor.contiguous()


def spans_of(work: SpanWork) -> Spans:
    """The tensors of a work list for a kernel."""
    assert work.starts is not None
    assert work.ends is not None
    lists = map(contiguous, (work.rows, work.first, work.reach))
    return Spans(work.starts.contiguous(), work.ends.contiguous(), *lists)


def philox_of(dropout: philox.Dropout) -> Philox | None:
    """Dropout for a kernel, None without a seed."""
    if dropout.seed is None:
        return None
    return Philox(dropout.seed, philox.threshold(dropout.dropout_p), 1.0 - dropout.dropout_p)


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Launches inside go to the device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
