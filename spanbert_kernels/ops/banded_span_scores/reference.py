"""The three derivatives of `sum of scores[t, w] (start[t] . end[t + w])` over a band, as batched products.

A block of `size` tokens meets the `size + W - 1` ends from its first token on: one product gives all their scores, and
the band is taken out of it, or written into zeros of its shape. Blocks are no smaller than W, so at most half of the
work is wasted, and memory is O(T W).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST_BLOCK = 32


def contract(scores: Tensor | None, start: Tensor | None, end: Tensor | None, ahead: Tensor, behind: Tensor) -> Tensor:
    """The derivative by the first one that is None of `scores [T, W]`, `start [T, H]`, `end [T, H]`.

    `ahead [T, W]` says which ends `t + w` each start meets (0 to some w), `behind [T, W]` which starts `t - w` each end
    meets. Elsewhere scores are 0, given or returned.
    """
    width = ahead.shape[1]
    size = max(SMALLEST_BLOCK, width)
    window = size + width - 1
    if scores is None:
        assert start is not None
        assert end is not None
        return torch.where(ahead, band(start, end, width, size), 0)
    column = columns(size, width, ahead.device)
    rows = blocks(scores, size, size)  # [blocks, size, W]
    weights = rows.new_zeros(len(rows), size, window).scatter(2, column.expand(len(rows), -1, -1), rows)
    if start is None:
        assert end is not None
        numbers, rest = finite(end, 0, ahead.sum(1))
        return torch.bmm(weights, blocks(numbers, size, window)).flatten(0, 1)[: len(ahead)] + rest
    # A window's first `size` rows belong to the block itself, the rest to the next one.
    numbers, rest = finite(start, 1 - behind.sum(1), 1)
    parts = torch.bmm(weights.transpose(1, 2), blocks(numbers, size, size))
    own, next_ones = parts[:, :size], parts[:, size:]
    shifted = F.pad(next_ones, (0, 0, 0, size - width + 1, 1, 0))[:-1]
    return (own + shifted).flatten(0, 1)[: len(ahead)] + rest


def band(start: Tensor, end: Tensor, width: int, size: int) -> Tensor:
    """`start[t] . end[t + w]` for every row of start, `[rows of start, W]`, in blocks of `size` rows; `end` may have
    more rows than start, or fewer, after which it counts as zeros.
    """
    count = (len(start) + size - 1) // size
    products = torch.bmm(blocks(start, size, size), blocks(end, size, size + width - 1, count).transpose(1, 2))
    inside = columns(size, width, start.device).expand(len(products), -1, -1)
    return products.gather(2, inside).flatten(0, 1)[: len(start)]


def columns(size: int, width: int, device: torch.device) -> Tensor:
    """Where the band lies in a product of a block's rows and their window, `[size, W]`."""
    return torch.arange(size, device=device)[:, None] + torch.arange(width, device=device)


def blocks(rows: Tensor, step: int, length: int, count: int | None = None) -> Tensor:
    """`[T, H]` -> `[blocks, length, H]`, a block beginning every `step` rows; zeros after the last row."""
    count = (len(rows) + step - 1) // step if count is None else count
    missing = (count - 1) * step + length - len(rows)
    # Padding by nothing would copy the rows.
    padded = F.pad(rows, (0, 0, 0, missing)) if missing else rows
    return padded.unfold(0, length, step).transpose(1, 2)


def finite(rows: Tensor, begin: Tensor | int, end: Tensor | int) -> tuple[Tensor, Tensor | int]:
    """The rows with zeros for Inf and NaN, which beside the band would meet a zero, and 0 x Inf is NaN; and what to
    add for them, NaN where one of the rows `t + begin : t + end` held one.
    """
    good = rows.isfinite()
    # Almost always, and on a CPU cheap to know.
    if rows.device.type == "cpu" and not torch.compiler.is_compiling() and bool(good.all()):
        return rows, 0
    bad = F.pad((~good).cumsum(0), (0, 0, 1, 0))
    token = torch.arange(len(rows), device=rows.device)
    return torch.where(good, rows, 0), torch.where(bad[token + end] > bad[token + begin], torch.nan, 0).to(rows.dtype)
