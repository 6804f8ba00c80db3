"""What pair_pool means, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spanbert_kernels.ops.pair_pool.operators import PairSources, PairWork
from spanbert_kernels.ops.pair_pool.parts import part_of
from spanbert_kernels.ops.span_gather.reference import rows

COMBINE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "take": lambda left, right: left,
    "*": torch.mul,
    "+": torch.add,
    "-": torch.sub,
    "/": torch.div,
    "distance": lambda left, right: (left - right).abs(),
}


def pair_pool(sources: PairSources, work: PairWork) -> Tensor:
    """The parts of every pair beside each other `[N, D]`, or their sum."""
    dtype = torch.promote_types(sources.first.dtype, torch.float32)
    mask = None if work.mask is None else work.mask[:, None]

    def gathered(tensor: Tensor, sentinel: Tensor | None, index: Tensor) -> Tensor:
        if sentinel is not None:
            tensor, index = torch.cat([tensor, sentinel[None]]), torch.where(index < 0, len(tensor), index)
        if mask is None:
            return rows(tensor.to(dtype), index)
        if len(tensor) == 0:
            tensor = tensor.sum(0, keepdim=True)  # a row of zeros to index, which keeps the graph
        # A pair that is not kept has rows of ones, so that its quotients and their gradients are finite.
        return torch.where(mask, rows(tensor.to(dtype), torch.where(mask[:, 0], index, 0)), 1)

    pair = (
        gathered(sources.first, sources.first_sentinel, work.pairs[:, 0]),
        gathered(sources.second, sources.second_sentinel, work.pairs[:, 1]),
    )
    blocks = []
    for part in map(part_of, work.parts):
        if part.operation == "feature":
            assert sources.features is not None
            assert work.feature_rows is not None
            blocks.append(gathered(sources.features, None, work.feature_rows))
        else:
            blocks.append(COMBINE[part.operation](pair[part.left], pair[part.right]))
    result = torch.stack(blocks).sum(0) if work.summed else torch.cat(blocks, 1)
    return (result if mask is None else torch.where(mask, result, 0)).to(sources.first.dtype)
