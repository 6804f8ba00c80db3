"""GLiNER: the scores of labels for all spans of a batch, in every mode that is computed in another way."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from originals import gliner as definition
from torch import nn

from span_layers import Build, Side, SpanLayerCase
from spanbert_kernels import accelerate

REPLACES = "gliner.modeling.span_rep.SpanRepLayer"
SIZE, WIDTHS = 512, 12


def layer_of(mode: str) -> nn.Module:
    """The package's layer, or our definition of it where the package is not installed; without dropout."""
    try:
        kind: Any = importlib.import_module("gliner.modeling.span_rep").SpanRepLayer
    except ImportError:
        kind = definition.SpanRepLayer
    torch.manual_seed(0)
    layer: nn.Module = kind(SIZE, WIDTHS, mode, dropout=0.0).eval()
    return layer


def scoring(mode: str, texts: int, words: int, labels: int, fused: bool) -> Build:
    def build(dtype: torch.dtype) -> Side:
        layer = layer_of(mode).to(dtype)
        if fused:
            accelerate(layer)
        generator = torch.Generator().manual_seed(1)
        states, vectors = (
            torch.randn(texts, count, SIZE, generator=generator).to(dtype).requires_grad_() for count in (words, labels)
        )
        spans, _ = definition.spans_of(torch.full((texts,), words), WIDTHS)
        equation = "BND,BCD->BNC" if mode == "token_level" else "BLKD,BCD->BLKC"
        # markerV1 has a projection that it never calls.
        trained = [each for name, each in layer.named_parameters() if "project_first" not in name]
        return Side(
            lambda: definition.label_scores(layer, states, spans, vectors, equation), [states, vectors, *trained]
        )

    return build


def case(mode: str, texts: int, words: int, labels: int, **more: Any) -> SpanLayerCase:
    name = f"{mode}, {texts} text{'s' * (texts > 1)} of {words} words, {labels} labels"
    ours, original = (scoring(mode, texts, words, labels, fused) for fused in (True, False))
    return SpanLayerCase(name, REPLACES, original, ours, **more)


CASES = (
    case("markerV0", 8, 384, 25, goal=3, peak=0.25),
    case("markerV0", 1, 384, 25, goal=3, peaks=True),
    case("markerV0", 1, 12, 5, quick=True),
    *(
        case(mode, 1, 384, 25, goal=None if mode == "conv_conv" else 3, peaks=True)
        for mode in definition.MODES
        if mode not in ("markerV0", "query", "mlp")
    ),
)
