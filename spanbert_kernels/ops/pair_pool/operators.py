"""The raw operators of pair_pool, and them under autograd."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from spanbert_kernels.ops.backends import Operation
from spanbert_kernels.ops.operators import Gradient, flat, gradients, raw, save, saved
from spanbert_kernels.ops.pair_pool.parts import part_of

OPERATION = Operation(
    "pair_pool",
    ("cpu", "eager"),
    summary="two rows of each pair, in any order, and their products and differences, in one pass",
    instead=("eager", "on a GPU rows are gathered and combined as fast as memory lets them, whoever does it"),
)


class PairSources(NamedTuple):
    """What pairs read.

    Attributes:
        first, second: `[T1, H1]`, `[T2, H2]`, one dtype.
        first_sentinel, second_sentinel: `[H1]`, `[H2]`, the rows of index -1.
        features: `[R, E]`.
    """

    first: Tensor
    second: Tensor
    first_sentinel: Tensor | None
    second_sentinel: Tensor | None
    features: Tensor | None


class PairWork(NamedTuple):
    """Which rows pairs read, and what becomes of them.

    Attributes:
        pairs: int64 `[N, 2]`.
        mask: bool `[N]`, absent: all are kept.
        feature_rows: int64 `[N]`, with features.
        parts: codes of `PairPart`.
        summed: the parts, equally wide, are added up; otherwise one stands beside the other.
    """

    pairs: Tensor
    mask: Tensor | None
    feature_rows: Tensor | None
    parts: list[int]
    summed: bool


def output_size(sources: PairSources, work: PairWork) -> Any:
    """Columns of the output."""
    wide = [sources.first.shape[1], sources.second.shape[1]]
    sizes: list[Any] = []
    for part in map(part_of, work.parts):
        if part.operation != "feature":
            sizes.append(wide[part.left])
        elif sources.features is not None:
            sizes.append(sources.features.shape[1])
    return sizes[0] if work.summed else sum(sizes)


@raw(OPERATION)
def pair_pool_forward(sources: PairSources, work: PairWork) -> Tensor:
    return sources.first.new_empty(work.pairs.shape[0], output_size(sources, work))


@raw(OPERATION)
def pair_pool_backward(
    grad_output: Tensor, sources: PairSources, work: PairWork, wanted: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    # The gradients of first, second, features, first_sentinel and second_sentinel; `wanted` has a 1 for those of the
    # first three that are computed, a sentinel's with its side. What is not is empty.
    def like(tensor: Tensor | None, place: int) -> Tensor:
        return (
            tensor.new_empty(tensor.shape if wanted[place] else 0) if tensor is not None else grad_output.new_empty(0)
        )

    first, second, first_sentinel, second_sentinel, features = sources
    return (
        like(first, 0),
        like(second, 1),
        like(features, 2),
        like(first_sentinel, 0),
        like(second_sentinel, 1),
    )


class PairPool(torch.autograd.Function):
    """The compiled kernels under autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        first: Tensor,
        second: Tensor,
        first_sentinel: Tensor | None,
        second_sentinel: Tensor | None,
        features: Tensor | None,
        work: PairWork,
        backend: str,
        operation: str,
    ) -> Tensor:
        sources = PairSources(first, second, first_sentinel, second_sentinel, features)
        save(ctx, sources, work, backend)
        ctx.text = f'{operation} has no second derivative on its compiled kernels; backend="eager" has it'
        output: Tensor = pair_pool_forward(backend, sources, work)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad
        wanted = [int(needed[0] or needed[2]), int(needed[1] or needed[3]), int(needed[4])]
        found = Gradient.apply(ctx.text, _gradients, grad_output, *flat(saved(ctx)), wanted)
        first, second, features, first_sentinel, second_sentinel = found
        grads = (first, second, first_sentinel, second_sentinel, features)
        return gradients(ctx, *[grad if need else None for grad, need in zip(grads, needed, strict=False)])


def _gradients(grad_output: Tensor, *leaves: Any) -> tuple[Tensor, ...]:
    *values, backend, wanted = leaves
    sources, work = PairSources(*values[:5]), PairWork(*values[5:])
    found: tuple[Tensor, ...] = pair_pool_backward(backend, grad_output, sources, work, wanted)
    return found
