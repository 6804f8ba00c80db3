"""Maverick 1.0.7 and xCoRe 0.1.2: finding mentions, with the layers over both bounds run for each span."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel


class FullyConnectedLayer(nn.Module):
    def __init__(self, input_dim: int, output_dim: int, hidden_size: int, dropout_prob: float) -> None:
        super().__init__()
        self.dense1 = nn.Linear(input_dim, hidden_size)
        self.dense = nn.Linear(hidden_size, output_dim)
        self.layer_norm = nn.LayerNorm(hidden_size)
        self.activation_func = nn.GELU()
        self.dropout = nn.Dropout(dropout_prob)

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.dense(self.layer_norm(self.activation_func(self.dropout(self.dense1(inputs)))))
        return scores


class RepresentationLayer(nn.Module):
    def __init__(self, input_dim: int, output_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.layer = FullyConnectedLayer(input_dim, output_dim, hidden_dim, dropout_prob=0.2)

    def forward(self, inputs: Tensor) -> Tensor:
        states: Tensor = self.layer(inputs)
        return states


class _Mentions(nn.Module):
    """What the models have for finding mentions. Of the settings one counts; a size alone: there is no encoder."""

    def __init__(self, size: int = 0, *, huggingface_model_name: str | None = None, **_: object) -> None:
        super().__init__()
        if huggingface_model_name is None:
            self.encoder: Any = SimpleNamespace(device=torch.device("cpu"))
        else:
            self.encoder = AutoModel.from_pretrained(huggingface_model_name)
            size = self.encoder.config.hidden_size
        self.start_token_representation = RepresentationLayer(size, size, size)
        self.end_token_representation = RepresentationLayer(size, size, size)
        self.start_token_classifier = RepresentationLayer(size, 1, size)
        self.start_end_classifier = RepresentationLayer(2 * size, 1, size)

    def span_logits(self, states: Tensor, spans: Tensor) -> Tensor:
        """Each bound goes through the layers that are named after the other."""
        of_end, of_start = states[spans[:, 1]], states[spans[:, 0]]
        both = torch.cat([self.start_token_representation(of_end), self.end_token_representation(of_start)], dim=-1)
        logits: Tensor = self.start_end_classifier(both).squeeze(-1)
        return logits

    def found(
        self,
        states: Tensor,
        allowed: Tensor,
        gold_mentions: Tensor | None,
        gold_starts: Tensor | None,
        trains: bool,
        losses: tuple[bool, bool],
    ) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        """`losses`: whether that of starts, and that of mentions, is taken."""
        total = [torch.tensor([0.0], requires_grad=True) for _ in range(2)]
        starts_found, mentions_found = [], []
        for row in range(len(states)):
            logits = self.start_token_classifier(states[row]).squeeze(-1)
            if losses[0]:
                total[0] = total[0] + F.binary_cross_entropy_with_logits(logits, gold_starts[row])
            starts = (logits.sigmoid() > 0.5).nonzero().squeeze(-1)
            starts_found.append(starts)
            if trains:
                starts = (gold_starts[row].sigmoid() > 0.5).nonzero().squeeze(-1)
            places = (allowed[row][starts] == 1).nonzero()
            spans = torch.stack([starts[places[:, 0]], places[:, 1]], dim=1)
            logits = self.span_logits(states[row], spans)
            mentions_found.append(spans[logits.sigmoid() > 0.5])
            if losses[1] and len(logits):
                gold = gold_mentions[row][spans[:, 0], spans[:, 1]]
                total[1] = total[1] + F.binary_cross_entropy_with_logits(logits, gold)
        return starts_found, mentions_found, total[0], total[1]


class Maverick_mes(_Mentions):  # noqa: N801
    __module__ = "maverick.models.model_mes"

    def eos_mention_extraction(
        self, lhs: Tensor, eos_mask: Tensor, gold_mentions: Tensor | None, gold_starts: Tensor | None, stage: str
    ) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        losses = (gold_starts is not None, gold_mentions is not None and stage != "test")
        return self.found(lhs, eos_mask, gold_mentions, gold_starts, stage == "train", losses)


class Maverick_s2e(_Mentions):  # noqa: N801
    __module__ = "maverick.models.model_s2e"

    def squad_mention_extraction(
        self, lhs: Tensor, eos_mask: Tensor, gold_mentions: Tensor | None, gold_starts: Tensor | None, stage: str
    ) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        losses = (gold_starts is not None, gold_mentions is not None)
        return self.found(lhs, eos_mask, gold_mentions, gold_starts, stage == "train", losses)


class Maverick_incr(Maverick_s2e):  # noqa: N801
    __module__ = "maverick.models.model_incr"


class xCoRe_system(_Mentions):  # noqa: N801
    """Masks and gold come without the dimension of the batch."""

    __module__ = "xcore.models.model_cross"

    def eos_mention_extraction(
        self, lhs: Tensor, mask: Tensor, gold_mentions: Tensor | None, gold_starts: Tensor | None, stage: str
    ) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
        gold = [None if each is None else each[None] for each in (gold_mentions, gold_starts)]
        losses = (stage != "test", stage != "test" and gold_mentions is not None)
        return self.found(lhs, mask[None], gold[0], gold[1], stage == "train", losses)


def sentences(length: int, each: int) -> Tensor:
    """Where spans may stand in a document of sentences of `each` tokens: `[1, L, L]`."""
    sentence = torch.arange(length) // each
    return (sentence[:, None] == sentence).triu()[None].double()
