"""GLiNER's span layer: labels are scored without the vectors of spans, of which every text has words x widths.

Words are projected once, the layer behind the span's activation is folded into the label vectors, and spans that the
mask took out, which GLiNER scores as the span (0, 0), keep that score.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spanbert_kernels import ops
from spanbert_kernels.acceleration.span_layers import OriginalPath, Replacement, probe_refusal
from spanbert_kernels.integrations import folding
from spanbert_kernels.integrations.folding import Layers
from spanbert_kernels.integrations.unformed import Unformed, unformed
from spanbert_kernels.ops.choices import Part


@dataclass(frozen=True)
class _Sums:
    """`last([start; end])`: a span's score is one of its first word's and one of its last word's, added."""

    start: Tensor
    end: Tensor
    spans: Tensor
    shape: tuple[int, ...]
    last: nn.Linear

    def vectors(self) -> Tensor:
        tokens: dict[Part, Tensor] = {"start": self.start.flatten(0, 1), "end": self.end.flatten(0, 1)}
        return ops.span_linear(tokens, self.spans, ["start", "end"], self.last.weight, self.last.bias).view(self.shape)

    def scores(self, queries: Tensor) -> Tensor:
        weight, bias = folding.fold(queries, self.last)
        size = self.start.shape[-1]
        with torch.autocast(queries.device.type, enabled=False):
            start = (self.start.to(weight.dtype) @ weight[..., :size].mT).flatten(0, 1)
            end = (self.end.to(weight.dtype) @ weight[..., size:].mT).flatten(0, 1)
            added = F.embedding(self.spans[:, 0], start) + F.embedding(self.spans[:, 1], end)
        added = added.view(len(queries), -1, queries.shape[1])
        added = added if bias is None else added + bias[:, None]
        return added.to(self.start.dtype).view(*self.shape[:-1], queries.shape[1])


@dataclass(frozen=True)
class _Folded:
    """`last(inner)` of an inner vector per span, `[B, L, K, O]`, that is formed."""

    inner: Tensor
    last: nn.Linear

    def vectors(self) -> Tensor:
        return self.last(self.inner)

    def scores(self, queries: Tensor) -> Tensor:
        weight, bias = folding.fold(queries, self.last)
        scores = self.inner.flatten(1, 2) @ weight.to(self.inner.dtype).mT
        scores = scores if bias is None else scores + bias.to(scores.dtype)[:, None]
        return scores.view(*self.inner.shape[:-1], queries.shape[1])


def _endpoints(layer: Any, words: Tensor, spans: Tensor, mask: Tensor) -> Unformed:
    """`markerV0`, `markerV1`, `markerV2`, `token_level`: two layers over the projected first and last word, and what
    they call context.
    """
    context = _CONTEXTS.get(type(layer).__name__)
    layers = folding.endpoints(layer, words, spans, None if context is None else context(layer, words, mask))
    return unformed(layers, layers.shape, layers.dtype, words.device)


def _mean_of_words(layer: Any, words: Tensor, mask: Tensor) -> Tensor:
    return words.mean(dim=1)  # over padding as well, as the original has it


def _last_word(layer: Any, words: Tensor, mask: Tensor) -> Tensor:
    last = mask.long().sum(dim=1).sub(1).clamp_min(0)
    projected: Tensor = layer.project_context(words[torch.arange(len(words), device=words.device), last])
    return projected * mask.any(dim=1, keepdim=True)


_CONTEXTS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "SpanMarkerV1": _mean_of_words,
    "SpanMarkerV2": _last_word,
}


def _one_layer(layer: Any, words: Tensor, spans: Tensor, mask: Tensor) -> Unformed:
    """`marker`: one layer over the projected first and last word."""
    folding.check_read(layer.out_project)
    packed, shape = folding.packed(spans, words, layer.max_width, layer.out_project)
    start, end = folding.projected(layer.project_start, words), folding.projected(layer.project_end, words)
    return unformed(_Sums(start, end, packed, shape, layer.out_project), shape, start.dtype, start.device)


def _word_and_width(layer: Any, words: Tensor, spans: Tensor, mask: Tensor) -> Unformed:
    """`cat`: one layer over the first word and a learned vector for the width, and an activation."""
    linear, _ = folding.layers_of(layer.project)
    (batch, length), widths = words.shape[:2], layer.max_width
    shape = (batch, length, widths, linear.out_features)
    layers = Layers(
        folding.lengthened(words, widths),
        folding.cells(batch, length, widths, words.device),
        folding.offsets(batch, length + widths - 1, words.device),
        shape,
        _product_dtype(words, linear),
        ("start", "width"),
        linear.weight,
        linear.bias,
        # The original reads its [columns, widths] as if they were [widths, columns].
        widths=layer.query_seg.reshape(widths, -1),
    )
    return unformed(layers, shape, layers.dtype, words.device)


# What the windows of a mode hold; a convolution of its own per width has no such part.
_POOLS: dict[str, Part] = {"conv_max": "max", "conv_mean": "mean", "conv_sum": "sum"}


