"""Labels of tokens and of documents, and ends of answers, on any encoder.

`SpanBERTForTokenClassification` and its like are transformers' own heads of BERT; these are for other families. Each
forward spells its arguments out, because `transformers.Trainer` drops columns that it does not name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.loss.loss_utils import (
    ForQuestionAnsweringLoss,
    ForSequenceClassificationLoss,
    ForTokenClassification,
)
from transformers.modeling_outputs import (
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)

from spanbert_kernels.models.modeling import OnEncoder
from spanbert_kernels.nn.packing import Packing


class TokenClassifier(OnEncoder):
    """A label for each token."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
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
    ) -> TokenClassifierOutput:
        """`logits [B, L, num_labels]`, and with `labels [B, L]` the loss, a mean over tokens; see the encoder."""
        given = {"position_ids": position_ids, "inputs_embeds": inputs_embeds, "cluster_ids": cluster_ids}
        output = self.encode(input_ids, attention_mask, token_type_ids, **given, **kwargs)
        logits = self.classifier(self.dropout(output.last_hidden_state))
        loss = None if labels is None else ForTokenClassification(logits, labels, self.config)
        return TokenClassifierOutput(loss, logits, output.hidden_states, output.attentions)


class SequenceClassifier(OnEncoder):
    """A label for each document, of the token that `config.pooler_token` names."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
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
    ) -> SequenceClassifierOutput:
        """`logits [B, num_labels]`, and with `labels [B]` the loss, a mean over documents; see the encoder."""
        given = {"position_ids": position_ids, "inputs_embeds": inputs_embeds, "cluster_ids": cluster_ids}
        output = self.encode(input_ids, attention_mask, token_type_ids, **given, **kwargs)
        hidden: Tensor = output.last_hidden_state
        packing = Packing.from_mask(attention_mask, hidden.shape[0], hidden.shape[1], hidden.device)
        read = hidden.flatten(0, 1).index_select(0, self.base_model.pooled_positions(packing))
        logits = self.classifier(self.dropout(torch.tanh(self.pooler(self.dropout(read)))))
        loss = None
        if labels is not None:
            self.config.problem_type = self.config.problem_type or "single_label_classification"
            loss = ForSequenceClassificationLoss(labels, logits, self.config)
        return SequenceClassifierOutput(loss, logits, output.hidden_states, output.attentions)


class AnswerFinder(OnEncoder):
    """Start and end of an answer."""

    loss_leaves_padding_out = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
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
    ) -> QuestionAnsweringModelOutput:
        """`start_logits` and `end_logits [B, L]`, and with both positions `[B]` the loss; see the encoder."""
        given = {"position_ids": position_ids, "inputs_embeds": inputs_embeds, "cluster_ids": cluster_ids}
        output = self.encode(input_ids, attention_mask, token_type_ids, **given, **kwargs)
        start, end = self.qa_outputs(self.dropout(output.last_hidden_state)).unbind(-1)
        loss = answer_loss(start, end, attention_mask, start_positions, end_positions)
        return QuestionAnsweringModelOutput(loss, start, end, output.hidden_states, output.attentions)


def answer_loss(
    start: Tensor, end: Tensor, mask: Tensor | None, start_positions: Tensor | None, end_positions: Tensor | None
) -> Tensor | None:
    """Transformers' loss of answers over the real tokens of each row.

    Theirs is over padding too: the loss of a question then depends on the questions that it is batched with, and on
    what an encoder leaves at padding, which the packed path does not compute.

    Args:
        start: scores `[B, L]` of the tokens as the first of the answer.
        end: `[B, L]`, as the last.
        mask: `[B, L]`, 0 at padding; None where there is none.
        start_positions: `[B]`, columns; one beyond the row is left out.
        end_positions: the same of the last token.

    Returns:
        A mean over rows and ends; None without both positions.
    """
    if start_positions is None or end_positions is None:
        return None
    if mask is not None:
        start, end = (logits.masked_fill(mask == 0, torch.finfo(logits.dtype).min) for logits in (start, end))
    loss: Tensor = ForQuestionAnsweringLoss(start, end, start_positions, end_positions)
    return loss
