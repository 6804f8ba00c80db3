"""What a prediction looked at: weights that the model itself used, taken from its own forward pass.

They say where the model looked, not what would have happened had it looked elsewhere.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spanbert_kernels.acceleration import AccelerationWarning
from spanbert_kernels.data.conll_coref import MarkedDocument
from spanbert_kernels.data.labelled import LabelledDocument
from spanbert_kernels.models import (
    SpanBERTForCoreference,
    SpanBERTForSequenceClassification,
    SpanBERTForSpanClassification,
)
from spanbert_kernels.nn import CrossDocumentMixer
from spanbert_kernels.nn.packing import Packing
from spanbert_kernels.tasks import classification, coreference, cross_document_coreference, nested
from spanbert_kernels.tasks.cross_document_coreference import Cluster
from spanbert_kernels.tasks.mentions import unmarked
from spanbert_kernels.tasks.progress import counted
from spanbert_kernels.tasks.vocabulary import Tokenizer
from spanbert_kernels.tasks.windows import window_length

__all__ = [
    "ClusterExplanation",
    "SpanExplanation",
    "document_weights",
    "explain_classification",
    "explain_coreference",
    "explain_nested",
]

Shares = NDArray[np.float32]


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
        word_shares: float32 `[W]` each, the words' shares in what the token that the prediction is made of read in the
            last layer, a mean over heads, special tokens left out.
        files: the file that each document comes from.

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

    def mean(self) -> NDArray[np.float32] | None:
        """Over layers and heads, `[D, D]`; None where documents do not see each other."""
        if not self.weights:
            return None
        found: Shares = np.mean([each.mean(0) for each in self.weights.values()], axis=0)
        return found


@dataclass(frozen=True)
class SpanExplanation:
    """A mention, its type or entity, and the share of each of its words in the span's vector.

    Attributes:
        document: the document's name.
        words: those of the mention, W of them.
        first: the place of its first word in the document.
        label: its type, or which entity it is of.
        weights: float32 `[W]`, the share of each word; they sum to 1.
        seen: the share of each document of the cluster in what the mention's tokens looked at in the cross-document
            layers, a mean over tokens, layers and heads; empty where documents do not see each other.

    Example:
        >>> found = SpanExplanation("news/1", ("the", "mayor"), 4, "entity 1", np.array([0.25, 0.75], dtype=np.float32))
        >>> found.words[found.weights.argmax()], found.seen
        ('mayor', {})
    """

    document: str
    words: tuple[str, ...]
    first: int
    label: str
    weights: Shares
    seen: dict[str, float] = field(default_factory=dict)


@contextlib.contextmanager
def document_weights(model: nn.Module) -> Iterator[list[Tensor]]:
    """While it lasts, every cross-document layer adds its weights `[query rows, heads, documents]` to the list.

    The layers compute what they always do.

    Args:
        model: a model, or any module that holds cross-document layers; without any the list stays empty.

    Returns:
        A list that fills: of each call of each layer, float32 `[query rows, heads, documents of the largest cluster]`,
        as `cross_document_attention` returns them.

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
    model: SpanBERTForSequenceClassification, tokenizer: Tokenizer, documents: Sequence[LabelledDocument]
) -> list[ClusterExplanation]:
    """The predictions for each cluster, and which documents, and which of its own words, each document looked at.

    Args:
        model: a trained classifier, its cross-document queries anchors.
        tokenizer: the model's.
        documents: their clusters are those they name; their labels are not looked at.

    Returns:
        One explanation a cluster, in the order of their first documents.

    Raises:
        ValueError: the model's queries are tokens, whose weights are not a document's.

    Source: attention weights say where a model looked, not why it decided so (Jain and Wallace 2019).

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
    config = model.config
    if config.cross_document_layers and config.cross_document_queries != "anchors":
        raise ValueError(f"documents are explained by their anchors, the queries are {config.cross_document_queries}")
    labels = [config.id2label[i] for i in range(config.num_labels)]
    layers = sorted(config.cross_document_layers)
    found = []
    model.eval()
    for cluster in counted(classification.clusters_of(documents), "explaining"):
        own = [LabelledDocument(d.text, labels[0], d.cluster, d.path, d.line) for d in (documents[i] for i in cluster)]
        examples = classification.encode(own, tokenizer, labels, config.positions)
        batch = classification.collate([examples])
        if not layers:
            del batch["cluster_ids"]
        with document_weights(model) as weights:
            best = model(**batch).logits.float().softmax(-1).max(-1)
        attention = _last_attention(model, batch)
        by_layer = {layer: each.permute(1, 0, 2).numpy() for layer, each in zip(layers, weights, strict=True)}
        texts = tuple(document.text for document in own)
        predicted = tuple(labels[i] for i in best.indices.tolist())
        words, shares = zip(
            *(
                _words_read(text, tokenizer, attention[row, : len(example["input_ids"])].numpy())
                for row, (text, example) in enumerate(zip(texts, examples, strict=True))
            ),
            strict=True,
        )
        files = tuple(str(document.path) for document in own)
        chances = tuple(best.values.tolist())
        found.append(ClusterExplanation(texts, predicted, chances, by_layer, words, shares, files))
    return found


def _last_attention(model: SpanBERTForSequenceClassification, batch: dict[str, Tensor]) -> Tensor:
    """What the pooled token of each document read in the last layer, a mean over heads: `[B, L]`."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")  # the only one that has the matrices
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AccelerationWarning)  # that the original path runs
            matrices = model(**batch, output_attentions=True).attentions[-1]
    finally:
        model.set_attn_implementation(implementation)
    rows, length = batch["input_ids"].shape
    packing = Packing.from_mask(batch["attention_mask"], rows, length, matrices.device)
    pooled = model.bert.pooled_positions(packing) % length
    read: Tensor = matrices.float().mean(1)[torch.arange(len(pooled)), pooled]
    return read


