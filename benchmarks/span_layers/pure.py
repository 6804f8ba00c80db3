"""PURE's entity scorer from hidden states on: spans of up to eight words, batches of 32 sentences with context."""

from __future__ import annotations

import torch
from originals.pure import BertForEntity
from torch import Tensor
from transformers import BertConfig

from span_layers import Build, Side, SpanLayerCase
from spanbert_kernels.integrations import pure

BATCH, WORDS, WIDTH, SIZE = 32, 25, 8, 768


def spans_in(length: int) -> Tensor:
    """All spans of the sentence in the middle of each row, a word a token: `[B, N, 3]`."""
    first = (length - WORDS) // 2
    spans = [
        (start, start + width - 1, width)
        for start in range(first, first + WORDS)
        for width in range(1, WIDTH + 1)
        if start + width <= first + WORDS
    ]
    return torch.tensor(spans).expand(BATCH, -1, -1)


def scorer(length: int, *, ours: bool) -> Build:
    """What the model returns and learns from: the scores, and beside them the vectors, which have no gradient."""

    def build(dtype: torch.dtype) -> Side:
        torch.manual_seed(0)
        config = BertConfig(vocab_size=30, hidden_size=SIZE, num_hidden_layers=0)
        model = BertForEntity(config, num_ner_labels=8, max_span_length=WIDTH).eval().to(dtype)
        states = torch.randn(BATCH, length, SIZE).to(dtype).requires_grad_()
        spans = spans_in(length)

        def way() -> Tensor:
            if not ours:
                vectors = model._span_vectors(states, spans)
                return model.ner_classifier(vectors)
            table = model.width_embedding.weight
            flat, rows = pure.packed_spans(spans, length, len(table))
            scores = pure.vectors_and_scores(states.flatten(0, 1), flat, rows, table, model.ner_classifier)[1]
            return scores.view(BATCH, -1, scores.shape[1])

        return Side(way, [states, *model.ner_classifier.parameters(), *model.width_embedding.parameters()])

    return build


CASES = tuple(
    SpanLayerCase(
        f"scores of {BATCH} sentences in rows of {length} tokens",
        "entity.models.BertForEntity",
        scorer(length, ours=False),
        scorer(length, ours=True),
        peaks=True,
    )
    for length in (100, 300)
)
