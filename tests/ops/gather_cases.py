"""The loop that span_gather is compared with."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_by_loop(
    hidden: Tensor, spans: Tensor, *, padded: bool = False, end_inclusive: bool = True
) -> tuple[Tensor, Tensor]:
    rows = hidden.unbind(0)
    nothing = hidden.new_zeros(0, hidden.shape[1]) + 0 * hidden.sum()
    pieces = []
    for start, last in spans.tolist():
        end = last + 1 if end_inclusive else last
        pieces.append(torch.stack(rows[start:end]) if end > start else nothing)
    widths = torch.tensor([len(piece) for piece in pieces], dtype=torch.int64)
    if not padded:
        return torch.cat([nothing, *pieces]), torch.cat([torch.zeros(1, dtype=torch.int64), widths.cumsum(0)])
    width = max((len(piece) for piece in pieces), default=0)
    full = [torch.cat([piece, hidden.new_zeros(width - len(piece), hidden.shape[1])])[None] for piece in pieces]
    return torch.cat([hidden.new_zeros(0, width, hidden.shape[1]) + 0 * hidden.sum(), *full]), torch.arange(
        width
    ) < widths[:, None]
