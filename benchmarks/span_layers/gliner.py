"""GLiNER: the scores of labels for all spans of a batch, in every mode that is computed in another way."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import torch
from originals import gliner as definition
from torch import Tensor, nn

from span_layers import Build, Side, SpanLayerCase
from spanbert_kernels import accelerate

REPLACES = "gliner.modeling.span_rep.SpanRepLayer"
SIZE, WIDTHS = 512, 12
KINK = 1e-5  # far more than float32 is off by


def layer_of(mode: str) -> nn.Module:
    """The package's layer, or our definition of it where the package is not installed; without dropout."""
    try:
        kind: Any = importlib.import_module("gliner.modeling.span_rep").SpanRepLayer
    except ImportError:
        kind = definition.SpanRepLayer
    torch.manual_seed(0)
    layer: nn.Module = kind(SIZE, WIDTHS, mode, dropout=0.0).eval()
    return layer


def drawn(texts: int, count: int, dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(texts, count, SIZE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def scoring(mode: str, texts: int, words: int, labels: int, fused: bool) -> Build:
    def build(dtype: torch.dtype) -> Side:
        layer = layer_of(mode).to(dtype)
        if fused:
            accelerate(layer)
        states, vectors = (
            drawn(texts, count, dtype, seed).requires_grad_() for seed, count in enumerate((words, labels))
        )
        spans, _ = definition.spans_of(torch.full((texts,), words), WIDTHS)
        equation = "BND,BCD->BNC" if mode == "token_level" else "BLKD,BCD->BLKC"
        # markerV1 has a projection that it never calls.
        trained = [each for name, each in layer.named_parameters() if "project_first" not in name]
        return Side(
            lambda: definition.label_scores(layer, states, spans, vectors, equation), [states, vectors, *trained]
        )

    return build


def steady_spans(layer: Any, words: Tensor, spans: Tensor) -> Tensor:
    """1 for spans `[B, N, 2]` none of whose units is near relu's kink: rounding decides nothing about them.

    Of a layer that projects starts and ends, in two layers each; layer and words in float64.
    """
    inner = [layer.project_start[0], layer.project_start[-1], layer.project_end[0], layer.project_end[-1]]
    inner += [] if isinstance(layer.out_project, nn.Linear) else [layer.out_project[0]]
    near: dict[nn.Module, Tensor] = {}
    hooks = [
        each.register_forward_hook(lambda module, given, found: near.__setitem__(module, found.abs().amin(-1)))
        for each in inner
    ]
    with torch.no_grad():
        layer(words, spans)
    for hook in hooks:
        hook.remove()
    starts, ends = (torch.minimum(near[one], near[other]) for one, other in (inner[:2], inner[2:4]))
    found = [starts.gather(1, spans[..., 0]), ends.gather(1, spans[..., 1]), *(near[each] for each in inner[4:])]
    return (torch.stack(found).amin(0) > KINK).float()


def steady_windows(layer: Any, words: Tensor) -> Tensor:
    """The same of windows `[B, L, K]`, whose sums relu takes."""
    near: list[Tensor] = []
    hook = layer.project.register_forward_pre_hook(lambda module, given: near.append(given[0].abs().amin(-1)))
    with torch.no_grad():
        layer(words)
    hook.remove()
    return (near[0] > KINK).float()


def steady_scores(mode: str, texts: int, words: int) -> Tensor:
    """The factor for scores `[B, L, K, C]`."""
    spans, _ = definition.spans_of(torch.full((texts,), words), WIDTHS)
    layer: Any = layer_of(mode).double()
    states = drawn(texts, words, torch.float64, 0)
    if mode == "conv_share":
        return steady_windows(layer.span_rep_layer, states)[..., None]
    found = steady_spans(layer.span_rep_layer, states, spans)[..., None]
    return found if mode == "token_level" else found.view(texts, words, WIDTHS, 1)


def case(mode: str, texts: int, words: int, labels: int, **more: Any) -> SpanLayerCase:
    name = f"{mode}, {texts} text{'s' * (texts > 1)} of {words} words, {labels} labels"
    ours, original = (scoring(mode, texts, words, labels, fused) for fused in (True, False))
    kinks = mode in ("marker", "markerV0", "markerV1", "token_level", "conv_share")
    steady = partial(steady_scores, mode, texts, words) if kinks else None
    return SpanLayerCase(name, REPLACES, original, ours, steady=steady, **more)


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
