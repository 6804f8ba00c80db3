"""SpERT's span and relation classifier, as github.com/lavis-nlp/spert computes it: masks added, then the maximum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, BertPreTrainedModel


def masked_maximum(hidden: Tensor, masks: Tensor) -> Tensor:
    """Over the tokens that each mask marks: `[B, L, H]` or `[B, N, L, H]`, `[B, N, L]` -> `[B, N, H]`."""
    repeated = hidden if hidden.dim() == 4 else hidden.unsqueeze(1).repeat(1, masks.shape[1], 1, 1)
    left_out = (masks.unsqueeze(-1) == 0).float() * -1e30
    return (left_out + repeated).max(dim=2)[0]


class SpERT(BertPreTrainedModel):
    """The model: an encoder, a classifier of candidates and one of pairs of them."""

    __module__ = "spert.models"

    def __init__(
        self,
        config: BertConfig,
        cls_token: int,
        relation_types: int,
        entity_types: int,
        size_embedding: int,
        prop_drop: float,
        freeze_transformer: bool,
        max_pairs: int = 100,
    ) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.bert = BertModel(config)
        self.rel_classifier = nn.Linear(3 * size + 2 * size_embedding, relation_types)
        self.entity_classifier = nn.Linear(2 * size + size_embedding, entity_types)
        self.size_embeddings = nn.Embedding(100, size_embedding)
        self.dropout = nn.Dropout(prop_drop)
        self._cls_token = cls_token
        self._relation_types = relation_types
        self._max_pairs = max_pairs
        self.post_init()
        self.bert.requires_grad_(not freeze_transformer)

    def _classify_entities(
        self, encodings: Tensor, h: Tensor, entity_masks: Tensor, size_embeddings: Tensor
    ) -> tuple[Tensor, Tensor]:
        pooled = masked_maximum(h, entity_masks)
        first = h.view(-1, h.shape[-1])[encodings.contiguous().view(-1) == self._cls_token, :]
        context = first.unsqueeze(1).repeat(1, pooled.shape[1], 1)
        joined = self.dropout(torch.cat([context, pooled, size_embeddings], dim=2))
        return self.entity_classifier(joined), pooled

    def _classify_relations(
        self,
        entity_spans: Tensor,
        size_embeddings: Tensor,
        relations: Tensor,
        rel_masks: Tensor,
        h: Tensor,
        chunk_start: int,
    ) -> Tensor:
        if relations.shape[1] > self._max_pairs:
            chunk = slice(chunk_start, chunk_start + self._max_pairs)
            relations, rel_masks = relations[:, chunk], rel_masks[:, chunk]
            h = h[:, : relations.shape[1], :]
        pairs, sizes = (
            torch.stack([row[index] for row, index in zip(values, relations, strict=True)]).flatten(2)
            for values in (entity_spans, size_embeddings)
        )
        context = masked_maximum(h, rel_masks)
        context[rel_masks.to(torch.uint8).any(-1) == 0] = 0
        scores: Tensor = self.rel_classifier(self.dropout(torch.cat([context, pairs, sizes], dim=2)))
        return scores

    def _relation_scores(
        self, h: Tensor, pooled: Tensor, sizes: Tensor, relations: Tensor, rel_masks: Tensor, predicts: bool
    ) -> Tensor:
        batch, count = relations.shape[:2]
        h_large = h.unsqueeze(1).repeat(1, max(min(count, self._max_pairs), 1), 1, 1)
        found = torch.zeros([batch, count, self._relation_types]).to(self.rel_classifier.weight.device)
        for start in range(0, count, self._max_pairs):
            scores = self._classify_relations(pooled, sizes, relations, rel_masks, h_large, start)
            found[:, start : start + self._max_pairs, :] = scores.sigmoid() if predicts else scores
        return found

    def _forward_train(
        self,
        encodings: Tensor,
        context_masks: Tensor,
        entity_masks: Tensor,
        entity_sizes: Tensor,
        relations: Tensor,
        rel_masks: Tensor,
    ) -> tuple[Tensor, Tensor]:
        h = self.bert(input_ids=encodings, attention_mask=context_masks.float())[0]
        sizes = self.size_embeddings(entity_sizes)
        scores, pooled = self._classify_entities(encodings, h, entity_masks, sizes)
        return scores, self._relation_scores(h, pooled, sizes, relations, rel_masks, False)

    def _forward_inference(
        self,
        encodings: Tensor,
        context_masks: Tensor,
        entity_masks: Tensor,
        entity_sizes: Tensor,
        entity_spans: Tensor,
        entity_sample_masks: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        h = self.bert(input_ids=encodings, attention_mask=context_masks.float())[0]
        sizes = self.size_embeddings(entity_sizes)
        scores, pooled = self._classify_entities(encodings, h, entity_masks, sizes)
        chosen = self._filter_spans(scores, entity_spans, entity_sample_masks, context_masks.shape[-1])
        relations, rel_masks, rel_sample_masks = chosen
        found = self._relation_scores(h, pooled, sizes, relations, rel_masks, True)
        return scores.softmax(2), found * rel_sample_masks.float().unsqueeze(-1), relations

    def _filter_spans(
        self, entity_clf: Tensor, entity_spans: Tensor, entity_sample_masks: Tensor, ctx_size: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Every ordered pair of candidates of a type, the tokens between them, and which pairs are real."""
        kept = [row.nonzero().view(-1).tolist() for row in entity_clf.argmax(-1) * entity_sample_masks.long()]
        pairs = [[(a, b) for a in row for b in row if a != b] for row in kept]
        most = max(1, *map(len, pairs))
        relations = torch.zeros(len(kept), most, 2, dtype=torch.long)
        masks = torch.zeros(len(kept), most, ctx_size, dtype=torch.bool)
        real = torch.zeros(len(kept), most, dtype=torch.bool)
        for row, of_row in enumerate(pairs):
            for place, (a, b) in enumerate(of_row):
                (start, end), (other_start, other_end) = entity_spans[row, a].tolist(), entity_spans[row, b].tolist()
                before = end < other_start
                masks[row, place, end if before else other_end : other_start if before else start] = True
                relations[row, place], real[row, place] = torch.tensor([a, b]), True
        return relations, masks, real

    def forward(self, *args: Any, inference: bool = False, **kwargs: Any) -> Any:
        return (self._forward_inference if inference else self._forward_train)(*args, **kwargs)
