"""GLiNER2's span layer: queries are scored without the hidden layer of every span.

The package's `score_queries` folds its last layer into the queries already, and forms the layer before it for every
word and width. Its boundary models keep their prefix sums, two rows of which give a span's mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spanbert_kernels.acceleration.span_layers import OriginalPath, Replacement, probe_refusal
from spanbert_kernels.integrations import folding
from spanbert_kernels.integrations.folding import Layers
from spanbert_kernels.ops.choices import Part


def _layers(
    module: Any, words: Tensor, spans: Tensor, cu_seqlens: Tensor, widths: int, shape: tuple[int, ...]
) -> Layers:
    """The layers over packed `spans`; each text of `words [B, L, H]` gets `widths - 1` more, zeros as projected."""
    first, _, dropout, last = folding.layers_of(module.out_project)
    start, end = folding.projected(module.project_start, words), folding.projected(module.project_end, words)
    tokens: dict[Part, Tensor] = {"start": folding.lengthened(start, widths), "end": folding.lengthened(end, widths)}
    return Layers(
        tokens, spans, cu_seqlens, shape, start.dtype, ("start", "end"), first.weight, first.bias, dropout=dropout,
        last=last,
    )  # fmt: skip


def _scores_of_all(module: Any, words: Tensor, queries: Tensor) -> Tensor:
    """`[B, L, max_width, Q]`. Behind the last word the original takes zeros for the projected ends."""
    (batch, length, size), widths = words.shape, module.max_width
    spans = folding.cells(batch, length, widths, words.device)
    cu_seqlens = folding.offsets(batch, length + widths - 1, words.device)
    shape = (batch, length, widths, size)
    return _layers(module, words, spans, cu_seqlens, widths, shape).scores(queries)


def _scores_of(module: Any, words: Tensor, queries: Tensor, valid: Tensor) -> Tensor:
    """The same for spans `valid [B, L, max_width]`, all of which lie inside their texts, and -inf for others."""
    place = valid.flatten().nonzero().squeeze(1)
    start = place.div(module.max_width, rounding_mode="floor")
    spans = torch.stack([start, start + place % module.max_width], dim=1)
    used, spans, cu_seqlens = folding.words_of(words, spans)
    layers = _layers(module, used, spans, cu_seqlens, 1, (len(place), words.shape[-1]))
    found = layers.scores(queries)
    scores = found.new_full((valid.numel(), queries.shape[1]), float("-inf")).index_copy(0, place, found)
    return scores.view(*valid.shape, -1)


def _make_score_queries(module: Any) -> Callable[..., Tensor]:
    def score_queries(
        h: Tensor, queries: Tensor, text_lengths: Tensor | None = None, *, mask_invalid: bool = True
    ) -> Tensor:
        if h.dim() != 3 or queries.dim() != 3 or 0 in (*h.shape, *queries.shape):
            raise OriginalPath(f"words {list(h.shape)} and queries {list(queries.shape)} are not those of a batch")
        mixed = queries.dtype != h.dtype and not torch.is_autocast_enabled(h.device.type)
        if queries.shape[::2] != h.shape[::2] or mixed or queries.device != h.device:
            raise OriginalPath(f"words {list(h.shape)} and queries {list(queries.shape)} do not belong together")
        length = h.shape[1]
        ends = torch.arange(length, device=h.device)[:, None] + torch.arange(module.max_width, device=h.device)
        valid = (ends < length).expand(len(h), -1, -1)
        if text_lengths is not None:
            valid = valid & (ends < text_lengths[:, None, None])
        if mask_invalid and folding.is_few(valid):
            scores = _scores_of(module, h, queries, valid)
        else:
            scores = _scores_of_all(module, h, queries)
            scores = scores.masked_fill(~valid[..., None], float("-inf")) if mask_invalid else scores
        return scores.permute(0, 3, 1, 2).contiguous()

    return score_queries


def _make_forward(module: Any) -> Callable[..., Tensor]:
    def forward(h: Tensor, span_idx: Tensor) -> Tensor:
        if h.dim() != 3 or h.numel() == 0:
            raise OriginalPath(f"words are not a batch of texts, but {list(h.shape)}")
        return folding.endpoints(module, h, span_idx).vectors()

    return forward


def _small_input(module: Any) -> tuple[Tensor, Tensor]:
    """Two words, and the spans (0, 0), (0, 1) and so on as GLiNER2 lays them out."""
    weight = module.out_project[-1].weight
    words = torch.linspace(-9, 9, 2 * len(weight), device=weight.device).sin().view(1, 2, -1).to(weight.dtype)
    ends = (torch.arange(2)[:, None] + torch.arange(module.max_width)).flatten()
    starts = torch.arange(2).repeat_interleave(module.max_width)
    spans = torch.stack([starts, ends], 1)[None] * (ends < 2)[None, :, None]
    return words, spans.to(weight.device)


def _refusal_of_scores(module: Any) -> str | None:
    def of(score: Callable[..., Tensor]) -> Callable[[], tuple[Tensor]]:
        return lambda: (score(words, 100 * words, mask_invalid=False),)

    words, _ = _small_input(module)
    original = type(module).score_queries.__get__(module)
    return probe_refusal(module, of(original), of(_make_score_queries(module)))


def _refusal_of_vectors(module: Any) -> str | None:
    def of(forward: Callable[..., Tensor]) -> Callable[[], tuple[Tensor]]:
        return lambda: (100 * forward(*_small_input(module)),)

    return probe_refusal(module, of(type(module).forward.__get__(module)), of(_make_forward(module)))


_CLASS = "gliner2.layers.SpanMarkerV0"
REPLACEMENTS = (
    Replacement(
        _CLASS,
        "queries are scored without the hidden layer of every span",
        _make_score_queries,
        method="score_queries",
        refusal=_refusal_of_scores,
    ),
    Replacement(_CLASS, "words are projected once for all their spans", _make_forward, refusal=_refusal_of_vectors),
)
