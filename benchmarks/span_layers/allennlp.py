"""AllenNLP's four span extractors, with an embedding of widths: all spans of a segment, as coreference wants them, and
of a batch of sentences, as recognising entities does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from baselines import all_spans
from originals import allennlp
from torch import Tensor, nn

from span_layers import Build, Side, SpanLayerCase
from spanbert_kernels.nn import (
    BidirectionalEndpointSpanExtractor,
    EndpointSpanExtractor,
    MaxPoolingSpanExtractor,
    SelfAttentiveSpanExtractor,
)

SIZE, WIDTHS = 768, (30, 20)
REPLACES = "allennlp.modules.span_extractors"
Make = Callable[[], nn.Module]


def built(make: Make, batch: int, length: int, width: int) -> Build:
    def build(dtype: torch.dtype) -> Side:
        torch.manual_seed(0)
        module = make().to(dtype)
        generator = torch.Generator().manual_seed(1)
        sequence = torch.randn(batch, length, SIZE, generator=generator).to(dtype).requires_grad_()
        spans = all_spans(length, width).expand(batch, -1, -1)

        def way() -> Tensor:
            vectors: Tensor = module(sequence, spans)
            return vectors

        return Side(way, [sequence, *module.parameters()])

    return build


def with_parameters_of(original: Make, ours: Make) -> Make:
    """Both begin with the same numbers: the original's."""

    def make() -> nn.Module:
        theirs = original()
        module = ours()
        module.load_state_dict(theirs.state_dict())
        return module

    return make


def case(
    name: str, original: Make, ours: Make, batch: int, length: int, width: int, goal: float | None = None
) -> SpanLayerCase:
    return SpanLayerCase(
        name,
        f"{REPLACES}.{type(ours()).__name__}",
        built(original, batch, length, width),
        built(with_parameters_of(original, ours), batch, length, width),
        goal=goal,
        peaks=True,
        axes={"spans": batch * len(all_spans(length, width)), "width": width},
    )


# Of each: the original, ours, and how many times faster it must be over a segment's spans.
EXTRACTORS: dict[str, tuple[Make, Make, float]] = {
    "max": (lambda: allennlp.MaxPooling(SIZE, *WIDTHS), lambda: MaxPoolingSpanExtractor(SIZE, *WIDTHS), 50),
    "self-attentive": (
        lambda: allennlp.SelfAttentive(SIZE, *WIDTHS),
        lambda: SelfAttentiveSpanExtractor(SIZE, *WIDTHS),
        20,
    ),
    "endpoint": (
        lambda: allennlp.Endpoint(SIZE, "x,y", *WIDTHS),
        lambda: EndpointSpanExtractor(SIZE, "x,y", *WIDTHS),
        1,
    ),
    "endpoint x, y, x*y": (
        lambda: allennlp.Endpoint(SIZE, "x,y,x*y", *WIDTHS),
        lambda: EndpointSpanExtractor(SIZE, "x,y,x*y", *WIDTHS),
        1,
    ),
    "bidirectional endpoint": (
        lambda: allennlp.BidirectionalEndpoint(SIZE, "y-x", "x-y", *WIDTHS),
        lambda: BidirectionalEndpointSpanExtractor(SIZE, "y-x", "x-y", *WIDTHS),
        1,
    ),
}
# Sequences, their tokens and the widest span: a segment of SpanBERT-base's coreference, and a batch of sentences, whose
# spans are so short that little is wasted on padding.
SEGMENT, SENTENCES = (1, 384, 30), (8, 40, 10)

CASES = (
    *(
        case(f"{name}, 11,085 spans of up to 30 of 384 tokens", original, ours, *SEGMENT, goal=goal)
        for name, (original, ours, goal) in EXTRACTORS.items()
    ),
    *(
        case(f"{name}, 2,840 spans of up to 10 in 8 sentences of 40", original, ours, *SENTENCES)
        for name, (original, ours, _) in EXTRACTORS.items()
    ),
)
