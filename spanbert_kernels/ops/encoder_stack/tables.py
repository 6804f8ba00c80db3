"""Weights and tables in the order in which the kernels read them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from spanbert_kernels.ops.attention.relative import RelativeTerms
from spanbert_kernels.ops.encoder_stack.steps import Attend, Rotary

# csrc/encoder_stack/kernels.h: what a kernel reads from any place on in whole vectors goes on for so many numbers.
REPEATED = 16


def paired(head_dim: int, rotary: Rotary | None) -> Tensor | None:
    """The order of a head's columns in which those that turn together are neighbours; None: they are.

    Products of queries and keys are the same in any order that both have.
    """
    if rotary is None or rotary.interleaved:
        return None
    return torch.arange(head_dim).view(2, -1).t().flatten()


def projection(weight: Tensor, attend: Attend) -> Tensor:
    """The rows of a Project's weight or bias, those of queries and keys in the order of `paired`."""
    order = paired(attend.head_dim, attend.rotary)
    if order is None:
        return weight
    turned = (attend.heads + attend.key_heads) * attend.head_dim
    heads = weight[:turned].unflatten(0, (-1, attend.head_dim))[:, order.to(weight.device)]
    return torch.cat([heads.flatten(0, 1), weight[turned:]])


def rotary_table(rotary: Rotary) -> Tensor:
    """float32 `[positions, 2, stride]`: cosines, and sines with the sign with which the neighbour's number is taken.

    A row goes on from its beginning, so that a vector that reaches into the next head finds its numbers.
    """
    head_dim = rotary.cos.shape[1]
    cos, sin = rotary.cos.detach().float(), rotary.sin.detach().float()
    order = paired(head_dim, rotary)
    if order is not None:
        cos, sin = cos[:, order], sin[:, order]
    signs = torch.tensor([-1.0, 1.0]).repeat(head_dim // 2)
    columns = torch.arange(row_of_rotary(head_dim)) % head_dim
    return torch.stack([cos, sin * signs], 1)[:, :, columns]


def row_of_rotary(head_dim: int) -> int:
    """Numbers from a row of the table to the next: the head's, those that are repeated, and whole vectors."""
    return -(-(head_dim + REPEATED) // REPEATED) * REPEATED


def gated(up: Tensor, gate: Tensor, width: int) -> Tensor:
    """Rows of both in turns, a panel's `width` of each, with zeros up to whole panels."""
    panels = [pad(each, (0, 0) * (each.dim() - 1) + (0, -len(each) % width)).unflatten(0, (-1, width))
              for each in (up, gate)]  # fmt: skip
    return torch.stack(panels, 1).flatten(0, 2)


def by_distance(relative: RelativeTerms) -> Tensor:
    """The rows of the tables for each distance, from the first that is like all that are further away to the last such,
    and these so often that a vector that begins with them reads nothing else: `[2 * (reach + REPEATED) + 1]`.
    """
    index, reach = relative.index.long(), relative.reach
    changes = (index[1:] != index[:-1]).nonzero().flatten().tolist()
    needed = max(reach - changes[0], changes[-1] + 1 - reach, 0) if changes else 0
    kept = index[reach - needed : reach + needed + 1]
    return torch.cat([kept[:1].expand(REPEATED), kept, kept[-1:].expand(REPEATED)])


def reach_of(rows: Tensor) -> int:
    """Of what `by_distance` returns, the distance from which on all are alike."""
    return len(rows) // 2 - REPEATED


def bias_table(bias: Tensor, rows: Tensor, scale: float) -> Tensor:
    """float32 `[heads, len(rows)]`, to be added before the scale."""
    return bias.detach().t()[:, rows].float() / scale


def head_table(table: Tensor, head: int, rows: Tensor, order: Tensor | None) -> Tensor:
    """`[len(rows), head_dim]` of one head, in the order of its columns."""
    by_row = table.detach()[rows, head]
    return by_row if order is None else by_row[:, order]
