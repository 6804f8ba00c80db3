"""Relations of entities over `SpanBERTModel`: a label for every ordered pair of entities of a cluster of documents.

An entity's vector is the mean of its mentions' span vectors, in whichever documents they stand. To the biaffine score
of two entities one of the least distance of their mentions is added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertPreTrainedModel
from transformers.utils import ModelOutput

from spanbert_kernels import ops
from spanbert_kernels.models.configuration import SpanBERTConfig
from spanbert_kernels.models.modeling import SpanBERTModel, SpanBERTPreTrainedModel
from spanbert_kernels.models.spans import PARTS, WIDTH_SIZE
from spanbert_kernels.nn.biaffine import Biaffine

RELATION_SIZE = 128
DISTANCES = (1, 2, 3, 4, 6, 8, 12, 16, 32)  # words between first words, the first number of each bucket


@dataclass
class RelationOutput(ModelOutput):
    """`logits [P, labels]` of the pairs of entities `[P, 2]`; label 0 is no relation."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    pairs: Tensor | None = None


class SpanBERTForRelations(SpanBERTPreTrainedModel):
    """Scores the relations between entities whose mentions are given; `config.num_labels` with none, which is 0.

    Example:
        >>> config = SpanBERTConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        ...                         intermediate_size=16, num_labels=3)
        >>> model = SpanBERTForRelations(config)
        >>> columns, mentions = torch.tensor([[1, 2, 3]] * 2), torch.tensor([[0, 0, 1], [0, 2, 2], [1, 0, 0]])
        >>> output = model(torch.randint(30, (2, 5)), columns=columns, mentions=mentions,
        ...                entities=torch.tensor([0, 1, 0]), clusters=torch.tensor([0, 0]))
        >>> output.pairs.tolist(), output.logits.shape
        ([[0, 1], [1, 0]], torch.Size([2, 3]))
    """

    def __init__(self, config: SpanBERTConfig) -> None:
        BertPreTrainedModel.__init__(self, config)
        size = config.hidden_size
        self.num_labels = config.num_labels
        self.bert = SpanBERTModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.attention = nn.Linear(size, 1)
        self.widths = nn.Embedding(config.max_span_width, WIDTH_SIZE)
        self.states = nn.Linear(3 * size + WIDTH_SIZE, 2 * RELATION_SIZE)
        self.relation = Biaffine(RELATION_SIZE, config.num_labels)
        self.distances = nn.Embedding(len(DISTANCES) + 2, config.num_labels)  # the last for those that never meet
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        columns: Tensor | None = None,
        mentions: Tensor | None = None,
        entities: Tensor | None = None,
        clusters: Tensor | None = None,
        relations: Tensor | None = None,
        **kwargs: Any,
    ) -> RelationOutput:
        """Labels of all pairs of a cluster's entities; with relations, the loss, a mean over entities.

        Args:
            input_ids: `[B, L]`, windows of documents.
            attention_mask: `[B, L]`.
            columns: `[B, W]`, the column of each word's first piece, -1 where there is no word.
            mentions: `[M, 3]`: row, first and last word.
            entities: `[M]`, the entity of each mention, 0 .. E - 1.
            clusters: `[E]`, the cluster of each entity.
            relations: `[K, 3]`: two entities of a cluster and the label of the pair; all other pairs have label 0.
            kwargs: see `SpanBERTModel.forward`.

        Raises:
            ValueError: `columns`, `mentions`, `entities` or `clusters` are missing.
        """
        if columns is None or mentions is None or entities is None or clusters is None:
            raise ValueError("columns [B, W], mentions [M, 3], entities [M] and clusters [E] are wanted, one is None")
        hidden = self.bert(input_ids, attention_mask, **kwargs).last_hidden_state
        real = columns >= 0
        row, _ = real.nonzero().unbind(1)
        words = self.dropout(hidden[row, columns[real]])  # [T, H]
        offsets = F.pad(real.sum(1).cumsum(0), (1, 0))
        spans = mentions[:, 1:] + offsets[mentions[:, 0]][:, None]
        pooled = ops.span_pool(words, spans, PARTS, self.attention(words)[:, 0], self.widths.weight)  # [M, D]
        member = (entities[:, None] == torch.arange(len(clusters), device=entities.device)).to(pooled.dtype)  # [M, E]
        means = member.T @ pooled / member.sum(0)[:, None].clamp(min=1)
        first, second = self.dropout(F.relu(self.states(means))).chunk(2, -1)
        apart = ~torch.eye(len(clusters), dtype=torch.bool, device=clusters.device)
        pairs = ((clusters[:, None] == clusters) & apart).nonzero()  # [P, 2]
        scores = self.relation(first[None], second[None])[0] + self.distances(self._least(mentions, entities, clusters))
        logits = scores[pairs[:, 0], pairs[:, 1]]
        loss = None
        if relations is not None:
            wanted = relations.new_zeros(len(clusters), len(clusters))
            wanted[relations[:, 0], relations[:, 1]] = relations[:, 2]
            targets = wanted[pairs[:, 0], pairs[:, 1]]
            loss = F.cross_entropy(logits.float(), targets, reduction="sum") / max(len(clusters), 1)
        return RelationOutput(loss=loss, logits=logits, pairs=pairs)

    def _least(self, mentions: Tensor, entities: Tensor, clusters: Tensor) -> Tensor:
        """The bucket of the least distance of two entities' mentions in a window, `[E, E]`."""
        row, first, _ = mentions.unbind(1)
        bucket = torch.searchsorted(
            torch.tensor(DISTANCES, device=first.device), (first[:, None] - first).abs(), right=True
        )
        apart = len(DISTANCES) + 1
        bucket = bucket.where(row[:, None] == row, apart)
        count = len(clusters)
        pair = entities[:, None] * count + entities
        least = torch.full((count * count,), apart, device=first.device)
        return least.scatter_reduce(0, pair.flatten(), bucket.flatten(), "amin").view(count, count)
