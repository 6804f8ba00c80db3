"""AllenNLP's four span extractors in plain PyTorch: what version 2.10.1 computes, step by step, under its names."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

OPERATIONS = {"*": torch.mul, "+": torch.add, "-": torch.sub, "/": torch.div}


def select(target: Tensor, index: Tensor) -> Tensor:
    """`target [B, L, H]` at `index [B, ...]`, by one index_select of the flattened batch."""
    batch, length, size = target.shape
    if int(index.max()) >= length or int(index.min()) < 0:
        raise ValueError(f"All elements in indices should be in range (0, {length - 1})")
    first = torch.arange(batch, device=index.device).view(-1, *[1] * (index.dim() - 1)) * length
    return target.reshape(-1, size).index_select(0, (index + first).view(-1)).view(*index.shape, size)


def select_spans(target: Tensor, spans: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens of every span, `[B, S, W, H]`, and the mask of real ones `[B, S, W]`."""
    start, end = spans.split(1, -1)
    widest = int((end - start).max()) + 1
    offset = torch.arange(widest, device=target.device).view(1, 1, -1)
    index = start + offset
    mask = (offset <= end - start) & (index < target.shape[1]) & (index >= 0)
    return select(target, index * mask), mask


def combine(combination: str, x: Tensor, y: Tensor) -> Tensor:
    """The pieces of a combination beside each other."""
    rows = {"x": x, "y": y, "1": x, "2": y}
    pieces = [
        rows[piece] if len(piece) == 1 else OPERATIONS[piece[1]](rows[piece[0]], rows[piece[2]])
        for piece in combination.split(",")
    ]
    return torch.cat(pieces, -1)


class Extractor(nn.Module):
    """Embeds widths, and gives zeros for spans that do not count."""

    def __init__(self, input_dim: int, rows: int | None = None, columns: int | None = None, bucketed: bool = False):
        super().__init__()
        self.input_dim, self.bucketed = input_dim, bucketed
        self._span_width_embedding = None if rows is None or columns is None else nn.Embedding(rows, columns)

    def embed(self, sequence: Tensor, spans: Tensor, mask: Tensor | None, kept: Tensor | None) -> Tensor:
        raise NotImplementedError

    def forward(
        self, sequence: Tensor, spans: Tensor, mask: Tensor | None = None, kept: Tensor | None = None
    ) -> Tensor:
        vectors = self.embed(sequence, spans, mask, kept)
        if self._span_width_embedding is not None:
            width = spans[..., 1] - spans[..., 0]
            if self.bucketed:
                logarithmic = (width.float().log() / math.log(2)).floor().long() + 3
                width = torch.where(width <= 4, width, logarithmic).clamp(
                    0, self._span_width_embedding.num_embeddings - 1
                )
            vectors = torch.cat([vectors, self._span_width_embedding(width)], -1)
        return vectors if kept is None else vectors * kept[..., None]


class Endpoint(Extractor):
    def __init__(self, input_dim: int, combination: str = "x,y", *widths: int | None, exclusive: bool = False):
        super().__init__(input_dim, *widths)  # type: ignore[arg-type]
        self.combination, self.exclusive = combination, exclusive
        if exclusive:
            self._start_sentinel = nn.Parameter(torch.randn(1, 1, input_dim))

    def embed(self, sequence: Tensor, spans: Tensor, mask: Tensor | None, kept: Tensor | None) -> Tensor:
        start, end = spans.unbind(-1)
        if kept is not None:
            start, end = start * kept, end * kept
        if not self.exclusive:
            return combine(self.combination, select(sequence, start), select(sequence, end))
        first = (start == 0)[..., None]
        x = select(sequence, (start - 1) * ~first[..., 0]) * ~first + first * self._start_sentinel
        return combine(self.combination, x, select(sequence, end))


class BidirectionalEndpoint(Extractor):
    def __init__(
        self, input_dim: int, forward: str = "y-x", backward: str = "x-y", *widths: int | None, sentinels: bool = True
    ):
        super().__init__(input_dim, *widths)  # type: ignore[arg-type]
        self.combinations, self.sentinels = (forward, backward), sentinels
        if sentinels:
            self._start_sentinel = nn.Parameter(torch.randn(1, 1, input_dim // 2))
            self._end_sentinel = nn.Parameter(torch.randn(1, 1, input_dim // 2))

    def embed(self, sequence: Tensor, spans: Tensor, mask: Tensor | None, kept: Tensor | None) -> Tensor:
        ahead, back = (half.contiguous() for half in sequence.split(self.input_dim // 2, -1))
        start, end = spans.unbind(-1)
        if kept is not None:
            start, end = start * kept, end * kept
        lengths = torch.full_like(start[:, 0], sequence.shape[1]) if mask is None else mask.sum(-1)
        first, last = (start == 0)[..., None], (end + 1 >= lengths[:, None])[..., None]
        before = select(ahead, (start - 1) * ~first[..., 0])
        behind = select(back, (end + 1) * ~last[..., 0])
        ends = select(ahead, end), select(back, start)
        if self.sentinels:
            before = before * ~first + first * self._start_sentinel
            behind = behind * ~last + last * self._end_sentinel
        return torch.cat(
            [combine(self.combinations[0], before, ends[0]), combine(self.combinations[1], behind, ends[1])], -1
        )


class SelfAttentive(Extractor):
    def __init__(self, input_dim: int, *widths: int | None):
        super().__init__(input_dim, *widths)  # type: ignore[arg-type]
        self._global_attention = nn.ModuleDict({"_module": nn.Linear(input_dim, 1)})

    def embed(self, sequence: Tensor, spans: Tensor, mask: Tensor | None, kept: Tensor | None) -> Tensor:
        logits = self._global_attention["_module"](sequence)
        selected, real = select_spans(torch.cat([sequence, logits], -1), spans)
        weights = (selected[..., -1] * real).softmax(-1) * real
        weights = weights / (weights.sum(-1, keepdim=True) + torch.finfo(weights.dtype).tiny)
        return (weights[:, :, None] @ selected[..., :-1]).squeeze(2)


class MaxPooling(Extractor):
    def embed(self, sequence: Tensor, spans: Tensor, mask: Tensor | None, kept: Tensor | None) -> Tensor:
        length = sequence.shape[1]
        if int(spans.max()) >= length or int(spans.min()) < 0 or bool((spans[..., 0] > spans[..., 1]).any()):
            raise IndexError("Span index out of range")
        spans = spans.clone()
        if mask is not None:
            spans[..., 1] = torch.minimum(spans[..., 1], mask.sum(-1)[:, None] - 1)
        if bool((spans[..., 0] > spans[..., 1]).any()):
            raise IndexError("Span indices were masked out entirely by sequence mask")
        selected, real = select_spans(sequence, spans)
        real = real[..., None].repeat(1, 1, 1, selected.shape[-1])
        return selected.masked_fill(~real, torch.finfo(selected.dtype).min).max(2).values
