"""SpanMarker: the whole forward, a sentence of 100 words whose 772 spans of up to eight words are seven rows.

In batches of four, as its `predict` makes them; every word is a token. The encoder is four layers of BERT-base: twelve
take three times as long in every way.
"""

from __future__ import annotations

import torch
from baselines import all_spans
from originals.span_marker import SpanMarkerModel, batch_of
from registry import FORWARD
from torch import Tensor
from transformers import BertConfig, BertModel

from span_layers import Build, Side, SpanLayerCase
from spanbert_kernels import accelerate

WORDS, WIDTH, TEXT, MARKERS, ROWS = 100, 8, 256, 128, 4


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(5, 900, (WORDS + 2,), generator=generator)
    parts = (all_spans(WORDS, WIDTH) + 1).split(MARKERS)  # behind the first token, which is no word
    return [
        batch_of([text] * len(rows), list(rows), TEXT, MARKERS, (998, 999))
        for rows in (parts[first : first + ROWS] for first in range(0, len(parts), ROWS))
    ]


def forward(*, ours: bool) -> Build:
    def build(dtype: torch.dtype) -> Side:
        torch.manual_seed(0)
        config = BertConfig(vocab_size=1000, num_hidden_layers=4)
        model = SpanMarkerModel(BertModel(config, add_pooling_layer=False), num_labels=9).eval().to(dtype)
        if ours:
            accelerate(model)
        given = batches()

        def way() -> Tensor:
            return torch.cat([model(**batch).logits for batch in given])

        return Side(way, list(model.parameters()))

    return build


CASES = (
    SpanLayerCase(
        f"forward of a sentence of {WORDS} words",
        "span_marker.modeling.SpanMarkerModel",
        forward(ours=False),
        forward(ours=True),
        goal=2,
        directions=(FORWARD,),
    ),
)
