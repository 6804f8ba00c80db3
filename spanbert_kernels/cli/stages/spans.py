"""Stage 2: representations of all spans up to a width, gathered and reduced, or pooled in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from spanbert_kernels import ops
from spanbert_kernels.cli import formatting
from spanbert_kernels.cli.agreement import Difference
from spanbert_kernels.cli.measuring import Effort, compare
from spanbert_kernels.cli.stages import StageResult, offsets_of
from spanbert_kernels.ops.backends import record
from spanbert_kernels.ops.choices import Part

PARTS: tuple[Part, ...] = ("start", "end", "max")
SPAN_TOKENS = 512  # tokens whose spans are pooled in one call; a longer window is one call
MOST_GATHERED = 2**31  # bytes that the eager way gathers at once at most, and never over a quarter of free memory
CHECKED_SPANS = 256  # spans around the largest difference that are compared with float64
WARM_UP_TOKENS = 32


def group_windows(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Runs (first, last + 1) of consecutive windows of at most `SPAN_TOKENS` tokens in all, one window at least.

    Example:
        >>> group_windows([300, 100, 200, 700, 5])
        [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    runs, first, total = [], 0, 0
    for index, length in enumerate(lengths):
        if index > first and total + length > SPAN_TOKENS:
            runs.append((first, index))
            first, total = index, 0
        total += length
    if lengths:
        runs.append((first, len(lengths)))
    return runs


def pool_padded(hidden: Tensor, pairs: Tensor, max_width: int, most_bytes: int = MOST_GATHERED) -> Tensor:
    """Start, end and max of spans the way most code has it: gather `[N, W, H]`, mask, reduce.

    Where the gathered tensor would be larger than `most_bytes`, in blocks of spans.
    `hidden [T, H]`, `pairs [N, 2]` end inclusive -> `[N, 3 * H]`.
    """
    rows = max(1, most_bytes // (max_width * hidden.shape[1] * hidden.element_size()))
    columns = torch.arange(max_width)
    blocks = []
    for block in pairs.split(rows):
        start, end = block.unbind(1)
        index = start[:, None] + columns
        outside = index > end[:, None]
        gathered = hidden[index.clamp_(max=len(hidden) - 1)]
        gathered.masked_fill_(outside[..., None], -torch.inf)
        blocks.append(torch.cat([hidden[start], hidden[end], gathered.amax(1)], dim=1))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


@dataclass(frozen=True)
class _Item:
    """What one call works on: consecutive windows, packed, and their spans."""

    tokens: Tensor  # [t, H]
    cu_seqlens: Tensor
    pairs: Tensor  # [n, 2]; made beforehand, in the baseline's favour

    @classmethod
    def of(cls, hidden: Tensor, offsets: Tensor, max_width: int) -> _Item:
        cu_seqlens = offsets - offsets[0]
        plan = ops.enumerate_spans(cu_seqlens, max_width)
        return cls(hidden[int(offsets[0]) : int(offsets[-1])], cu_seqlens, plan.pairs())


def compare_span_pooling(hidden: Tensor, lengths: Sequence[int], max_width: int, effort: Effort) -> StageResult:
    """Start, end and max of all spans up to `max_width` tokens inside the windows of `hidden [T, H]`.

    Where time does not allow all of them, both ways run on the same sample of calls.
    """
    offsets = offsets_of(lengths)
    items = [_Item.of(hidden, offsets[first : last + 1], max_width) for first, last in group_windows(lengths)]
    widest = min(max_width, max(lengths))
    largest = max(range(len(items)), key=lambda i: len(items[i].pairs))
    most_bytes = min(MOST_GATHERED, psutil.virtual_memory().available // 4)
    difference = Difference()

    def pool(item: _Item) -> Tensor:
        return ops.span_pool(item.tokens, ops.enumerate_spans(item.cu_seqlens, max_width), PARTS)

    def inspect(index: int, baseline: Tensor, accelerated: Tensor) -> None:
        if difference.see(None, baseline, accelerated):
            row = int((accelerated - baseline).abs_().amax(1).argmax())
            near = slice(max(0, row - CHECKED_SPANS // 2), max(0, row - CHECKED_SPANS // 2) + CHECKED_SPANS)
            difference.worst = (index, near), baseline[near].clone(), accelerated[near].clone()

    with record() as calls:
        timing = compare(
            items,
            lambda item: pool_padded(item.tokens, item.pairs, widest, most_bytes),
            pool,
            inspect,
            effort,
            largest=largest,
            warm_up=_Item.of(hidden, torch.tensor([0, min(WARM_UP_TOKENS, len(hidden))]), max_width),
            sample=True,
        )
    index, near = difference.worst[0]
    pairs = items[index].pairs[near]
    reference = pool_padded(items[index].tokens.double(), pairs, widest)
    spans = sum(len(items[i].pairs) for i in timing.items)
    return StageResult(
        title=f"Spans up to {formatting.count(widest, 'token')}",
        baseline="start, end, max in eager PyTorch: gather [N, W, H], mask, amax",
        accelerated="start, end, max with ops.span_pool over ops.enumerate_spans",
        unit="spans",
        count=spans,
        timing=timing,
        agreement=difference.judge(f"{formatting.count(len(pairs), 'span')} around the largest difference", reference),
        backends=sorted(set(calls)),
        sampled=_sampled(items, timing.items),
        notes=[_gathering([items[i] for i in timing.items], widest, most_bytes)],
    )


def _sampled(items: Sequence[_Item], measured: Sequence[int]) -> str:
    if len(measured) == len(items):
        return ""
    every, some = (sum(len(items[i].pairs) for i in which) for which in (range(len(items)), measured))
    return f"Time allowed {some:,} of the {every:,} spans; both ways ran on the same ones."


def _gathering(items: Sequence[_Item], widest: int, most_bytes: int) -> str:
    """How much the eager way gathers, and whether it did so in blocks."""
    row = widest * items[0].tokens.shape[1] * items[0].tokens.element_size()
    every, largest = (of(len(item.pairs) for item in items) * row for of in (sum, max))
    how = (
        f"and would gather {formatting.memory(largest)} in the largest call, more than is free: it works in blocks of "
        f"at most {formatting.memory(most_bytes)}"
        if largest > most_bytes
        else f"and gathers at most {formatting.memory(largest)} a call"
    )
    return (
        f"Both ways pool about {SPAN_TOKENS} tokens' spans a call: the eager way would need "
        f"{formatting.memory(every)} to gather all at once, {how}."
    )
