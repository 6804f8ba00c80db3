"""GLiNER2: the scores of queries for all spans of a batch."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from originals import gliner2 as definition

from span_layers import Build, Side, SpanLayerCase
from spanbert_kernels import accelerate

REPLACES = "gliner2.layers.SpanMarkerV0"
SIZE, WIDTHS, QUERIES = 768, 8, 25


def scoring(texts: int, words: int, fused: bool) -> Build:
    """With spans that leave the text scored, as in training."""

    def build(dtype: torch.dtype) -> Side:
        try:
            kind: Any = importlib.import_module("gliner2.layers").SpanMarkerV0
        except ImportError:
            kind = definition.QueryMarker
        torch.manual_seed(0)
        layer = kind(SIZE, WIDTHS, dropout=0.0).eval().to(dtype)
        if fused:
            accelerate(layer)
        generator = torch.Generator().manual_seed(1)
        states, queries = (
            torch.randn(texts, count, SIZE, generator=generator).to(dtype).requires_grad_()
            for count in (words, QUERIES)
        )
        return Side(
            lambda: layer.score_queries(states, queries, mask_invalid=False), [states, queries, *layer.parameters()]
        )

    return build


def case(texts: int, words: int, **more: Any) -> SpanLayerCase:
    name = f"{texts} text{'s' * (texts > 1)} of {words} words, {QUERIES} queries"
    return SpanLayerCase(name, REPLACES, scoring(texts, words, False), scoring(texts, words, True), **more)


CASES = (
    case(8, 384, goal=1.5, peaks=True),
    case(1, 384, goal=1.5, peaks=True),
    case(1, 12, quick=True),
)
