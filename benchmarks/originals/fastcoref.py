"""fastcoref's models, FCoref and LingMess, as github.com/shon-otmazgin/fastcoref computes them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from originals.start_to_end import StartToEndModel, TokenLayer, masked

STOPWORDS = {"the", "a", "of"}
CATEGORIES = {"pron-pron-comp": 0, "pron-pron-no-comp": 1, "pron-ent": 2, "match": 3, "contain": 4, "other": 5}
PRONOUNS = {"he": 0, "him": 0, "she": 1, "her": 1, "it": 2, "its": 2}


def get_pronoun_id(words: set[str]) -> int:
    """The group of pronouns that a mention of one word is of, or -1."""
    return PRONOUNS.get(next(iter(words)), -1) if len(words) == 1 else -1


def get_category_id(mention: tuple[set[str], int], antecedent: tuple[set[str], int]) -> int:
    """Of two mentions' words and pronouns."""
    (words, pronoun), (others, other) = mention, antecedent
    if pronoun > -1 and other > -1:
        return CATEGORIES["pron-pron-comp" if pronoun == other else "pron-pron-no-comp"]
    if pronoun > -1 or other > -1:
        return CATEGORIES["pron-ent"]
    if words == others:
        return CATEGORIES["match"]
    return CATEGORIES["contain" if len(words | others) == max(len(words), len(others)) else "other"]