def _windows(layer: Any, words: Tensor, spans: Tensor, mask: Tensor) -> Unformed:
    """`conv_max`, `conv_mean`, `conv_sum`, `conv_conv`: pooled windows, which see zeros behind the last word."""
    (batch, length), widths = words.shape[:2], len(layer.convs) + 1
    mode = layer.convs[0].span_mode if widths > 1 else "conv_sum"
    if mode in _POOLS:
        spans = folding.cells(batch, length, widths, words.device)
        pooled = ops.span_pool(folding.lengthened(words, widths), spans, [_POOLS[mode]])
        pooled = pooled.view(batch, length, widths, -1)
    else:
        pooled = torch.stack([words, *(convolution(words) for convolution in layer.convs)], dim=2)
    return _projected(pooled, layer)


def _shared_windows(layer: Any, words: Tensor, spans: Tensor, mask: Tensor) -> Unformed:
    """`conv_share`: a window's sum is that of the window one narrower, and one product more."""
    length, size, widths = words.shape[1], words.shape[2], layer.max_width
    weight = layer.conv_weigth.permute(2, 0, 1).reshape(widths * size, size)
    products = F.linear(F.pad(words, (0, 0, 0, widths - 1)), weight).unflatten(-1, (widths, size))
    shifted = (products[:, i : i + length, i] for i in range(widths))
    return _projected(torch.stack(list(itertools.accumulate(shifted, torch.add)), dim=2), layer)


def _projected(pooled: Tensor, layer: Any) -> Unformed:
    _, last = folding.layers_of(layer.project)
    shape = (*pooled.shape[:-1], last.out_features)
    return unformed(_Folded(pooled.relu(), last), shape, _product_dtype(pooled, last), pooled.device)


def _product_dtype(x: Tensor, layer: nn.Linear) -> torch.dtype:
    """The dtype of a product with a layer's weight, which autocast decides."""
    return F.linear(x.new_zeros(0, layer.in_features), layer.weight).dtype


_MODES: dict[str, Callable[[Any, Tensor, Tensor, Tensor], Unformed]] = {
    "SpanMarker": _one_layer,
    "SpanMarkerV0": _endpoints,
    "SpanMarkerV1": _endpoints,
    "SpanMarkerV2": _endpoints,
    "TokenMarker": _endpoints,
    "SpanCAT": _word_and_width,
    "SpanConv": _windows,
    "ConvShare": _shared_windows,
}
_LEFT = {
    "SpanQuery": "every word is multiplied once a width, and an activation stands last: nothing is done twice",
    "SpanMLP": "every word is multiplied once a width, and an activation stands last: nothing is done twice",
}


def _refusal(module: Any) -> str | None:
    layer = module.span_rep_layer
    name = type(layer).__name__
    if name not in _MODES:
        return f"its {name}: {_LEFT.get(name, 'a way of forming spans that is not known')}"
    weight = next(layer.parameters())
    size = [each for each in layer.modules() if isinstance(each, nn.Linear)][-1].out_features
    words = torch.linspace(-9, 9, 2 * size, device=weight.device).sin().view(1, 2, size).to(weight.dtype)
    mask = torch.ones(1, 2, dtype=torch.bool, device=weight.device)
    widths = torch.arange(getattr(layer, "max_width", 2), device=weight.device)
    spans = torch.cat([torch.stack([widths * 0, widths.clamp(max=1)], 1), torch.stack([widths * 0 + 1] * 2, 1)])[None]

    labels = 100 * words

    def own() -> tuple[Tensor]:
        vectors = layer(words, spans, mask) if name == "SpanMarkerV2" else layer(words, spans)
        return (vectors @ (labels if vectors.dim() == 3 else labels[:, None]).mT,)

    def ours() -> tuple[Tensor]:
        return (_MODES[name](layer, words, spans, mask).source.scores(labels),)

    return probe_refusal(module, own, ours)


def _make(module: Any) -> Callable[..., Any]:
    def forward(
        x: Tensor,
        span_idx: Tensor,
        word_mask: Tensor | None = None,
        return_words: bool = False,
        compact_words: bool = False,
    ) -> Any:
        layer, context = module.span_rep_layer, module.context_encoder
        folding.check_called(layer)
        if x.dim() != 3 or x.numel() == 0:
            raise OriginalPath(f"words are not a batch of texts, but {list(x.shape)}")
        if word_mask is None:
            word_mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        as_they_are = compact_words and type(context).__name__ == "IdentityContextEncoder"
        words = x if as_they_are else context(x, word_mask)
        vectors = _MODES[type(layer).__name__](layer, words, span_idx, word_mask.bool())
        return (vectors, words) if return_words else vectors

    return forward


REPLACEMENTS = (
    Replacement(
        "gliner.modeling.span_rep.SpanRepLayer",
        "labels are scored without the vectors of spans",
        make=_make,
        refusal=_refusal,
    ),
)
