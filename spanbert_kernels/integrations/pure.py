"""PURE (github.com/princeton-nlp/PURE): the scorer of [start; end; width] applied to tokens, then gathered.

PURE gathers the first and the last token of each span, joins them with an embedding of the width, `[B, N, 2 H + E]`,
and runs a feed-forward network on it. The vectors are what the model returns, and are written in one pass; the first
layer is applied to the tokens once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spanbert_kernels import ops
from spanbert_kernels.acceleration.span_layers import OriginalPath, Replacement, probe_refusal
from spanbert_kernels.ops.choices import Part

_PARTS: list[Part] = ["start", "end", "width"]


def packed_spans(spans: Tensor, length: int, table_rows: int) -> tuple[Tensor, Tensor]:
    """Triples `[B, N, 3]` of first token, last token and row of the table -> packed spans `[B N, 2]`, rows `[B N]`.

    Raises:
        OriginalPath: what PURE raises an error for, or takes for something else than a span.

    Example:
        >>> spans, rows = packed_spans(torch.tensor([[[0, 1, 2]], [[2, 2, 1]]]), length=3, table_rows=3)
        >>> spans.tolist(), rows.tolist()
        ([[0, 1], [5, 5]], [2, 1])
    """
    start, end, row = spans.unbind(-1)
    if spans.numel() and (int(start.min()) < 0 or int(end.max()) >= length):
        raise OriginalPath(f"a span outside the {length} tokens of its row")
    if (start > end).any():
        raise OriginalPath("a span that ends before it begins")
    if spans.numel() and not 0 <= int(row.min()) <= int(row.max()) < table_rows:
        raise OriginalPath(f"a width outside the {table_rows} rows of the table")
    first = torch.arange(len(spans), device=spans.device)[:, None] * length
    return torch.stack([start + first, end + first], -1).flatten(0, 1).long(), row.flatten().long()


def vectors_and_scores(
    hidden: Tensor, spans: Tensor, rows: Tensor, table: Tensor, classifier: nn.Sequential
) -> tuple[Tensor, Tensor]:
    """Of tokens `[T, H]` and packed spans `[N, 2]`: `[N, 2 H + E]` and `[N, labels]`."""
    # Rows hold far more context than the sentence whose tokens spans begin and end with.
    used = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device).index_fill_(0, spans.flatten(), True)
    hidden, spans = hidden[used], (used.cumsum(0) - 1)[spans]
    vectors = ops.span_pool(hidden, spans, _PARTS, width_embedding=table, width_rows=lambda widths: rows)
    feed_forward: Any = classifier[0]
    first = feed_forward._linear_layers[0]
    scores = ops.span_linear(
        hidden,
        spans,
        _PARTS,
        first.weight,
        first.bias,
        width_embedding=table,
        activation="relu",
        width_rows=lambda widths: rows,
    )
    scores = feed_forward._dropout[0](scores)
    following = list(zip(feed_forward._linear_layers, feed_forward._activations, feed_forward._dropout, strict=True))
    for linear, activation, dropout in following[1:]:
        scores = dropout(activation(linear(scores)))
    return vectors, classifier[1:](scores)


def make(module: Any) -> Callable[..., Any]:
    """What stands for the forward of a model."""

    def forward(
        input_ids: Tensor,
        spans: Tensor,
        spans_mask: Tensor,
        spans_ner_label: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        table = module.width_embedding.weight
        flat, rows = packed_spans(spans, input_ids.shape[1], len(table))
        encoder = module.bert if hasattr(module, "bert") else module.albert
        states = encoder(input_ids=input_ids, token_type_ids=token_type_ids, attention_mask=attention_mask)[0]
        hidden = module.hidden_dropout(states).flatten(0, 1)
        vectors, scores = vectors_and_scores(hidden, flat, rows, table, module.ner_classifier)
        vectors, scores = (each.view(*spans.shape[:2], each.shape[1]) for each in (vectors, scores))
        if spans_ner_label is None:
            return scores, vectors, vectors
        labels = spans_ner_label.flatten()
        if attention_mask is not None:
            labels = labels.masked_fill(spans_mask.flatten() != 1, -100)
        return F.cross_entropy(scores.flatten(0, 1), labels, reduction="sum"), scores, vectors

    return forward


def _is_relu(activation: Any) -> bool:
    return activation in (F.relu, torch.relu) or isinstance(activation, nn.ReLU)


def refusal(module: Any) -> str | None:
    """Why a model stays as it is: its scorer has other layers, or its code is a copy that somebody changed."""
    feed_forward = module.ner_classifier[0]
    parts = ("_linear_layers", "_activations", "_dropout")
    if not all(hasattr(feed_forward, name) for name in parts):
        return f"its scorer begins with a {type(feed_forward).__name__}, not with AllenNLP's FeedForward"
    if not _is_relu(feed_forward._activations[0]):
        return f"the activation of its scorer is {feed_forward._activations[0]}, not relu"
    device, vocabulary = module.width_embedding.weight.device, module.config.vocab_size
    ids = torch.arange(5, device=device)[None] % vocabulary
    triples = torch.tensor([[[0, 1, 1], [2, 4, 1], [3, 3, 0]]], device=device)
    kept = torch.ones_like(triples[..., 0])
    return probe_refusal(module, lambda: module(ids, triples, kept), lambda: make(module)(ids, triples, kept))


_METHODS = ("_get_span_embeddings",)

REPLACEMENTS = tuple(
    Replacement(
        f"entity.models.{name}", "the scorer's first layer applied to tokens", make, "forward", _METHODS, refusal
    )
    for name in ("BertForEntity", "AlbertForEntity")
)
