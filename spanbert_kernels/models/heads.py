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
from transformers.modeling_outputs import QuestionAnsweringModelOutput
from transformers.models.bert.modeling_bert import BertOnlyMLMHead
from transformers.utils import can_return_tuple

from spanbert_kernels.models.configuration import SpanBERTConfig
from spanbert_kernels.models.modeling import SpanBERTModel, SpanBERTPreTrainedModel
from spanbert_kernels.models.token_heads import answer_loss

# The parents' constructors are passed over: each would build a BertModel to throw away.


class SpanBERTForTokenClassification(SpanBERTPreTrainedModel, BertForTokenClassification):
    """A label for each token; `forward` is BERT's with `cluster_ids [B]`.

    Args:
        config: `SpanBERTConfig`; `num_labels` scores a token.

    Raises:
        TypeError: `config` is not a `SpanBERTConfig`.
        ValueError: see `SpanBERTConfig`.

    Source: `transformers.BertForTokenClassification`, whose parameters it has; checkpoints of that load unchanged.

    Example:
        >>> import torch
        >>> config = SpanBERTConfig(vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        ...                         intermediate_size=16, cross_document_layers=[0], num_labels=3)
        >>> model = SpanBERTForTokenClassification(config).eval()
        >>> output = model(torch.randint(30, (3, 5)), cluster_ids=torch.tensor([1, 2, 1]),
        ...                labels=torch.zeros(3, 5).long())
        >>> output.logits.shape, output.loss.shape
        (torch.Size([3, 5, 3]), torch.Size([]))
    """

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
        """BERT's forward.

        Args:
            input_ids: `[B, L]`, as in BERT.
            attention_mask: `[B, L]`, as in BERT.
            token_type_ids: `[B, L]`, as in BERT.
            position_ids: `[B, L]`, as in BERT.
            inputs_embeds: `[B, L, H]`, as in BERT.
            labels: `[B, L]`, 0 to `num_labels - 1`; -100 is left out of the loss.
            cluster_ids: integers `[B]`: documents with the same id see each other; None: no document sees another.
            kwargs: as in BERT (`output_hidden_states`, `return_dict` and others).

        Returns:
            `TokenClassifierOutput`: `logits [B, L, num_labels]`, and with labels the `loss`, a mean over tokens.
            A tuple of them with `return_dict=False`.

        Raises:
            TypeError: `cluster_ids` is not an integer tensor on the batch's device.
            ValueError: `cluster_ids` is not `[B]`, or `attention_mask` not `[B, L]`.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        return super().forward(*inputs, labels, cluster_ids=cluster_ids, **kwargs)


class SpanBERTForSequenceClassification(SpanBERTPreTrainedModel, BertForSequenceClassification):
    """A label for each document, from the pooler; `forward` is BERT's with `cluster_ids [B]`.

    Args:
        config: `SpanBERTConfig`; `num_labels` scores a document.

    Raises:
        TypeError: `config` is not a `SpanBERTConfig`.
        ValueError: see `SpanBERTConfig`.

    Source: `transformers.BertForSequenceClassification`, whose parameters it has; checkpoints of that load unchanged.

    Example:
        >>> import torch
        >>> config = SpanBERTConfig(vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        ...                         intermediate_size=16, cross_document_layers=[0], num_labels=3)
        >>> model = SpanBERTForSequenceClassification(config).eval()
        >>> output = model(torch.randint(30, (3, 5)), cluster_ids=torch.tensor([1, 2, 1]),
        ...                labels=torch.tensor([0, 2, 1]))
        >>> output.logits.shape, output.loss.shape
        (torch.Size([3, 3]), torch.Size([]))
    """

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
        """BERT's forward.

        Args:
            input_ids: `[B, L]`, as in BERT.
            attention_mask: `[B, L]`, as in BERT.
            token_type_ids: `[B, L]`, as in BERT.
            position_ids: `[B, L]`, as in BERT.
            inputs_embeds: `[B, L, H]`, as in BERT.
            labels: `[B]`, 0 to `num_labels - 1`; floating point for a regression, as in BERT.
            cluster_ids: integers `[B]`: documents with the same id see each other; None: no document sees another.
            kwargs: as in BERT (`output_hidden_states`, `return_dict` and others).

        Returns:
            `SequenceClassifierOutput`: `logits [B, num_labels]`, and with labels the `loss`, a mean over documents.
            A tuple of them with `return_dict=False`.

        Raises:
            TypeError: `cluster_ids` is not an integer tensor on the batch's device.
            ValueError: `cluster_ids` is not `[B]`, or `attention_mask` not `[B, L]`.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        return super().forward(*inputs, labels, cluster_ids=cluster_ids, **kwargs)


