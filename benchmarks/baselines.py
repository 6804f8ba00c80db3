"""What a user would write or take instead, in plain PyTorch."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor


def all_spans(length: int, max_width: int) -> Tensor:
    """`[N, 2]`, end inclusive: the spans of up to `max_width` tokens of one document."""
    starts = torch.arange(length).repeat_interleave(max_width)
    ends = starts + torch.arange(max_width).repeat(length)
    return torch.stack((starts, ends), 1)[ends < length]


def gather(hidden: Tensor, spans: Tensor) -> tuple[Tensor, Tensor]:
    """The usual way: `[N, W, H]` with a mask `[N, W]`."""
    widths = spans[:, 1] - spans[:, 0] + 1
    offsets = torch.arange(int(widths.max()))
    mask = offsets < widths[:, None]
    return hidden[(spans[:, :1] + offsets).clamp(max=hidden.shape[0] - 1)], mask


def gather_and_max(hidden: Tensor, spans: Tensor) -> Tensor:
    """Max pooling of gathered tokens, `[N, H]`."""
    tokens, mask = gather(hidden, spans)
    return tokens.masked_fill(~mask[..., None], -torch.inf).amax(1)


def gather_and_mean(hidden: Tensor, spans: Tensor) -> Tensor:
    """Mean pooling of gathered tokens, `[N, H]`."""
    tokens, mask = gather(hidden, spans)
    return (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def endpoints_and_attention(hidden: Tensor, spans: Tensor, scores: Tensor) -> Tensor:
    """Coreference's span vector without the width: `[start; end; attention]`, `[N, 3 H]`."""
    tokens, mask = gather(hidden, spans)
    weights, _ = gather(scores[:, None], spans)
    weights = weights[..., 0].masked_fill(~mask, -torch.inf).softmax(1)
    return torch.cat((hidden[spans[:, 0]], hidden[spans[:, 1]], (weights[..., None] * tokens).sum(1)), 1)


def attention_per_document(q: Tensor, k: Tensor, v: Tensor, offsets: list[int]) -> Tensor:
    """PyTorch's fused attention, one call a document; `[T, heads, head_dim]`."""
    outputs = []
    for begin, end in itertools.pairwise(offsets):
        parts = (x[begin:end].transpose(0, 1)[None] for x in (q, k, v))
        outputs.append(F.scaled_dot_product_attention(*parts)[0].transpose(0, 1))
    return torch.cat(outputs)


def attention_padded(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """PyTorch's fused attention on the padded batch `[B, heads, L, head_dim]` with a mask `[B, L]`."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