def _words_read(text: str, tokenizer: Tokenizer, read: Shares) -> tuple[tuple[str, ...], Shares]:
    """The words of a text, with what follows each, and their shares; what the model did not see is the last, with 0."""
    encoding = tokenizer(text, truncation=True, max_length=len(read), return_offsets_mapping=True)
    shares: dict[int, float] = {}
    starts: dict[int, int] = {}
    end = 0
    for word, (start, stop), share in zip(encoding.word_ids(), encoding["offset_mapping"], read, strict=True):
        if word is None:
            continue
        starts.setdefault(word, start)
        shares[word] = shares.get(word, 0.0) + float(share)
        end = stop
    bounds = [0, *list(starts.values())[1:], end] if starts else []
    words = [text[first:last] for first, last in itertools.pairwise(bounds)]
    values = list(shares.values())
    if text[end:]:
        words.append(text[end:])
        values.append(0.0)
    found = np.array(values, dtype=np.float32)
    return tuple(words), found / max(float(found.sum()), 1e-30)


@torch.no_grad()
def explain_coreference(
    model: SpanBERTForCoreference, tokenizer: Tokenizer, clusters: Sequence[Cluster]
) -> list[SpanExplanation]:
    """The mentions that are linked, which of their words their vectors are made of, and which documents they looked at.

    A mention's label is the number of its entity. For coreference in a document, a cluster is that document.

    Args:
        model: a trained coreference model, its cross-document queries tokens.
        tokenizer: the model's.
        clusters: tuples of documents that are read together; their own mentions are not looked at.

    Returns:
        One explanation a mention, cluster by cluster and entity by entity.

    Raises:
        ValueError: the model's queries are anchors, whose weights are not a mention's.

    Source: the shares are those of the attention inside spans of Lee et al. 2017, who show them as heat maps.

    Example:
        >>> from pathlib import Path
        >>> from spanbert_kernels.models import SpanBERTConfig, SpanBERTTokenizer
        >>> pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "she", "knows"]
        >>> tokenizer = SpanBERTTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})
        >>> config = SpanBERTConfig(vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        ...                         intermediate_size=16)
        >>> words = ("she", "knows", "she", "knows")
        >>> document = MarkedDocument("news/1", words, (), Path("news.conll"), (1, 2, 3, 4))
        >>> found = explain_coreference(SpanBERTForCoreference(config), tokenizer, [(document,)])
        >>> all(each.document == "news/1" and abs(each.weights.sum() - 1) < 1e-5 for each in found)
        True
    """
    config = model.config
    if config.cross_document_layers and config.cross_document_queries != "tokens":
        raise ValueError(f"mentions are explained by their tokens, the queries are {config.cross_document_queries}")
    length = window_length(model)
    found: list[SpanExplanation] = []
    model.eval()
    for cluster in counted(clusters, "explaining"):
        examples = [coreference.encode(unmarked(each), tokenizer, length) for each in cluster]
        batch = cross_document_coreference.collate([cross_document_coreference.merged(examples)])
        if not config.cross_document_layers:
            del batch["cluster_ids"]
        with document_weights(model) as weights, _span_attention(model) as scores:
            output = model(**batch)
        document_of = np.repeat(np.arange(len(cluster)), [len(each["windows"]) for each in examples])
        seen = _seen_by_words(weights, batch, document_of)
        text = cross_document_coreference.joined(cluster)
        starts = np.cumsum([0, *(len(each.words) for each in cluster)])
        linked = [sorted(own) for own in coreference.linked(output) if len(own) > 1]
        for number, mentions in enumerate(sorted(linked), start=1):
            for first, last in mentions:
                place = int(np.searchsorted(starts, first, side="right")) - 1
                mean = [] if seen is None else seen[first : last + 1].mean(0).tolist()
                found.append(
                    SpanExplanation(
                        cluster[place].name,
                        text.words[first : last + 1],
                        first - int(starts[place]),
                        f"entity {number}",
                        scores[0][first : last + 1].softmax(0).numpy(),
                        {document.name: share for document, share in zip(cluster, mean, strict=bool(mean))},
                    )
                )
    return found


