"""Relations of entities over `SpanBERTModel`: a label for every ordered pair of entities of a cluster of documents.

An entity's vector is the mean of its mentions' span vectors, in whichever documents they stand, and one for how many
they are. Wherever both have a mention in one window, a layer scores the two mentions' own vectors, both entities', one
for the distance and the mean of the words between (Eberts and Ulges 2020, SpERT, who take the maximum); a relation is
told by any place, which the log of the sum of exponentials says. Entities that never meet are scored by their vectors.

Few pairs are related, and few relations are known to learn from: scores begin with nearly all pairs unrelated, and the
words' part is dropped as strongly as Lee et al. drop theirs (2017, End-to-end Neural Coreference Resolution).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils import ModelOutput

from spanbert_kernels import ops
from spanbert_kernels.models.modeling import SpanBERTPreTrainedModel
from spanbert_kernels.models.renamed import renamed_argument
from spanbert_kernels.models.spans import PARTS, WIDTH_SIZE, SpanModel
from spanbert_kernels.nn.linear import run_linear

RELATION_SIZE = 128
BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 32)  # of mentions, and of words between first words: the first number of each
NEVER_MEET = 2 * len(BUCKETS) + 2  # the bucket of entities without mentions in one window
UNRELATED = 5.0  # what is added to the score of no relation
APART = 5.0  # the same once more, of entities that never meet: their pairs grow with the square of a cluster
DROPPED = 0.5  # of an entity's span vector, in training
AT_ONCE = 65536  # pairs


@dataclass
class RelationOutput(ModelOutput):
    """`logits [P, labels]` of the pairs of entities `[P, 2]`; label 0 is no relation."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    pairs: Tensor | None = None


class Relations(SpanModel):
    """Relations of entities, on any encoder."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.states = nn.Linear(3 * config.hidden_size + WIDTH_SIZE, 2 * RELATION_SIZE)
        self.counts = nn.Embedding(len(BUCKETS) + 1, 2 * RELATION_SIZE)
        self.distances = nn.Embedding(NEVER_MEET + 1, RELATION_SIZE)
        self.relation = nn.Linear(RELATION_SIZE, config.num_labels)
        if config.relation_places:
            self.mentions = nn.Linear(self.states.in_features, 2 * RELATION_SIZE)
            self.between = nn.Linear(config.hidden_size, RELATION_SIZE, bias=False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Embedding) and module in (self.widths, self.counts, self.distances):
            init.normal_(module.weight)  # as large as span vectors, else these are learned by heart first

    @renamed_argument("columns", "word_starts")
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        word_starts: Tensor | None = None,
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
            word_starts: `[B, W]`, the column of each word's first piece, -1 where there is no word.
            mentions: `[M, 3]`: row, first and last word.
            entities: `[M]`, the entity of each mention, 0 .. E - 1.
            clusters: `[E]`, the cluster of each entity.
            relations: `[K, 3]`: two entities of a cluster and the label of the pair; all other pairs have label 0.
            kwargs: see `SpanBERTModel.forward`.

        Raises:
            ValueError: `word_starts`, `mentions`, `entities` or `clusters` are missing.
        """
        if word_starts is None or mentions is None or entities is None or clusters is None:
            raise ValueError("word_starts [B, W], mentions [M, 3], entities [M], clusters [E] are wanted, one is None")
        words, offsets = self.words(input_ids, attention_mask, word_starts, **kwargs)  # [T, H]
        spans = mentions[:, 1:] + offsets[mentions[:, 0]][:, None]
        plan = ops.plan_spans(spans, cu_seqlens=offsets)
        pooled = ops.span_pool(words, plan, PARTS, self.attention(words)[:, 0], self.widths.weight)  # [M, D]
        member = (entities[:, None] == torch.arange(len(clusters), device=entities.device)).to(pooled.dtype)  # [M, E]
        if self.config.relation_places:
            pooled = F.layer_norm(pooled, pooled.shape[1:])
        means = member.T @ pooled / member.sum(0)[:, None].clamp(min=1)
        states = run_linear(self.states, F.dropout(means, DROPPED, self.training)) + self.counts(_bucket(member.sum(0)))
        first, second = self.dropout(states).chunk(2, -1)  # [E, R] each
        apart = ~torch.eye(len(clusters), dtype=torch.bool, device=clusters.device)
        pairs = ((clusters[:, None] == clusters) & apart).nonzero()  # [P, 2]
        if self.config.relation_places:
            sources = mentions[:, 0], spans, words, pooled, entities, first, second
            logits = self._of_places(*sources, pairs)
        else:
            least = self._least(mentions, entities, len(clusters))
            logits = torch.cat([self._scores(first, second, least, *own.unbind(1)) for own in pairs.split(AT_ONCE)])
        loss = None
        if relations is not None:
            wanted = relations.new_zeros(len(clusters), len(clusters))
            wanted[relations[:, 0], relations[:, 1]] = relations[:, 2]
            targets = wanted[pairs[:, 0], pairs[:, 1]]
            loss = F.cross_entropy(logits.float(), targets, reduction="sum") / max(len(clusters), 1)
        return RelationOutput(loss=loss, logits=logits, pairs=pairs)

    def _scores(self, first: Tensor, second: Tensor, least: Tensor, one: Tensor, other: Tensor) -> Tensor:
        """Of pairs of entities, `[P, labels]`."""
        inner = first[one] + second[other] + self.distances(least[one, other])
        scores = run_linear(self.relation, self.dropout(F.relu(inner)))
        scores[:, 0] += UNRELATED
        return scores

    def _of_places(
        self, rows: Tensor, spans: Tensor, words: Tensor, vectors: Tensor, entities: Tensor, first: Tensor,
        second: Tensor, pairs: Tensor,
    ) -> Tensor:  # fmt: skip
        """Of pairs of entities, `[P, labels]`, from the mentions of both in a window, and from both alone elsewhere."""
        states = run_linear(self.mentions, F.dropout(vectors, DROPPED, self.training))
        one, other = states.chunk(2, -1)  # [M, R] each
        between = run_linear(self.between, F.dropout(F.layer_norm(words, words.shape[1:]), DROPPED, self.training))
        sources = one + first[entities], other + second[entities], between
        number = torch.full((len(first), len(first)), -1, device=pairs.device)
        number[pairs[:, 0], pairs[:, 1]] = torch.arange(len(pairs), device=pairs.device)
        pair = number[entities[:, None], entities]  # [M, M], -1 where there is none
        places = ((rows[:, None] == rows) & (pair >= 0)).nonzero()  # [N, 2]
        scores = [self._of_mentions(*sources, spans, own) for own in places.split(AT_ONCE)]
        met = pair[places[:, 0], places[:, 1]]  # [N]
        apart = torch.ones(len(pairs), dtype=torch.bool, device=pairs.device).index_fill(0, met, False).nonzero()[:, 0]
        never = self.distances.weight[NEVER_MEET]
        scores += [
            self._above_none(first[a] + second[b] + never) - APART
            for a, b in map(Tensor.t, pairs[apart].split(AT_ONCE))
        ]
        return F.pad(_log_sums(torch.cat(scores).float(), torch.cat([met, apart]), len(pairs)), (1, 0))

    def _of_mentions(self, one: Tensor, other: Tensor, between: Tensor, spans: Tensor, places: Tensor) -> Tensor:
        """Of pairs of mentions, `[N, labels - 1]`."""
        (first, first_end), (second, second_end) = (spans[own].unbind(1) for own in places.unbind(1))
        beyond = second - first
        bucket = 2 * _bucket(beyond.abs()) + (beyond < 0)
        begin = torch.minimum(first_end, second_end) + 1
        bounds = torch.stack([begin, torch.maximum(first, second).maximum(begin)], 1)
        context = ops.span_pool(between, bounds, ["mean"], end_inclusive=False)
        return self._above_none(ops.pair_pool(one, other, places, ["x+y"]) + context + self.distances(bucket))

    def _above_none(self, inner: Tensor) -> Tensor:
        """Each relation's score less that of none."""
        scores = run_linear(self.relation, self.dropout(F.relu(inner)))
        return scores[:, 1:] - scores[:, :1] - UNRELATED

    def _least(self, mentions: Tensor, entities: Tensor, count: int) -> Tensor:
        """The bucket of the least distance of two entities' mentions, `[E, E]`; an odd one: the second is ahead."""
        row, first, _ = mentions.unbind(1)
        beyond = first - first[:, None]
        bucket = (2 * _bucket(beyond.abs()) + (beyond < 0)).where(row[:, None] == row, NEVER_MEET)
        pair = entities[:, None] * count + entities
        least = torch.full((count * count,), NEVER_MEET, device=first.device)
        return least.scatter_reduce(0, pair.flatten(), bucket.flatten(), "amin").view(count, count)


