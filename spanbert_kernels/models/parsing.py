"""A dependency parser over SpanBERT: for every word its head and the relation to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput

from spanbert_kernels.models.modeling import OnEncoder, SpanBERTPreTrainedModel
from spanbert_kernels.models.renamed import renamed_argument
from spanbert_kernels.nn.biaffine import Biaffine
from spanbert_kernels.nn.linear import run_linear

RELATION_SIZE = 128


@dataclass
class DependencyParsingOutput(ModelOutput):
    """Scores, -inf where there is no word: `arcs [B, W, W]`, dependents by heads, and `relations [B, W, W, R]`."""

    loss: Tensor | None = None
    arcs: Tensor | None = None
    relations: Tensor | None = None


class DependencyParser(OnEncoder):
    """Heads and relations of words, on any encoder."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.arc_states = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.relation_states = nn.Linear(config.hidden_size, 2 * RELATION_SIZE)
        self.arc = Biaffine(config.hidden_size, 1)
        self.relation = Biaffine(RELATION_SIZE, config.num_labels)
        self.post_init()

    @renamed_argument("columns", "word_starts")
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        word_starts: Tensor | None = None,
        heads: Tensor | None = None,
        labels: Tensor | None = None,
        **kwargs: Any,
    ) -> DependencyParsingOutput:
        """The loss where there are heads, else the scores.

        Args:
            input_ids: `[B, L]`.
            attention_mask: `[B, L]`.
            word_starts: `[B, W]`, the column of [CLS] and of each word's first piece, -1 where there is no word.
            heads: `[B, W]`, places in `word_starts`; -100 at place 0 and where no loss is wanted.
            labels: `[B, W]`, relations; -100 likewise.
            kwargs: see `SpanBERTModel.forward`.

        Raises:
            ValueError: `word_starts` are missing, or `heads` come without `labels`.
        """
        if word_starts is None:
            raise ValueError("word_starts [B, W] are wanted, got None")
        if (heads is None) != (labels is None):
            raise ValueError("heads and labels come together")
        hidden = self.encode(input_ids, attention_mask, **kwargs).last_hidden_state
        index = word_starts.clamp(min=0)[..., None].expand(-1, -1, hidden.shape[2])
        words = self.dropout(hidden.gather(1, index))  # [B, W, H]
        as_dependent, as_head = self._states(self.arc_states, words)
        arcs = self.arc(as_dependent, as_head)[..., 0]
        arcs = arcs.masked_fill((word_starts < 0)[:, None, :], -torch.inf)
        of_dependent, of_head = self._states(self.relation_states, words)
        if heads is None or labels is None:
            return DependencyParsingOutput(arcs=arcs, relations=self.relation(of_dependent, of_head))
        wanted = heads >= 0
        row = wanted.nonzero()[:, 0]
        relations = self.relation.pairs(of_dependent[wanted], of_head[row, heads[wanted]])
        count = max(int(wanted.sum()), 1)
        loss = F.cross_entropy(arcs[wanted].float(), heads[wanted], reduction="sum")
        loss = loss + F.cross_entropy(relations.float(), labels[wanted], reduction="sum")
        return DependencyParsingOutput(loss=loss / count)

    def _states(self, layer: nn.Linear, words: Tensor) -> tuple[Tensor, Tensor]:
        dependent, head = self.dropout(F.leaky_relu(run_linear(layer, words), 0.1)).chunk(2, -1)
        return dependent, head


class SpanBERTForDependencyParsing(DependencyParser, SpanBERTPreTrainedModel):
    """Biaffine scores between the first pieces of words; place 0 is the root and stands on [CLS].

    Args:
        config: `SpanBERTConfig`, whose `num_labels` are the relations.

    Source: Dozat and Manning 2017, Deep Biaffine Attention for Neural Dependency Parsing.

    Example:
        >>> from spanbert_kernels import SpanBERTConfig
        >>> config = SpanBERTConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        ...                         intermediate_size=16, num_labels=3)
        >>> model = SpanBERTForDependencyParsing(config)
        >>> word_starts = torch.tensor([[0, 1, 3], [0, 1, -1]])  # of [CLS] and of words; -1: no word
        >>> model(torch.randint(30, (2, 5)), word_starts=word_starts).arcs.shape
        torch.Size([2, 3, 3])
    """