class SpanBERTForQuestionAnswering(SpanBERTPreTrainedModel, BertForQuestionAnswering):
    """Start and end of an answer; `forward` is BERT's with `cluster_ids [B]`, its loss without padding.

    BERT's loss takes its softmax over padding too, and so depends on the rows that a row is batched with.

    Args:
        config: `SpanBERTConfig`.

    Raises:
        TypeError: `config` is not a `SpanBERTConfig`.
        ValueError: see `SpanBERTConfig`.

    Source: `transformers.BertForQuestionAnswering`, whose parameters it has; checkpoints of that load unchanged.

    Example:
        >>> import torch
        >>> config = SpanBERTConfig(vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        ...                         intermediate_size=16, cross_document_layers=[0])
        >>> model = SpanBERTForQuestionAnswering(config).eval()
        >>> output = model(torch.randint(30, (3, 5)), cluster_ids=torch.tensor([1, 2, 1]))
        >>> output.start_logits.shape, output.end_logits.shape
        (torch.Size([3, 5]), torch.Size([3, 5]))
    """

    loss_leaves_padding_out = True

    def __init__(self, config: SpanBERTConfig) -> None:
        BertPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.bert = SpanBERTModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
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
        """BERT's forward.

        Args:
            input_ids: `[B, L]`, as in BERT.
            attention_mask: `[B, L]`, as in BERT.
            token_type_ids: `[B, L]`, as in BERT.
            position_ids: `[B, L]`, as in BERT.
            inputs_embeds: `[B, L, H]`, as in BERT.
            start_positions: `[B]`, the column where the answer begins.
            end_positions: `[B]`, the column of its last token.
            cluster_ids: integers `[B]`: documents with the same id see each other; None: no document sees another.
            kwargs: as in BERT (`output_hidden_states`, `return_dict` and others).

        Returns:
            `QuestionAnsweringModelOutput`: `start_logits [B, L]`, `end_logits [B, L]`, and with both positions the
            `loss`, over tokens that are not padding. A tuple of them with `return_dict=False`.

        Raises:
            TypeError: `cluster_ids` is not an integer tensor on the batch's device.
            ValueError: `cluster_ids` is not `[B]`, or `attention_mask` not `[B, L]`.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        output = super().forward(*inputs, cluster_ids=cluster_ids, return_dict=True, **kwargs)
        start, end = output.start_logits, output.end_logits
        loss = answer_loss(start, end, attention_mask, start_positions, end_positions)
        return QuestionAnsweringModelOutput(loss, start, end, output.hidden_states, output.attentions)


class SpanBERTForMaskedLM(SpanBERTPreTrainedModel, BertForMaskedLM):
    """The token behind each mask; `forward` is BERT's with `cluster_ids [B]`.

    Args:
        config: `SpanBERTConfig`; `vocab_size` scores a token.

    Raises:
        TypeError: `config` is not a `SpanBERTConfig`.
        ValueError: see `SpanBERTConfig`.

    Source: `transformers.BertForMaskedLM`, whose parameters it has; checkpoints of that load unchanged.

    Example:
        >>> import torch
        >>> config = SpanBERTConfig(vocab_size=30, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
        ...                         intermediate_size=16, cross_document_layers=[0])
        >>> model = SpanBERTForMaskedLM(config).eval()
        >>> output = model(torch.randint(30, (3, 5)), cluster_ids=torch.tensor([1, 2, 1]))
        >>> output.logits.shape
        torch.Size([3, 5, 30])
    """

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
        """BERT's forward.

        Args:
            input_ids: `[B, L]`, as in BERT.
            attention_mask: `[B, L]`, as in BERT.
            token_type_ids: `[B, L]`, as in BERT.
            position_ids: `[B, L]`, as in BERT.
            inputs_embeds: `[B, L, H]`, as in BERT.
            encoder_hidden_states: as in BERT, for a decoder.
            encoder_attention_mask: as in BERT, for a decoder.
            labels: `[B, L]`, token ids; -100 is left out of the loss.
            cluster_ids: integers `[B]`: documents with the same id see each other; None: no document sees another.
            kwargs: as in BERT (`output_hidden_states`, `return_dict` and others).

        Returns:
            `MaskedLMOutput`: `logits [B, L, vocab_size]`, and with labels the `loss`, a mean over the tokens with one.
            A tuple of them with `return_dict=False`.

        Raises:
            TypeError: `cluster_ids` is not an integer tensor on the batch's device.
            ValueError: `cluster_ids` is not `[B]`, or `attention_mask` not `[B, L]`.
        """
        inputs = (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        return super().forward(
            *inputs, encoder_hidden_states, encoder_attention_mask, labels, cluster_ids=cluster_ids, **kwargs
        )


def _classifier_dropout(config: SpanBERTConfig) -> float:
    dropout = config.classifier_dropout
    return float(config.hidden_dropout_prob if dropout is None else dropout)