def _seen_by_words(
    weights: Sequence[Tensor], batch: dict[str, Tensor], document_of: NDArray[np.int64]
) -> Shares | None:
    """How much each word's tokens looked at each document, `[W, D]`; None where documents do not see each other."""
    if not weights:
        return None
    by_window = torch.stack([each.mean(1) for each in weights]).mean(0)  # [T, windows]
    by_document = by_window.new_zeros(len(by_window), int(document_of[-1]) + 1)
    by_document.index_add_(1, torch.from_numpy(document_of), by_window[:, : len(document_of)])
    starts = torch.zeros_like(batch["input_ids"])
    row, _ = (batch["word_starts"] >= 0).nonzero().unbind(1)
    starts[row, batch["word_starts"][batch["word_starts"] >= 0]] = 1
    # a token's word is the last that began in its row; special tokens belong to none
    real = batch["attention_mask"] > 0
    word = (starts[real].cumsum(0) - 1).numpy()
    ids = batch["input_ids"]
    inner = real.clone()
    inner[:, 0] = False
    inner[torch.arange(len(ids)), real.sum(1) - 1] = False
    kept = inner[real].numpy()
    total = np.zeros((int(starts.sum()), by_document.shape[1]), dtype=np.float32)
    np.add.at(total, word[kept], by_document.numpy()[kept])
    total /= np.bincount(word[kept], minlength=len(total))[:, None]
    return total


@contextlib.contextmanager
def _span_attention(model: Any) -> Iterator[list[Tensor]]:
    """While it lasts, every forward adds the scores of the attention inside spans to the list, `[W]` each."""
    kept: list[Tensor] = []
    hook = model.attention.register_forward_hook(lambda module, inputs, output: kept.append(output[:, 0].float()))
    try:
        yield kept
    finally:
        hook.remove()


@torch.no_grad()
def explain_nested(
    model: SpanBERTForSpanClassification, tokenizer: Tokenizer, documents: Sequence[MarkedDocument]
) -> list[SpanExplanation]:
    """The mentions that are found, and which of their words their vectors are made of.

    Args:
        model: a trained span classifier.
        tokenizer: the model's.
        documents: their own mentions are not looked at.

    Returns:
        One explanation a mention, document by document, by first and last word.

    Source: as of `explain_coreference`.

    Example:
        >>> from pathlib import Path
        >>> from spanbert_kernels.models import SpanBERTConfig, SpanBERTTokenizer
        >>> pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "she", "knows"]
        >>> tokenizer = SpanBERTTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})
        >>> config = SpanBERTConfig(vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        ...                         intermediate_size=16, id2label={0: "O", 1: "PERSON"})
        >>> document = MarkedDocument("news/1", ("she", "knows"), (), Path("news.conll"), (1, 2))
        >>> found = explain_nested(SpanBERTForSpanClassification(config), tokenizer, [document])
        >>> all(each.label == "PERSON" and abs(each.weights.sum() - 1) < 1e-5 for each in found)
        True
    """
    found = []
    mentions = nested.find(model, tokenizer, documents)
    for document, spans in zip(documents, mentions, strict=True):
        scores = _word_scores(model, tokenizer, document)
        for first, last, label in sorted(spans):
            weights = scores[first : last + 1].softmax(0).numpy()
            words = document.words[first : last + 1]
            found.append(SpanExplanation(document.name, words, first, label, weights))
    return found


def _word_scores(model: Any, tokenizer: Tokenizer, document: MarkedDocument) -> Tensor:
    """Of the attention inside spans, as the model computes them window by window: `[W]`."""
    labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
    with _span_attention(model.eval()) as kept:
        for window in nested.windows_of([unmarked(document)], tokenizer, labels, window_length(model)):
            batch = nested.collate([window])
            model(batch["input_ids"], batch["attention_mask"], word_starts=batch["word_starts"])
    return torch.cat(kept) if kept else torch.empty(0)
