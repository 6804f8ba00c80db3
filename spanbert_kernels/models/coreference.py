"""Coreference over `SpanBERTModel`: mention scores of all spans, the best kept, an antecedent chosen for each.

Of T words about T * width spans are scored by `ops.span_score`; `ops.prune_spans` keeps a share of T, none of which
cross. For a kept span i and one before it, j, of the same document

    score(i, j) = mention(i) + mention(j) + g_i W g_j + feed_forward([a_i; a_j; a_i * a_j; distance]),

the last part for the `antecedents` best by the others alone; no antecedent scores 0. The loss is the negative logarithm
of what falls to right antecedents.

Source: Lee et al. 2018, Higher-order Coreference Resolution with Coarse-to-fine Inference, its first order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils import ModelOutput

from spanbert_kernels import ops
from spanbert_kernels.models.modeling import SpanBERTPreTrainedModel
from spanbert_kernels.models.renamed import renamed_argument
from spanbert_kernels.models.spans import PARTS, WIDTH_SIZE, SpanModel
from spanbert_kernels.nn.linear import run_linear
from spanbert_kernels.ops import products

PAIR_SIZE = 128
DISTANCES = (1, 2, 3, 4, 8, 16, 32, 64, 128)  # kept spans between, the first number of each bucket
NO_ENTITY = -1


@dataclass
class CoreferenceOutput(ModelOutput):
    """Kept spans `[K, 2]`, packed positions of words, the last one included; their mention scores `[K]`; the number of
    each one's antecedent among them `[K]`, -1 for none; its candidates `earlier [K, C]`, the scores of the `links`;
    and the numbers of the `kept` ones among all spans `[K]`. `loss` is the sum of `mention_loss`, a mean over words,
    and `link_loss`, a mean over kept spans.
    """

    loss: Tensor | None = None
    spans: Tensor | None = None
    scores: Tensor | None = None
    antecedents: Tensor | None = None
    earlier: Tensor | None = None
    links: Tensor | None = None
    kept: Tensor | None = None
    mention_loss: Tensor | None = None
    link_loss: Tensor | None = None


def kept_spans(words: Tensor, config: Any) -> Tensor:
    """How many spans are kept of documents of so many words `[D]`, int64 `[D]`.

    Example:
        >>> from spanbert_kernels import SpanBERTConfig
        >>> kept_spans(torch.tensor([5, 0]), SpanBERTConfig(kept_spans_share=0.3)).tolist()
        [2, 0]
    """
    return (words * config.kept_spans_share).ceil().long()


class Coreference(SpanModel):
    """Mentions and their antecedents, on any encoder."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        size = config.hidden_size
        span_size = 3 * size + WIDTH_SIZE
        self.mention_hidden = nn.Linear(span_size, size)
        self.mention_score = nn.Linear(size, 1)
        self.coarse = nn.Linear(span_size, span_size, bias=False)
        self.vector = nn.Linear(span_size, PAIR_SIZE)
        self.own = nn.Linear(PAIR_SIZE, PAIR_SIZE)
        self.other = nn.Linear(PAIR_SIZE, PAIR_SIZE, bias=False)
        self.product = nn.Linear(PAIR_SIZE, PAIR_SIZE, bias=False)
        self.distances = nn.Embedding(len(DISTANCES), PAIR_SIZE)
        self.fine = nn.Linear(PAIR_SIZE, 1)
        self.post_init()

    @renamed_argument("columns", "word_starts")
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        word_starts: Tensor | None = None,
        documents: Tensor | None = None,
        mentions: Tensor | None = None,
        entities: Tensor | None = None,
        keep: Tensor | None = None,
        **kwargs: Any,
    ) -> CoreferenceOutput:
        """Kept spans and antecedents; with mentions, the loss, a mean over words and kept spans.

        Args:
            input_ids: `[B, L]`, windows of documents.
            attention_mask: `[B, L]`.
            word_starts: `[B, W]`, the column of each word's first piece, -1 where there is no word.
            documents: `[B]`, ascending: windows with one number have antecedents in each other; by default all rows
                are of one document.
            mentions: `[M, 3]`: row, first and last word; those wider than `max_span_width` are passed over.
            entities: `[M]`, numbers from 0 on; mentions with the same number are of one entity.
            keep: `[K]`, ascending numbers of spans to keep in the place of the best, such as another pass' `kept`.
            kwargs: see `SpanBERTModel.forward`.

        Raises:
            ValueError: `word_starts` are missing, or `mentions` come without `entities`.
        """
        if (mentions is None) != (entities is None):
            raise ValueError("mentions and entities come together")
        words, offsets = self.words(input_ids, attention_mask, word_starts, **kwargs)  # [T, H]
        plan, spans = self.all_spans(offsets)
        attention = self.attention(words)[:, 0]
        scores = ops.span_score(
            words, plan, PARTS, self.mention_hidden.weight, self.mention_hidden.bias, self.mention_score.weight[0],
            self.mention_score.bias, attention, self.widths.weight,
        )  # fmt: skip
        if documents is None:
            documents = torch.zeros(len(offsets) - 1, dtype=torch.long, device=words.device)
        cu_documents = F.pad(torch.bincount(documents, weights=offsets.diff()).long().cumsum(0), (1, 0))
        budget = kept_spans(cu_documents.diff(), self.config)
        kept = ops.prune_spans(spans, scores.detach(), budget, cu_seqlens=cu_documents) if keep is None else keep
        chosen, own = spans[kept], scores[kept]
        pooled = self.dropout(ops.span_pool(words, chosen, PARTS, attention, self.widths.weight))  # [K, D]
        document = torch.searchsorted(cu_documents, chosen[:, 0].contiguous(), right=True)
        earlier, pair_scores = self._antecedents(pooled, own, document)  # [K, C]
        best = pair_scores.max(1)
        antecedents = earlier.gather(1, best.indices[:, None])[:, 0].where(best.values > 0, -1)
        loss = mention_loss = link_loss = None
        if mentions is not None and entities is not None:
            entity = self.of_spans(mentions, entities, offsets, spans, NO_ENTITY)
            is_mention = (entity != NO_ENTITY).to(scores.dtype)
            found = F.binary_cross_entropy_with_logits(scores, is_mention, reduction="sum")
            mention_loss = found / max(len(words), 1)
            link_loss = self._link_loss(entity[kept], earlier, pair_scores) / max(len(kept), 1)
            loss = mention_loss + link_loss
        return CoreferenceOutput(
            *(loss, chosen, own, antecedents),
            earlier=earlier,
            links=pair_scores,
            kept=kept,
            mention_loss=mention_loss,
            link_loss=link_loss,
        )

    def _antecedents(self, pooled: Tensor, own: Tensor, document: Tensor) -> tuple[Tensor, Tensor]:
        """Of each kept span the candidates before it and their scores; -inf where there are fewer than C."""
        place = torch.arange(len(pooled), device=pooled.device)
        allowed = (place[:, None] > place) & (document[:, None] == document)
        coarse = (
            products.linear(run_linear(self.coarse, pooled), pooled) / pooled.shape[1] ** 0.5 + own[:, None] + own
        )  # [K, K]
        coarse = coarse.masked_fill(~allowed, -torch.inf)
        best = coarse.topk(min(self.config.max_antecedents, len(pooled)), 1)
        earlier = best.indices  # [K, C]
        vectors = run_linear(self.vector, pooled)
        buckets = torch.tensor(DISTANCES, device=place.device)
        distance = torch.searchsorted(buckets, (place[:, None] - earlier).clamp(min=1), right=True) - 1
        inner = (
            run_linear(self.own, vectors)[:, None]
            + run_linear(self.other, vectors)[earlier]
            + run_linear(self.product, vectors[:, None] * vectors[earlier])
            + self.distances(distance)
        )  # [K, C, P]
        return earlier, best.values + self.fine(self.dropout(F.relu(inner)))[..., 0]

    def _link_loss(self, entity: Tensor, earlier: Tensor, pair_scores: Tensor) -> Tensor:
        """Negative logarithm of the share of right antecedents; of none, where no candidate is right."""
        right = (entity[:, None] == entity[earlier]) & (entity[:, None] != NO_ENTITY) & (pair_scores > -torch.inf)
        nothing = pair_scores.new_zeros(len(entity), 1)
        scores = torch.cat((nothing, pair_scores), 1).float()
        right = torch.cat((~right.any(1, keepdim=True), right), 1)
        return (scores.logsumexp(1) - scores.masked_fill(~right, -torch.inf).logsumexp(1)).sum()


class SpanBERTForCoreference(Coreference, SpanBERTPreTrainedModel):
    """Finds mentions of up to `config.max_span_width` words, and for each an earlier one of the same entity or none.

    Args:
        config: `SpanBERTConfig`, whose `max_span_width`, `kept_spans_share` and `max_antecedents` are read here.

    Source: Lee et al. 2018, Higher-order Coreference Resolution with Coarse-to-fine Inference, its first order.

    Example:
        >>> from spanbert_kernels import SpanBERTConfig
        >>> config = SpanBERTConfig(vocab_size=30, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        ...                         intermediate_size=16, max_span_width=2)
        >>> model = SpanBERTForCoreference(config).eval()
        >>> output = model(torch.randint(30, (2, 5)), word_starts=torch.tensor([[1, 2, 3], [1, 2, 3]]))
        >>> output.spans.shape, bool((output.antecedents < torch.arange(3)).all())
        (torch.Size([3, 2]), True)
    """
