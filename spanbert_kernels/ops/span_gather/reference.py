"""What span_gather means, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def span_gather(hidden: Tensor, start: Tensor, end: Tensor, padded: bool) -> tuple[Tensor, Tensor]:
    """`hidden [T, H]`, `start`, `end` (half-open) int64 `[N]` -> tokens and offsets, or padded and mask."""
    if padded:
        return gather_padded(hidden, start, end)
    inside = (end > start) & (start >= 0) & (end <= hidden.shape[0])
    widths = torch.where(inside, end - start, 0)
    offsets = torch.cat([widths.new_zeros(1), widths.cumsum(0)])  # [N + 1]
    span_of = torch.repeat_interleave(widths)  # [sum of widths]
    token = torch.arange(len(span_of), device=hidden.device) - offsets[span_of] + start[span_of]
    return rows(hidden, token), offsets


def rows(hidden: Tensor, token: Tensor) -> Tensor:
    """`hidden[token]`, whose gradient is summed in float32 (float64 for float64) and in a fixed order.

    An embedding's backward accumulates in one order on every device; that of indexing does not on a CPU with several
    threads, nor that of index_select on a GPU. An embedding of nothing has no second derivative.
    """
    if not (hidden.requires_grad and torch.is_grad_enabled()):
        return hidden[token]
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    if torch.compiler.is_compiling() or not hidden.numel() or not token.numel():
        return wide[token].to(hidden.dtype)
    return F.embedding(token, wide).to(hidden.dtype)


def gather_padded(hidden: Tensor, start: Tensor, end: Tensor, min_width: int = 0) -> tuple[Tensor, Tensor]:
    """The tokens of each span in a row `[N, W, H]`, zeros beyond its end, and the mask `[N, W]` of real ones.

    W is the largest width, at least `min_width`. A span that leaves the tokens counts as empty.
    """
    inside = (end > start) & (start >= 0) & (end <= hidden.shape[0])
    widths = torch.where(inside, end - start, 0)
    max_width = int(widths.max().clamp(min=min_width)) if len(widths) else min_width
    position = torch.arange(max_width, device=hidden.device)
    mask = position < widths[:, None]  # [N, W]
    token = torch.where(mask, start[:, None] + position, 0)
    if hidden.shape[0] == 0:
        hidden = hidden.sum(0, keepdim=True)  # a row of zeros to index, which keeps the graph
    return torch.where(mask[..., None], rows(hidden, token), 0), mask  # [N, W, H]
