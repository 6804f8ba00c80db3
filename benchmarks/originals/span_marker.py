"""SpanMarker 1.8.1's model and its batches, as the package computes them: text, start and end markers in one row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.utils import ModelOutput


@dataclass
class SpanMarkerOutput(ModelOutput):
    """What the model returns."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    num_marker_pairs: Tensor | None = None
    num_words: Tensor | None = None
    document_ids: Tensor | None = None
    sentence_ids: Tensor | None = None


class SpanMarkerModel(nn.Module):
    """An encoder, and a classifier of the last states of each span's two markers."""

    __module__ = "span_marker.modeling"

    def __init__(self, encoder: Any, num_labels: int) -> None:
        super().__init__()
        self.config = encoder.config
        self.config.num_labels = num_labels
        self.encoder = encoder
        self.dropout = nn.Dropout(encoder.config.hidden_dropout_prob)
        self.classifier = nn.Linear(2 * encoder.config.hidden_size, num_labels)
        self.loss_func = nn.CrossEntropyLoss()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        start_marker_indices: Tensor,
        num_marker_pairs: Tensor,
        labels: Tensor | None = None,
        num_words: Tensor | None = None,
        document_ids: Tensor | None = None,
        sentence_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> SpanMarkerOutput:
        # transformers 5 takes masks for each pair of tokens with a dimension for heads.
        states = self.encoder(
            input_ids,
            attention_mask=attention_mask.unsqueeze(1),
            token_type_ids=torch.zeros_like(input_ids),
            position_ids=position_ids,
        )[0]
        states = self.dropout(states)
        places = states.shape[1] // 2
        vectors = []
        for row, begin, pairs in zip(states, start_marker_indices, num_marker_pairs, strict=True):
            end = begin + pairs
            joined = torch.cat((row[begin:end], row[end : end + pairs]), dim=-1)
            vectors.append(pad(joined, (0, 0, 0, places - len(joined))))
        logits = self.classifier(self.dropout(torch.stack(vectors)))
        loss = None if labels is None else self.loss_func(logits.view(-1, self.config.num_labels), labels.view(-1))
        return SpanMarkerOutput(
            loss=loss,
            logits=logits,
            num_marker_pairs=num_marker_pairs,
            num_words=num_words,
            document_ids=document_ids,
            sentence_ids=sentence_ids,
        )


def batch_of(
    texts: list[Tensor], spans: list[Tensor], model_max_length: int, marker_max_length: int, markers: tuple[int, int]
) -> dict[str, Tensor]:
    """Rows of texts, ids `[n]` each, with some of their spans, `[P, 2]` first and last token; `markers`: their ids."""
    size = model_max_length + 2 * marker_max_length
    rows = len(texts)
    ids, positions = torch.zeros(rows, size, dtype=torch.long), torch.ones(rows, size, dtype=torch.long)
    mask = torch.zeros(rows, size, size, dtype=torch.bool)
    begins = []
    for row, (text, of_text) in enumerate(zip(texts, spans, strict=True)):
        length, pairs = len(text), len(of_text)
        begin = length + length % 2
        first, second = torch.arange(begin, begin + pairs), torch.arange(begin + pairs, begin + 2 * pairs)
        ids[row, :length], ids[row, first], ids[row, second] = text, markers[0], markers[1]
        positions[row, :length] = torch.arange(length) + 2
        positions[row, first], positions[row, second] = of_text[:, 0] + 2, of_text[:, 1] + 2
        mask[row, :length, :length] = True
        mask[row, begin : begin + 2 * pairs, :length] = True
        for one in (first, second):
            mask[row, one, first] = mask[row, one, second] = True
        begins.append(begin)
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": positions,
        "start_marker_indices": torch.tensor(begins),
        "num_marker_pairs": torch.tensor([len(of_text) for of_text in spans]),
    }
