"""PURE's entity model, as github.com/princeton-nlp/PURE computes it, and what that takes of AllenNLP."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AlbertConfig, AlbertModel, AlbertPreTrainedModel, BertConfig, BertModel, BertPreTrainedModel


class AllenFeedForward(nn.Module):
    """AllenNLP's: linear layers, each with an activation and dropout."""

    def __init__(
        self, input_dim: int, num_layers: int, hidden_dims: int, activations: Callable[[Tensor], Tensor], dropout: float
    ) -> None:
        super().__init__()
        sizes = [input_dim, *[hidden_dims] * num_layers]
        self._activations = [activations] * num_layers
        self._linear_layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(sizes))
        self._dropout = nn.ModuleList(nn.Dropout(dropout) for _ in range(num_layers))

    def forward(self, inputs: Tensor) -> Tensor:
        for linear, activation, dropout in zip(self._linear_layers, self._activations, self._dropout, strict=True):
            inputs = dropout(activation(linear(inputs)))
        return inputs


def batched_index_select(states: Tensor, indices: Tensor) -> Tensor:
    """AllenNLP's: `[B, L, H]` and `[B, N]` -> `[B, N, H]`.

    Raises:
        ValueError: an index outside the row; AllenNLP's is a `ConfigurationError`.
    """
    batch, length, size = states.shape
    if indices.numel() and (int(indices.max()) >= length or int(indices.min()) < 0):
        raise ValueError(f"All elements in indices should be in range (0, {length - 1})")
    flat = indices + torch.arange(batch, device=indices.device)[:, None] * length
    return states.reshape(-1, size).index_select(0, flat.view(-1)).view(batch, -1, size)


class _EntityScorer:
    """What both models have beside their encoders."""

    hidden_dropout: nn.Dropout
    width_embedding: nn.Embedding
    ner_classifier: nn.Sequential

    def _add_scorer(
        self,
        size: int,
        dropout: float,
        labels: int,
        head_hidden_dim: int,
        width_embedding_dim: int,
        max_span_length: int,
    ) -> None:
        self.hidden_dropout = nn.Dropout(dropout)
        self.width_embedding = nn.Embedding(max_span_length + 1, width_embedding_dim)
        self.ner_classifier = nn.Sequential(
            AllenFeedForward(2 * size + width_embedding_dim, 2, head_hidden_dim, F.relu, 0.2),
            nn.Linear(head_hidden_dim, labels),
        )

    def _span_vectors(self, states: Tensor, spans: Tensor) -> Tensor:
        states = self.hidden_dropout(states)
        ends = [batched_index_select(states, spans[:, :, place]) for place in (0, 1)]
        return torch.cat([*ends, self.width_embedding(spans[:, :, 2])], dim=-1)

    def _score(
        self, vectors: Tensor, spans_mask: Tensor, labels: Tensor | None, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.ner_classifier(vectors)
        if labels is None:
            return logits, vectors, vectors
        wanted = labels.view(-1)
        if attention_mask is not None:
            wanted = torch.where(spans_mask.view(-1) == 1, wanted, torch.tensor(-100))
        loss = F.cross_entropy(logits.view(-1, logits.shape[-1]), wanted, reduction="sum")
        return loss, logits, vectors


class BertForEntity(BertPreTrainedModel, _EntityScorer):
    """BERT and the scorer of spans."""

    __module__ = "entity.models"

    def __init__(
        self,
        config: BertConfig,
        num_ner_labels: int,
        head_hidden_dim: int = 150,
        width_embedding_dim: int = 150,
        max_span_length: int = 8,
    ) -> None:
        super().__init__(config)
        self.bert = BertModel(config)
        sizes = (num_ner_labels, head_hidden_dim, width_embedding_dim, max_span_length)
        self._add_scorer(config.hidden_size, config.hidden_dropout_prob, *sizes)
        self.post_init()

    def _get_span_embeddings(
        self,
        input_ids: Tensor,
        spans: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        states = self.bert(input_ids=input_ids, token_type_ids=token_type_ids, attention_mask=attention_mask)[0]
        return self._span_vectors(states, spans)

    def forward(
        self,
        input_ids: Tensor,
        spans: Tensor,
        spans_mask: Tensor,
        spans_ner_label: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        vectors = self._get_span_embeddings(input_ids, spans, token_type_ids, attention_mask)
        return self._score(vectors, spans_mask, spans_ner_label, attention_mask)


class AlbertForEntity(AlbertPreTrainedModel, _EntityScorer):
    """The same over ALBERT."""

    __module__ = "entity.models"

    def __init__(
        self,
        config: AlbertConfig,
        num_ner_labels: int,
        head_hidden_dim: int = 150,
        width_embedding_dim: int = 150,
        max_span_length: int = 8,
    ) -> None:
        super().__init__(config)
        self.albert = AlbertModel(config)
        sizes = (num_ner_labels, head_hidden_dim, width_embedding_dim, max_span_length)
        self._add_scorer(config.hidden_size, config.hidden_dropout_prob, *sizes)
        self.post_init()

    def _get_span_embeddings(
        self,
        input_ids: Tensor,
        spans: Tensor,
        token_type_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        states = self.albert(input_ids=input_ids, token_type_ids=token_type_ids, attention_mask=attention_mask)[0]
        return self._span_vectors(states, spans)

    forward = BertForEntity.forward