class SpanBERTForRelations(Relations, SpanBERTPreTrainedModel):
    """Scores the relations between entities whose mentions are given; `config.num_labels` with none, which is 0.

    Args:
        config: `SpanBERTConfig`, whose `num_labels` and `max_span_width` are read here.

    Source: the span vectors and the dropout are those of Lee et al. 2017, End-to-end Neural Coreference Resolution.

    Example:
        >>> from spanbert_kernels import SpanBERTConfig
        >>> config = SpanBERTConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        ...                         intermediate_size=16, num_labels=3)
        >>> model = SpanBERTForRelations(config)
        >>> word_starts, mentions = torch.tensor([[1, 2, 3]] * 2), torch.tensor([[0, 0, 1], [0, 2, 2], [1, 0, 0]])
        >>> output = model(torch.randint(30, (2, 5)), word_starts=word_starts, mentions=mentions,
        ...                entities=torch.tensor([0, 1, 0]), clusters=torch.tensor([0, 0]))
        >>> output.pairs.tolist(), output.logits.shape
        ([[0, 1], [1, 0]], torch.Size([2, 3]))
    """


def _bucket(numbers: Tensor) -> Tensor:
    """The bucket of each number, 0 for those below 1."""
    return torch.searchsorted(torch.tensor(BUCKETS, device=numbers.device), numbers.long(), right=True)


def _log_sums(scores: Tensor, index: Tensor, count: int) -> Tensor:
    """Log-sum-exp of the rows of `scores [N, C]` that have the same index, `[count, C]`; each has one at least."""
    most = scores.new_full((count, scores.shape[1]), -torch.inf)
    most = most.scatter_reduce(0, index[:, None].expand_as(scores), scores.detach(), "amax")
    return most + torch.zeros_like(most).index_add(0, index, (scores - most[index]).exp()).log()