class FCorefModel(StartToEndModel):
    """The small, fast model."""

    __module__ = "fastcoref.coref_models.modeling_fcoref"

    def forward_transformer(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Segments of equal length side by side, then the rest of each document."""
        documents, _, length = batch["input_ids"].shape
        ids, mask = (batch[name].view(-1, length) for name in ("input_ids", "attention_mask"))
        hidden = self.bert(ids, attention_mask=mask).last_hidden_state
        hidden, mask = hidden.view(documents, -1, hidden.shape[-1]), mask.view(documents, -1)
        rest = batch["leftovers"]
        if len(rest["input_ids"]) > 0:
            more = self.bert(rest["input_ids"], attention_mask=rest["attention_mask"]).last_hidden_state
            hidden, mask = torch.cat([hidden, more], 1), torch.cat([mask, rest["attention_mask"]], 1)
        return hidden, mask

    def forward(
        self,
        batch: dict[str, Any],
        gold_clusters: Tensor | None = None,
        topk_1d_indices: Tensor | None = None,
        return_all_outputs: bool = False,
    ) -> tuple[Any, ...]:
        found = self.head(*self.forward_transformer(batch), topk_1d_indices)
        outputs = found[:4] if return_all_outputs else ()
        outputs = outputs if topk_1d_indices is None else (found[4], *outputs)
        return (*self.loss(found, gold_clusters), *outputs)


class LingMessModel(FCorefModel):
    """The large model: an expert for each kind of pair, and one for all."""

    __module__ = "fastcoref.coref_models.modeling_lingmess"

    def make_antecedents(self, size: int) -> None:
        self.num_cats = len(CATEGORIES) + 1
        for name in ("start", "end"):
            mlp = TokenLayer(size, self.ffnn_size * self.num_cats, self.dropout_prob)
            setattr(self, f"coref_{name}_all_mlps", mlp)
        for name in ("s2s", "e2e", "s2e", "e2s"):
            weights = torch.randn(self.num_cats, self.ffnn_size, self.ffnn_size) / self.ffnn_size**0.5
            setattr(self, f"antecedent_{name}_all_weights", nn.Parameter(weights))
            biases = torch.randn(self.num_cats, self.ffnn_size) / self.ffnn_size**0.5
            setattr(self, f"antecedent_{name}_all_biases", nn.Parameter(biases))

    def _calc_coref_logits(self, start: Tensor, end: Tensor) -> Tensor:
        starts, ends = (
            mlp(states).unflatten(-1, (self.num_cats, -1)).permute(0, 2, 1, 3)
            for mlp, states in ((self.coref_start_all_mlps, start), (self.coref_end_all_mlps, end))
        )
        scores: Any = 0
        for name, left, right in (
            ("s2s", starts, starts), ("e2e", ends, ends), ("s2e", starts, ends), ("e2s", ends, starts)
        ):  # fmt: skip
            weights, biases = (getattr(self, f"antecedent_{name}_all_{kind}") for kind in ("weights", "biases"))
            scores = scores + torch.einsum("bnkf,nfg,bnlg->bnkl", left, weights, right)
            scores = scores + torch.einsum("bnkf,nf->bnk", right, biases).unsqueeze(-2)
        return scores

    def _mask_antecedent_logits(
        self, scores: Tensor, span_mask: Tensor, categories_masks: Tensor | None = None
    ) -> Tensor:
        allowed = torch.ones_like(scores, dtype=self.dtype).tril(-1)
        if categories_masks is None:
            return masked(scores, allowed * span_mask.unsqueeze(-1))
        return masked(scores, allowed * span_mask.unsqueeze(1).unsqueeze(-1) * categories_masks)

    def _get_categories_labels(
        self, tokens: Any, subtoken_map: Any, new_token_map: Any, span_starts: Tensor, span_ends: Tensor
    ) -> tuple[Tensor, Tensor]:
        batch, count = span_starts.shape
        labels = torch.full((batch, count, count), -1.0, dtype=torch.float64)
        for row in range(batch):
            spans = []
            for start, end in zip(span_starts[row].tolist(), span_ends[row].tolist(), strict=True):
                places = [new_token_map[row][each] for each in set(subtoken_map[row][start : end + 1]) - {None}]
                words = {tokens[row][each].lower() for each in places if each is not None}
                spans.append((words - STOPWORDS, get_pronoun_id(words)))
            for i in range(count):
                for j in range(i):
                    labels[row, i, j] = get_category_id(spans[i], spans[j])
        masks = [labels == number for number in range(self.num_cats - 1)] + [labels != -1]
        return labels, torch.stack(masks, 1).int()

    def _get_clusters_labels(self, starts: Tensor, ends: Tensor, clusters: Tensor) -> Tensor:
        return self._get_cluster_labels_after_pruning(starts, ends, clusters)[..., :-1].double()

    def _get_all_labels(self, clusters_labels: Tensor, categories_masks: Tensor) -> Tensor:
        by_category = clusters_labels.unsqueeze(1).repeat(1, self.num_cats, 1, 1) * categories_masks
        labels = torch.cat([by_category, clusters_labels.unsqueeze(1)], 1)
        return torch.cat([labels, 1 - labels.sum(-1, keepdim=True).bool().double()], -1)

    def _get_marginal_log_likelihood_loss(self, logits: Tensor, labels: Tensor, span_mask: Tensor) -> Tensor:
        losses = (logits.logsumexp(-1) - masked(logits, labels).logsumexp(-1)) * span_mask.unsqueeze(1)
        return losses.mean(-1).mean(0).sum()

    def forward(  # type: ignore[override]
        self, batch: dict[str, Any], gold_clusters: Tensor | None = None, return_all_outputs: bool = False
    ) -> tuple[Any, ...]:
        hidden, attention_mask = self.forward_transformer(batch)
        mention_logits = self._calc_mention_logits(self.start_mention_mlp(hidden), self.end_mention_mlp(hidden))
        starts, ends, span_mask, sums = self._prune_topk_mentions(mention_logits, attention_mask)
        maps = (batch[name] for name in ("tokens", "subtoken_map", "new_token_map"))
        categories, masks = self._get_categories_labels(*maps, starts, ends)
        size = (*starts.shape, hidden.shape[-1])
        left, right = (torch.gather(hidden, 1, each.unsqueeze(-1).expand(size)) for each in (starts, ends))
        by_category = self._calc_coref_logits(left, right)
        logits = self._mask_antecedent_logits((by_category * masks).sum(1) + sums, span_mask)
        by_category = self._mask_antecedent_logits(by_category + sums.unsqueeze(1), span_mask, masks)
        logits, by_category = (
            torch.cat([each, torch.zeros(*each.shape[:-1], 1, device=self.device)], -1)
            for each in (logits, by_category)
        )
        outputs: tuple[Any, ...] = (starts, ends, mention_logits, logits) if return_all_outputs else ()
        if gold_clusters is not None:
            clusters = self._get_clusters_labels(starts, ends, gold_clusters)
            all_logits = torch.cat([by_category, logits.unsqueeze(1)], 1)
            labels = self._get_all_labels(clusters, masks)
            loss = self._get_marginal_log_likelihood_loss(all_logits, labels, span_mask)
            outputs = (loss, *outputs, categories, clusters)
        return outputs
