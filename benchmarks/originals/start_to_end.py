"""What start-to-end coreference models compute: scores of all pairs of tokens, of which a band has a meaning.

The heads of fastcoref (github.com/shon-otmazgin/fastcoref) and s2e-coref (github.com/yuvalkirstain/s2e-coref) over an
encoder, with their names of parameters and methods.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel, BertPreTrainedModel

MASKED = 10000.0


def masked(scores: Tensor, allowed: Tensor) -> Tensor:
    """-10000 added where a score is ruled out."""
    return (scores - (1 - allowed.float()) * MASKED).clamp(-MASKED, MASKED)


class TokenLayer(nn.Module):
    """A layer of a token's state."""

    def __init__(self, size: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dense = nn.Linear(size, outputs)
        self.layer_norm = nn.LayerNorm(outputs, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        states: Tensor = self.dropout(self.layer_norm(F.gelu(self.dense(hidden))))
        return states


class StartToEndModel(BertPreTrainedModel):
    """Mentions: scores `[B, L, L]` of starts and ends, of which the best are kept."""

    encoder_name = "bert"

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        head = SimpleNamespace(**config.coref_head)
        self.max_span_length, self.top_lambda = head.max_span_length, head.top_lambda
        self.ffnn_size, self.dropout_prob, size = head.ffnn_size, head.dropout_prob, config.hidden_size
        setattr(self, self.encoder_name, BertModel(config, add_pooling_layer=False))
        self.start_mention_mlp = TokenLayer(size, self.ffnn_size, self.dropout_prob)
        self.end_mention_mlp = TokenLayer(size, self.ffnn_size, self.dropout_prob)
        self.mention_start_classifier = nn.Linear(self.ffnn_size, 1)
        self.mention_end_classifier = nn.Linear(self.ffnn_size, 1)
        self.mention_s2e_classifier = nn.Linear(self.ffnn_size, self.ffnn_size)
        self.make_antecedents(size)
        self.post_init()

    def make_antecedents(self, size: int) -> None:
        """The layers that score pairs of mentions."""
        for name in ("start", "end"):
            setattr(self, f"{name}_coref_mlp", TokenLayer(size, self.ffnn_size, self.dropout_prob))
        for name in ("s2s", "e2e", "s2e", "e2s"):
            setattr(self, f"antecedent_{name}_classifier", nn.Linear(self.ffnn_size, self.ffnn_size))

    def _get_mention_mask(self, scores: Tensor) -> Tensor:
        return torch.ones_like(scores, dtype=self.dtype).triu().tril(self.max_span_length - 1)

    def _calc_mention_logits(self, start: Tensor, end: Tensor) -> Tensor:
        joint = torch.matmul(self.mention_s2e_classifier(start), end.permute(0, 2, 1))
        of_start = self.mention_start_classifier(start).squeeze(-1)
        scores = joint + of_start.unsqueeze(-1) + self.mention_end_classifier(end).squeeze(-1).unsqueeze(-2)
        return masked(scores, self._get_mention_mask(scores))

    def _prune_topk_mentions(
        self, mention_logits: Tensor, attention_mask: Tensor, topk_1d_indices: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """First and last tokens, which of them are real, and sums of two mentions' scores."""
        batch, length, _ = mention_logits.shape
        k = (attention_mask.sum(-1) * self.top_lambda).int()
        most = int(k.max())
        if topk_1d_indices is None:
            topk_1d_indices = mention_logits.view(batch, -1).topk(most, -1).indices
        span_mask = (torch.arange(most, device=k.device) < k[:, None]).int()
        index = (topk_1d_indices * span_mask + (1 - span_mask) * (length**2 - 1)).sort(-1).values
        starts, ends = index // length, index % length
        scores = mention_logits[torch.arange(batch)[:, None], starts, ends]
        return starts, ends, span_mask, scores.unsqueeze(-1) + scores.unsqueeze(-2)

    def _calc_coref_logits(self, start: Tensor, end: Tensor) -> Tensor:
        forms = (
            (self.antecedent_s2e_classifier, start, end),
            (self.antecedent_e2s_classifier, end, start),
            (self.antecedent_s2s_classifier, start, start),
            (self.antecedent_e2e_classifier, end, end),
        )
        products = [torch.matmul(classifier(left), right.permute(0, 2, 1)) for classifier, left, right in forms]
        return products[0] + products[1] + products[2] + products[3]

    def _mask_antecedent_logits(self, scores: Tensor, span_mask: Tensor) -> Tensor:
        allowed = torch.ones_like(scores, dtype=self.dtype).tril(-1)
        return masked(scores, allowed * span_mask.unsqueeze(-1))

    def _get_cluster_labels_after_pruning(self, starts: Tensor, ends: Tensor, clusters: Tensor) -> Tensor:
        """1 for the right antecedents, and in the last column for a mention that has none."""
        batch, count = starts.shape
        labels = torch.zeros(batch, count, count + 1)
        for row in range(batch):
            cluster_of = {
                tuple(mention): number
                for number, cluster in enumerate(clusters[row].tolist())
                for mention in cluster
                if -1 not in mention
            }
            found = [cluster_of.get(pair) for pair in zip(starts[row].tolist(), ends[row].tolist(), strict=True)]
            for i, own in enumerate(found):
                for j in range(i):
                    labels[row, i, j] = own is not None and own == found[j]
        labels[:, :, -1] = 1 - labels.sum(-1).bool().float()
        return labels.to(starts.device)

    def _get_marginal_log_likelihood_loss(self, logits: Tensor, labels: Tensor, span_mask: Tensor) -> Tensor:
        losses = (logits.logsumexp(-1) - masked(logits, labels).logsumexp(-1)) * span_mask
        return (losses.sum(-1) / losses.shape[-1]).mean()

    def head(self, hidden: Tensor, attention_mask: Tensor, chosen: Tensor | None = None) -> tuple[Tensor, ...]:
        """Starts, ends, all mention scores, pair scores, and which mentions are real."""
        start, end = self.start_mention_mlp(hidden), self.end_mention_mlp(hidden)
        mention_logits = self._calc_mention_logits(start, end)
        starts, ends, span_mask, sums = self._prune_topk_mentions(mention_logits, attention_mask, chosen)
        size = (*starts.shape, self.ffnn_size)
        left = torch.gather(self.start_coref_mlp(hidden), 1, starts.unsqueeze(-1).expand(size))
        right = torch.gather(self.end_coref_mlp(hidden), 1, ends.unsqueeze(-1).expand(size))
        logits = self._mask_antecedent_logits(sums + self._calc_coref_logits(left, right), span_mask)
        logits = torch.cat([logits, torch.zeros(*starts.shape, 1, device=self.device)], -1)
        return starts, ends, mention_logits, logits, span_mask

    def loss(self, found: tuple[Tensor, ...], clusters: Tensor | None) -> tuple[Tensor, ...]:
        if clusters is None:
            return ()
        starts, ends, _, logits, span_mask = found
        labels = self._get_cluster_labels_after_pruning(starts, ends, clusters)
        return (self._get_marginal_log_likelihood_loss(logits, labels, span_mask),)


class S2E(StartToEndModel):
    """The model of s2e-coref."""

    __module__ = "modeling"
    encoder_name = "longformer"

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        gold_clusters: Tensor | None = None,
        return_all_outputs: bool = False,
    ) -> tuple[Any, ...]:
        found = self.head(self.longformer(input_ids, attention_mask=attention_mask)[0], attention_mask)
        starts, ends, mention_logits, logits, _ = found
        outputs = (starts, ends, logits, mention_logits) if return_all_outputs else ()
        loss = self.loss(found, gold_clusters)
        return (*loss, *outputs, *({"loss": each} for each in loss))
