"""Transformers' BERT heads over `SpanBERTModel`: the same parameters, and documents that can see each other.

Each forward spells its arguments out, because `transformers.Trainer` drops the columns that a signature does not name.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertPreTrainedModel,
)
from transformers.models.bert.modeling_bert import BertOnlyMLMHead

from spanbert_kernels.models.configuration import SpanBERTConfig
from spanbert_kernels.models.modeling import SpanBERTModel, SpanBERTPreTrainedModel

# The parents' constructors are passed over: each would build a BertModel to throw away.


class SpanBERTForTokenClassification(SpanBERTPreTrainedModel, BertForTokenClassification):
    """A label for each token; `forward` is BERT's with `cluster_ids [B]`."""

    def __init__(self, config: SpanBERTConfig) -> None:
        BertPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.bert = SpanBERTModel(config, add_pooling_layer=False)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        cluster_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """`labels [B, L]`; see `SpanBERTModel.forward`."""
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            cluster_ids=cluster_ids,
            **kwargs,
        )


class SpanBERTForSequenceClassification(SpanBERTPreTrainedModel, BertForSequenceClassification):
    """A label for each document, from the pooler; `forward` is BERT's with `cluster_ids [B]`."""

    def __init__(self, config: SpanBERTConfig) -> None:
        BertPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.config = config
        self.bert = SpanBERTModel(config)
        self.dropout = nn.Dropout(_classifier_dropout(config))
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        cluster_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """`labels [B]`; see `SpanBERTModel.forward`."""
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            labels=labels,
            cluster_ids=cluster_ids,
            **kwargs,
        )


class SpanBERTForQuestionAnswering(SpanBERTPreTrainedModel, BertForQuestionAnswering):
    """Start and end of an answer; `forward` is BERT's with `cluster_ids [B]`."""

    def __init__(self, config: SpanBERTConfig) -> None:
        BertPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.bert = SpanBERTModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        *,
        cluster_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """`start_positions [B]`, `end_positions [B]`; see `SpanBERTModel.forward`."""
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            start_positions=start_positions,
            end_positions=end_positions,
            cluster_ids=cluster_ids,
            **kwargs,
        )


class SpanBERTForMaskedLM(SpanBERTPreTrainedModel, BertForMaskedLM):
    """The token behind each mask; `forward` is BERT's with `cluster_ids [B]`."""

    def __init__(self, config: SpanBERTConfig) -> None:
        BertPreTrainedModel.__init__(self, config)
        self.bert = SpanBERTModel(config, add_pooling_layer=False)
        self.cls = BertOnlyMLMHead(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        cluster_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """`labels [B, L]`; see `SpanBERTModel.forward`."""
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            labels=labels,
            cluster_ids=cluster_ids,
            **kwargs,
        )


def _classifier_dropout(config: SpanBERTConfig) -> float:
    dropout = config.classifier_dropout
    return float(config.hidden_dropout_prob if dropout is None else dropout)
