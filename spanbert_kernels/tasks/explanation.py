"""What carried a prediction: the shares of words, and the documents that others looked at.

A word's share is its part in what the prediction gains where words come back in the place of masks. The weights of
documents are those of the model's own forward pass: they say where it looked, not what would have happened had it
looked elsewhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spanbert_kernels.data.labelled import LabelledDocument
from spanbert_kernels.models import SpanBERTForSequenceClassification
from spanbert_kernels.tasks import classification
from spanbert_kernels.tasks.attribution import Explanation, Shares, document_weights
from spanbert_kernels.tasks.vocabulary import Tokenizer

__all__ = ["ClusterExplanation", "Explanation", "document_weights", "explain_classification"]


@dataclass(frozen=True)
class ClusterExplanation:
    """A cluster's D documents, what was predicted of each, and how much each looked at each and at its own words.

    Attributes:
        texts: the documents.
        labels: the label predicted of each.
        probabilities: that of each label, 0 to 1.
        weights: by layer, float32 `[heads, D, D]`: row i is what document i saw; each row sums to 1 over the documents
            that it sees, or is 0 where it sees none. Empty where the model's documents do not see each other.
        words: each document's, with what follows each in the text.
        word_shares: float32 `[W]` each, as `Explanation.shares`.
        files: the file that each document comes from.
        lines: the line there.
        name: of the cluster, as its documents name it; "" of a document that stands alone.

    Example:
        >>> heads = np.array([[[0.0, 1.0], [1.0, 0.0]]] * 2, dtype=np.float32)
        >>> found = ClusterExplanation(("it rains", "it snows"), ("a", "b"), (0.9, 0.6), {1: heads}, (), ())
        >>> found.mean().tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    weights: dict[int, Shares]
    words: tuple[tuple[str, ...], ...]
    word_shares: tuple[Shares, ...]
    files: tuple[str, ...] = ()
    lines: tuple[int, ...] = ()
    name: str = ""

    def mean(self) -> NDArray[np.float32] | None:
        """Over layers and heads, `[D, D]`; None where documents do not see each other."""
        if not self.weights:
            return None
        found: Shares = np.mean([each.mean(0) for each in self.weights.values()], axis=0)
        return found


def explain_classification(
    model: SpanBERTForSequenceClassification,
    tokenizer: Tokenizer,
    documents: Sequence[LabelledDocument],
    limit: int | None = None,
    words: bool = True,
) -> list[ClusterExplanation]:
    """The predictions for each cluster, which documents each document looked at, and how much each word counted.

    Args:
        model: a trained classifier, its cross-document queries anchors.
        tokenizer: the model's.
        documents: their clusters are those they name; their labels are not looked at.
        limit: clusters at most.
        words: whether shares of words are computed; else they are 0.

    Returns:
        One explanation a cluster, in the order of their first documents.

    Raises:
        ValueError: the model's queries are tokens, whose weights are not a document's.

    Source: Sundararajan et al. 2017, Axiomatic Attribution for Deep Networks, for the words.

    Example:
        >>> from pathlib import Path
        >>> from spanbert_kernels.models import SpanBERTConfig, SpanBERTTokenizer
        >>> pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "it", "rains"]
        >>> tokenizer = SpanBERTTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})
        >>> config = SpanBERTConfig(vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        ...                         intermediate_size=16, cross_document_layers=[0], cross_document_anchor="first")
        >>> model = SpanBERTForSequenceClassification(config)
        >>> documents = [LabelledDocument("it rains", "", "one cluster", Path("news.jsonl"), line) for line in (1, 2)]
        >>> (found,) = explain_classification(model, tokenizer, documents)
        >>> found.words, found.weights[0].shape, found.mean().tolist()
        ((('it ', 'rains'), ('it ', 'rains')), (2, 2, 2), [[0.0, 1.0], [1.0, 0.0]])
    """
    layers = sorted(model.config.cross_document_layers)
    clusters = classification.clusters_of(documents)[:limit]
    in_order = [documents[i] for cluster in clusters for i in cluster]
    explained = classification.TASK.explained(model, tokenizer, in_order, words=words)
    found = []
    for cluster in clusters:
        own, _, passes = zip(*itertools.islice(explained, len(cluster)), strict=True)
        weights = {i: each.permute(1, 0, 2).numpy() for i, each in zip(layers, passes[0].weights, strict=True)}
        found.append(
            ClusterExplanation(
                texts=tuple(each.document for each in own),
                labels=tuple(each.label for each in own),
                probabilities=tuple(each.probability for each in own),
                weights=weights,
                words=tuple(each.words for each in own),
                word_shares=tuple(each.shares for each in own),
                files=tuple(each.file for each in own),
                lines=tuple(documents[i].line for i in cluster),
                name=documents[cluster[0]].cluster or "",
            )
        )
    return found
