"""What a prediction looked at: weights that the model itself used, taken from its own forward pass.

They say where the model looked, not what would have happened had it looked elsewhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from spanbert_kernels.models import SpanBERTForSequenceClassification, SpanBERTForSpanClassification
from spanbert_kernels.nn import CrossDocumentMixer
from spanbert_kernels.tasks import classification, nested
from spanbert_kernels.tasks.brackets import MarkedDocument
from spanbert_kernels.tasks.labelled import LabelledDocument

__all__ = ["ClusterExplanation", "SpanExplanation", "document_weights", "explain_classification", "explain_nested"]


@dataclass(frozen=True)
class ClusterExplanation:
    """A cluster's documents, what was predicted of each, and how much each looked at each.

    `weights[layer] [heads, D, D]`: row i is what document i saw; each row sums to 1 over the documents that it sees, or
    is 0 where it sees none. Empty where the model's documents do not see each other.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    weights: dict[int, NDArray[np.float32]]

    def mean(self) -> NDArray[np.float32] | None:
        """Over layers and heads, `[D, D]`; None where documents do not see each other."""
        if not self.weights:
            return None
        found: NDArray[np.float32] = np.mean([each.mean(0) for each in self.weights.values()], axis=0)
        return found


@dataclass(frozen=True)
class SpanExplanation:
    """A mention, its type, and the share of each of its words in the span's vector; the shares sum to 1."""

    document: str
    words: tuple[str, ...]
    first: int
    label: str
    weights: NDArray[np.float32]


@contextlib.contextmanager
def document_weights(model: nn.Module) -> Iterator[list[Tensor]]:
    """While it lasts, every cross-document layer adds its weights `[query rows, heads, documents]` to the list.

    The layers compute what they always do.

    Example:
        >>> mixer = CrossDocumentMixer(hidden_size=8, num_heads=2)
        >>> with document_weights(mixer) as found:
        ...     _ = mixer(torch.randn(5, 8), torch.tensor([0, 3, 5]), torch.tensor([0, 2]))
        >>> found[0][:, 0].tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """
    found: list[Tensor] = []
    mixers = [module for module in model.modules() if isinstance(module, CrossDocumentMixer)]
    before = [mixer.watcher for mixer in mixers]
    for mixer in mixers:
        mixer.watcher = found.append
    try:
        yield found
    finally:
        for mixer, watcher in zip(mixers, before, strict=True):
            mixer.watcher = watcher


@torch.no_grad()
def explain_classification(
    model: SpanBERTForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    documents: Sequence[LabelledDocument],
) -> list[ClusterExplanation]:
    """The predictions for each cluster, and which documents each document looked at.

    Raises:
        ValueError: the model's queries are tokens, whose weights are not a document's.
    """
    config = model.config
    if config.cross_document_layers and config.cross_document_queries != "anchors":
        raise ValueError(f"documents are explained by their anchors, the queries are {config.cross_document_queries}")
    labels = [config.id2label[i] for i in range(config.num_labels)]
    layers = sorted(config.cross_document_layers)
    found = []
    model.eval()
    for cluster in classification.clusters_of(documents):
        own = [LabelledDocument(d.text, labels[0], d.cluster, d.path, d.line) for d in (documents[i] for i in cluster)]
        examples = classification.encode(own, tokenizer, labels, config.max_position_embeddings)
        batch = classification.collate([examples])
        if not layers:
            del batch["cluster_ids"]
        with document_weights(model) as weights:
            best = model(**batch).logits.float().softmax(-1).max(-1)
        by_layer = {layer: each.permute(1, 0, 2).numpy() for layer, each in zip(layers, weights, strict=True)}
        texts = tuple(document.text for document in own)
        predicted = tuple(labels[i] for i in best.indices.tolist())
        found.append(ClusterExplanation(texts, predicted, tuple(best.values.tolist()), by_layer))
    return found


@torch.no_grad()
def explain_nested(
    model: SpanBERTForSpanClassification, tokenizer: PreTrainedTokenizerBase, documents: Sequence[MarkedDocument]
) -> list[SpanExplanation]:
    """The mentions that are found, and which of their words their vectors are made of."""
    found = []
    mentions = nested.find(model, tokenizer, documents)
    for document, spans in zip(documents, mentions, strict=True):
        scores = _word_scores(model, tokenizer, document)
        for first, last, label in sorted(spans):
            weights = scores[first : last + 1].softmax(0).numpy()
            words = document.words[first : last + 1]
            found.append(SpanExplanation(document.name, words, first, label, weights))
    return found


def _word_scores(model: Any, tokenizer: PreTrainedTokenizerBase, document: MarkedDocument) -> Tensor:
    """Of the attention inside spans, as the model computes them window by window: `[W]`."""
    plain = MarkedDocument(document.name, document.words, (), document.path, document.lines)
    labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
    length = min(nested.WINDOW, model.config.max_position_embeddings)
    kept: list[Tensor] = []
    hook = model.attention.register_forward_hook(lambda module, inputs, output: kept.append(output[:, 0].float()))
    try:
        for window in nested.windows_of([plain], tokenizer, labels, length):
            batch = nested.collate([window.example])
            model.eval()(batch["input_ids"], batch["attention_mask"], columns=batch["columns"])
    finally:
        hook.remove()
    return torch.cat(kept) if kept else torch.empty(0)
