"""What a user would write or take instead, in plain PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Callable

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
    offsets = torch.arange(int(widths.max()), device=spans.device)
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


def span_weights(spans: Tensor, scores: Tensor) -> Tensor:
    """The softmax of `scores [T]` inside each span, `[N, W]`, 0 beyond its end."""
    weights, mask = gather(scores[:, None], spans)
    return weights[..., 0].masked_fill(~mask, -torch.inf).softmax(1)


def gather_and_attend(hidden: Tensor, spans: Tensor, scores: Tensor) -> Tensor:
    """Attention pooling of gathered tokens, `[N, H]`."""
    return (span_weights(spans, scores)[..., None] * gather(hidden, spans)[0]).sum(1)


def endpoints_and_attention(hidden: Tensor, spans: Tensor, scores: Tensor, table: Tensor) -> Tensor:
    """Coreference's span vector `[start; end; attention; width]`, `[N, 3 H + E]`."""
    width = table[spans[:, 1] - spans[:, 0]]
    attended = gather_and_attend(hidden, spans, scores)
    return torch.cat((hidden[spans[:, 0]], hidden[spans[:, 1]], attended, width), 1)


def mask_and_max(hidden: Tensor, spans: Tensor, rows: int = 128) -> Tensor:
    """SpERT's way, a mask over all tokens and a maximum, in chunks of spans that fit: `[N, H]`."""
    pooled = []
    position = torch.arange(hidden.shape[0], device=spans.device)
    for chunk in spans.split(rows):
        outside = (position < chunk[:, :1]) | (position > chunk[:, 1:])  # [N, T]
        tokens = hidden[None].repeat(len(chunk), 1, 1) + (outside.to(hidden.dtype) * -1e30)[..., None]
        pooled.append(tokens.max(1).values)
    return torch.cat(pooled)


def dense_mean(hidden: Tensor, spans: Tensor) -> Tensor:
    """A product with a dense matrix of weights `[N, T]`, as coref-hoi pools, here for the mean."""
    position = torch.arange(hidden.shape[0], device=spans.device)
    inside = (position >= spans[:, :1]) & (position <= spans[:, 1:])
    return (inside / inside.sum(1, keepdim=True)).to(hidden.dtype) @ hidden


def dense_attention(hidden: Tensor, spans: Tensor, scores: Tensor) -> Tensor:
    """The head attention of coref-hoi: a masked softmax `[N, T]` and its product with all tokens."""
    position = torch.arange(hidden.shape[0], device=spans.device)
    inside = (position >= spans[:, :1]) & (position <= spans[:, 1:])
    return scores.expand(len(spans), -1).masked_fill(~inside, -torch.inf).softmax(1) @ hidden


class RaggedTokens:
    """The tokens of all spans one after the other, as `embedding_bag` and `segment_reduce` want them."""

    def __init__(self, spans: Tensor) -> None:
        self.widths = spans[:, 1] - spans[:, 0] + 1
        self.offsets = torch.cat([self.widths.new_zeros(1), self.widths.cumsum(0)])
        span_of = torch.repeat_interleave(self.widths)
        self.tokens = torch.arange(len(span_of), device=spans.device) - self.offsets[span_of] + spans[span_of, 0]

    def bag(self, hidden: Tensor, mode: str) -> Tensor:
        """`embedding_bag` over the tokens."""
        return F.embedding_bag(self.tokens, hidden, self.offsets, mode=mode, include_last_offset=True)

    def bag_weighted(self, hidden: Tensor, scores: Tensor) -> Tensor:
        """The weighted `embedding_bag`, its weights a softmax inside each span."""
        inside = scores[self.tokens]
        largest = torch.segment_reduce(inside.detach(), "max", lengths=self.widths)
        weights = (inside - largest.repeat_interleave(self.widths)).exp()
        sums = torch.segment_reduce(weights, "sum", lengths=self.widths)
        weights = weights / sums.repeat_interleave(self.widths)
        return F.embedding_bag(
            self.tokens, hidden, self.offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
        )

    def reduce(self, hidden: Tensor, mode: str) -> Tensor:
        """Gather, then `segment_reduce`."""
        return torch.segment_reduce(hidden[self.tokens], mode, lengths=self.widths)


def attention_per_document(q: Tensor, k: Tensor, v: Tensor, offsets: list[int], dropout_p: float = 0.0) -> Tensor:
    """PyTorch's fused attention, one call a document; `[T, heads, head_dim]`."""
    outputs = []
    for begin, end in itertools.pairwise(offsets):
        parts = (x[begin:end].transpose(0, 1)[None] for x in (q, k, v))
        outputs.append(F.scaled_dot_product_attention(*parts, dropout_p=dropout_p)[0].transpose(0, 1))
    return torch.cat(outputs)


def attention_padded(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, dropout_p: float = 0.0) -> Tensor:
    """PyTorch's fused attention on the padded batch `[B, heads, L, head_dim]` with a mask `[B, L]`."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :], dropout_p=dropout_p)


def attention_masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """PyTorch's fused attention over the packed stream with a dense mask `[T, T]`; `[T, heads, head_dim]`."""
    parts = (x.transpose(0, 1)[None] for x in (q, k, v))
    return F.scaled_dot_product_attention(*parts, attn_mask=mask)[0].transpose(0, 1)


def attention_per_cluster(q: Tensor, k: Tensor, v: Tensor, offsets: list[int], masks: list[Tensor]) -> Tensor:
    """The same, one call and one mask a cluster."""
    parts = zip(itertools.pairwise(offsets), masks, strict=True)
    return torch.cat([attention_masked(q[a:b], k[a:b], v[a:b], mask) for (a, b), mask in parts])


class CompiledFlexAttention:
    """FlexAttention under torch.compile over the packed stream; the block mask is made beforehand."""

    def __init__(self, document: Tensor, visible: Callable[[Tensor, Tensor], Tensor]) -> None:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return visible(query, key)

        torch._dynamo.reset()  # whose limit of compilations is shared by all of one function, and is silent beyond it
        tokens = len(document)
        self.block_mask = create_block_mask(sees, None, None, tokens, tokens, device=document.device)
        self.attend = torch.compile(flex_attention, dynamic=False)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = (x.transpose(0, 1)[None].contiguous() for x in (q, k, v))
        result: Tensor = self.attend(*parts, block_mask=self.block_mask)
        return result[0].transpose(0, 1)
