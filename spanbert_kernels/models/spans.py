"""A label for every span of words up to a width, without a vector for any of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput

from spanbert_kernels import ops
from spanbert_kernels.models.modeling import OnEncoder, SpanBERTPreTrainedModel
from spanbert_kernels.models.renamed import renamed_argument
from spanbert_kernels.nn.linear import is_watched
from spanbert_kernels.ops.choices import Part

PARTS: tuple[Part, ...] = ("start", "end", "attention", "width")
WIDTH_SIZE = 32


def words_of(hidden: Tensor, word_starts: Tensor) -> tuple[Tensor, Tensor]:
    """The first pieces of all words, packed, `[T, H]`, and where each row's begin and end there, `[B + 1]`.

    Example:
        >>> words, offsets = words_of(torch.arange(6.0).view(2, 3, 1), torch.tensor([[0, 2], [1, -1]]))
        >>> words[:, 0].tolist(), offsets.tolist()
        ([0.0, 2.0, 4.0], [0, 2, 3])
    """
    real = word_starts >= 0
    row, _ = real.nonzero().unbind(1)
    return hidden[row, word_starts[real]], F.pad(real.sum(1).cumsum(0), (1, 0))


class SpanModel(OnEncoder):
    """What models over vectors of spans of words share: their parts, the words, all spans and what is known of them."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.attention = nn.Linear(config.hidden_size, 1)
        self.widths = nn.Embedding(config.max_span_width, WIDTH_SIZE)

    def words(
        self, input_ids: Tensor, attention_mask: Tensor | None, word_starts: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """What `words_of` gives, with dropout.

        Raises:
            ValueError: `word_starts` are missing.
        """
        if word_starts is None:
            raise ValueError("word_starts [B, W] are wanted, got None")
        words, offsets = words_of(self.encode(input_ids, attention_mask, **kwargs).last_hidden_state, word_starts)
        return self.dropout(words), offsets

    def all_spans(self, offsets: Tensor) -> tuple[ops.SpanPlan, Tensor]:
        """Of up to `max_span_width` words: a plan, and `[N, 2]`, the last word included."""
        plan = ops.enumerate_spans(offsets, self.config.max_span_width)
        return plan, torch.stack(plan.bounds(), 1) - torch.tensor([0, 1], device=offsets.device)

    def of_spans(self, mentions: Tensor, known: Tensor, offsets: Tensor, spans: Tensor, nothing: int) -> Tensor:
        """What is known of mentions as that of every span, or `nothing`; wider mentions are passed over.

        Spans come in the order of first and last word.
        """
        kept = mentions[:, 2] - mentions[:, 1] < self.config.max_span_width
        row, first, last = mentions[kept].unbind(1)
        base = offsets[-1] + 1
        keys = spans[:, 0] * base + spans[:, 1]
        found = torch.full_like(keys, nothing)
        found[torch.searchsorted(keys, (offsets[row] + first) * base + offsets[row] + last)] = known[kept]
        return found


@dataclass
class SpanClassificationOutput(ModelOutput):
    """`logits [N, labels]` of the spans `[N, 2]`, packed positions of words, the last one included."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    spans: Tensor | None = None


class SpanClassifier(SpanModel):
    """A label for every span, on any encoder."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.hidden = nn.Linear(3 * size + WIDTH_SIZE, size)
        self.classifier = nn.Linear(size, config.num_labels)
        self.post_init()

    @renamed_argument("columns", "word_starts")
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        word_starts: Tensor | None = None,
        mentions: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> SpanClassificationOutput:
        """Labels of all spans; with mentions, the loss, a mean over the words.

        Args:
            input_ids: `[B, L]`.
            attention_mask: `[B, L]`.
            word_starts: `[B, W]`, the column of each word's first piece, -1 where there is no word.
            mentions: `[M, 3]`: row, first and last word. All other spans have label 0; mentions that are wider than
                `max_span_width` are passed over.
            labels: `[M]`.
            kwargs: see `SpanBERTModel.forward`.

        Raises:
            ValueError: `word_starts` are missing, or `mentions` come without `labels`.
        """
        if (mentions is None) != (labels is None):
            raise ValueError("mentions and labels come together")
        words, offsets = self.words(input_ids, attention_mask, word_starts, **kwargs)  # [T, H]
        plan, spans = self.all_spans(offsets)
        logits, loss = self._logits(words, plan), None
        if mentions is not None and labels is not None:
            wanted = self.of_spans(mentions, labels, offsets, spans, nothing=0)
            loss = F.cross_entropy(logits.float(), wanted, reduction="sum") / max(len(words), 1)
        return SpanClassificationOutput(loss=loss, logits=logits, spans=spans)

    def _logits(self, words: Tensor, plan: ops.SpanPlan) -> Tensor:
        """`[N, labels]`; what stands in the place of the last layer, such as an adapter, is called as a module."""
        given = (words, plan, PARTS, self.hidden.weight, self.hidden.bias)
        pooled = (self.attention(words)[:, 0], self.widths.weight)
        last = self.classifier
        if type(last) is not nn.Linear or is_watched(last):
            logits: Tensor = last(self.dropout(ops.span_linear(*given, *pooled, activation="relu")))
            return logits
        dropout_p = self.dropout.p if self.dropout.training else 0.0
        return ops.span_score(*given, last.weight, last.bias, *pooled, activation="relu", dropout_p=dropout_p)


class SpanBERTForSpanClassification(SpanClassifier, SpanBERTPreTrainedModel):
    """Scores all spans of up to `config.max_span_width` words by their ends, an attention over their words and width.

    Both layers over span vectors are `ops.span_score`: words are projected once, spans add projected rows, and what is
    between the layers is never formed for all spans.

    Args:
        config: `SpanBERTConfig`, whose `num_labels` and `max_span_width` are read here.

    Source: Lee et al. 2017, End-to-end Neural Coreference Resolution, whose span vectors these are.

    Example:
        >>> from spanbert_kernels import SpanBERTConfig
        >>> config = SpanBERTConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        ...                         intermediate_size=16, num_labels=3, max_span_width=2)
        >>> model = SpanBERTForSpanClassification(config)
        >>> word_starts = torch.tensor([[1, 3], [1, -1]])  # of words; -1: no word
        >>> output = model(torch.randint(30, (2, 5)), word_starts=word_starts)
        >>> output.spans.tolist(), output.logits.shape
        ([[0, 0], [0, 1], [1, 1], [2, 2]], torch.Size([4, 3]))
    """
