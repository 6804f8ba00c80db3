"""A score for each sentence of a document, by how much of a summary it is.

A sentence's vector is made of its first and last word, the mean of its words and what an attention over them picks; a
layer over it, the product with the mean of the document's sentences, its place and its length gives the score. All
sentences of a document share one softmax, however many windows they stand in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput

from spanbert_kernels import ops
from spanbert_kernels.models.modeling import OnEncoder, SpanBERTPreTrainedModel
from spanbert_kernels.models.spans import words_of
from spanbert_kernels.nn.linear import run_linear
from spanbert_kernels.ops.choices import Part

PARTS: tuple[Part, ...] = ("start", "end", "mean", "attention")
SIZE = 128
PLACES = (1, 2, 3, 4, 5, 7, 10, 15, 25, 50)  # sentences before and behind: the first number of each bucket
LENGTHS = (4, 8, 12, 16, 20, 25, 30, 40, 60)  # words, likewise
TEMPERATURE = 0.1  # of the softmax that makes a distribution of gains
OUT = -1e30  # the score of what has no part in a softmax


@dataclass
class ExtractionOutput(ModelOutput):
    """`logits [S]` of all sentences."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class SentenceExtractor(OnEncoder):
    """Scores of sentences, on any encoder."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.attention = nn.Linear(config.hidden_size, 1, bias=False)  # a softmax takes no notice of one
        self.states = nn.Linear(len(PARTS) * config.hidden_size, SIZE)
        self.places = nn.Embedding(len(PLACES) + 1, SIZE)
        self.places_from_end = nn.Embedding(len(PLACES) + 1, SIZE)
        self.lengths = nn.Embedding(len(LENGTHS) + 1, SIZE)
        self.hidden = nn.Linear(2 * SIZE, SIZE)
        self.score = nn.Linear(SIZE, 1, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        word_starts: Tensor | None = None,
        sentences: Tensor | None = None,
        cu_sentences: Tensor | None = None,
        gains: Tensor | None = None,
        **kwargs: Any,
    ) -> ExtractionOutput:
        """Scores of sentences; with gains, the loss, a mean over documents.

        Args:
            input_ids: `[B, L]`, windows of documents.
            attention_mask: `[B, L]`.
            word_starts: `[B, W]`, the column of each word's first piece, -1 where there is no word.
            sentences: `[S, 3]`: row, first and last word.
            cu_sentences: `[D + 1]`, where each document's sentences begin and end among these.
            gains: `[S]`, what each sentence is worth as a summary; below 0 for one that has no part in the loss. It is
                the cross-entropy with the softmax of a document's gains over a temperature.
            kwargs: see `SpanBERTModel.forward`.

        Raises:
            ValueError: `word_starts`, `sentences` or `cu_sentences` are missing.
        """
        if word_starts is None or sentences is None or cu_sentences is None:
            raise ValueError("word_starts [B, W], sentences [S, 3] and cu_sentences [D + 1] are wanted, one is None")
        hidden = self.encode(input_ids, attention_mask, **kwargs).last_hidden_state
        words, offsets = words_of(hidden, word_starts)
        words = self.dropout(words)  # [T, H]
        row, first, last = sentences.unbind(1)
        spans = torch.stack((first, last), 1) + offsets[row][:, None]
        plan = ops.plan_spans(spans, cu_seqlens=offsets)
        pooled = ops.span_pool(words, plan, PARTS, self.attention(words)[:, 0])
        number = torch.arange(len(sentences), device=sentences.device)
        document = torch.searchsorted(cu_sentences, number, right=True) - 1  # [S]
        before, behind = number - cu_sentences[document], cu_sentences[document + 1] - 1 - number
        states = run_linear(self.states, pooled)
        whole = torch.stack((cu_sentences[:-1], cu_sentences[1:] - 1), 1)
        means = ops.span_pool(states, whole, ("mean",))  # [D, SIZE]
        states = (
            states
            + self.places(_bucket(before, PLACES))
            + self.places_from_end(_bucket(behind, PLACES))
            + self.lengths(_bucket(last - first + 1, LENGTHS))
        )
        inner = self.dropout(F.gelu(run_linear(self.hidden, torch.cat((states, states * means[document]), 1))))
        logits = run_linear(self.score, inner)[:, 0].float()
        loss = None
        if gains is not None:
            loss = _loss(logits, gains, document, before, len(cu_sentences) - 1)
        return ExtractionOutput(loss=loss, logits=logits)


def _bucket(numbers: Tensor, firsts: tuple[int, ...]) -> Tensor:
    """The bucket of each number, 0 for those below the first bucket's first."""
    return torch.searchsorted(torch.tensor(firsts, device=numbers.device), numbers, right=True)


def _loss(logits: Tensor, gains: Tensor, document: Tensor, place: Tensor, count: int) -> Tensor:
    """The cross-entropy of each document's softmax with that of its gains, a mean over documents."""
    columns = int(place.max()) + 1 if len(place) else 1
    scored = gains >= 0
    given, wanted = (
        values.new_full((count, columns), OUT).index_put((document, place), values.masked_fill(~scored, OUT))
        for values in (logits, gains.float() / TEMPERATURE)
    )
    shares = wanted.softmax(-1).masked_fill(wanted <= OUT, 0.0)  # of a document without any that counts, too
    return -(shares * given.log_softmax(-1)).sum() / max(count, 1)


class SpanBERTForExtraction(SentenceExtractor, SpanBERTPreTrainedModel):
    """Scores the sentences of documents, to pick those that summarise them.

    Args:
        config: `SpanBERTConfig`.

    Source: Liu and Lapata 2019, Text Summarization with Pretrained Encoders, whose BertSumExt also scores sentences by
    what an encoder makes of the whole text; the head and the loss are not theirs.

    Example:
        >>> from spanbert_kernels import SpanBERTConfig
        >>> config = SpanBERTConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        ...                         intermediate_size=16)
        >>> model = SpanBERTForExtraction(config)
        >>> word_starts = torch.tensor([[1, 2, 3], [1, 2, -1]])  # of words; -1: no word
        >>> sentences = torch.tensor([[0, 0, 1], [0, 2, 2], [1, 0, 1]])  # row, first and last word
        >>> model(torch.randint(30, (2, 5)), word_starts=word_starts, sentences=sentences,
        ...       cu_sentences=torch.tensor([0, 2, 3])).logits.shape
        torch.Size([3])
    """
