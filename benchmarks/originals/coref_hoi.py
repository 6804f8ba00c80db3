"""coref-hoi's model, as github.com/lxucs/coref-hoi computes it: a vector for each candidate, and a softmax over the
whole document for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertModel

CONFIG = {
    "max_span_width": 30, "use_features": True, "feature_emb_size": 20, "use_width_prior": True,
    "use_distance_prior": True, "use_metadata": True, "use_segment_distance": True, "model_heads": True,
    "fine_grained": True, "higher_order": "attended_antecedent", "coref_depth": 1, "ffnn_size": 3000, "ffnn_depth": 1,
    "dropout_rate": 0.3, "max_top_antecedents": 50, "max_num_extracted_spans": 3900, "top_span_ratio": 0.4,
    "max_training_sentences": 11, "loss_type": "marginalized", "mention_loss_coef": 0, "false_new_delta": 1.5,
    "genres": ["bc", "nw"],
}  # fmt: skip


def bucket_distance(offsets: Tensor) -> Tensor:
    """0 to 4 as they are, then by powers of two, at most 9."""
    logarithmic = (offsets.clamp(min=1).float().log2().floor() + 3).long()
    return torch.where(offsets <= 4, offsets, logarithmic).clamp(0, 9)


def attended_antecedent(vectors: Tensor, of_antecedents: Tensor, scores: Tensor, device: Any) -> Tensor:
    """A mean of a mention and its antecedents by the chances of their scores."""
    weights = torch.cat([torch.zeros(len(scores), 1, device=device), scores], 1).softmax(1)
    return (torch.cat([vectors.unsqueeze(1), of_antecedents], 1) * weights.unsqueeze(-1)).sum(1)


util, ho = SimpleNamespace(bucket_distance=bucket_distance), SimpleNamespace(attended_antecedent=attended_antecedent)


class CorefModel(nn.Module):
    """The model over an encoder that is given, or over the one that its config names."""

    __module__ = "model"

    def __init__(self, config: dict[str, Any], device: Any, bert: Any = None) -> None:
        super().__init__()
        self.config, self.device = config, device
        self.max_span_width = config["max_span_width"]
        self.dropout = nn.Dropout(config["dropout_rate"])
        self.bert = bert or BertModel.from_pretrained(config["bert_pretrained_name_or_path"])
        size, feature = self.bert.config.hidden_size, config["feature_emb_size"]
        span = 3 * size + feature * config["use_features"]
        features = 2 * config["use_metadata"] + config["use_features"] + config["use_segment_distance"]
        units = [config["ffnn_size"]] * config["ffnn_depth"]
        self.emb_span_width = self.table(self.max_span_width) if config["use_features"] else None
        self.emb_span_width_prior = self.table(self.max_span_width) if config["use_width_prior"] else None
        self.emb_antecedent_distance_prior = self.table(10) if config["use_distance_prior"] else None
        self.emb_genre = self.table(len(config["genres"]))
        self.emb_same_speaker = self.table(2) if config["use_metadata"] else None
        self.emb_segment_distance = self.table(config["max_training_sentences"])
        self.emb_top_antecedent_distance = self.table(10)
        self.mention_token_attn = self.network(size, [], 1) if config["model_heads"] else None
        self.span_emb_score_ffnn = self.network(span, units, 1)
        self.span_width_score_ffnn = self.network(feature, units, 1) if config["use_width_prior"] else None
        self.coarse_bilinear = self.network(span, [], span)
        self.antecedent_distance_score_ffnn = self.network(feature, [], 1) if config["use_distance_prior"] else None
        pair = 3 * span + features * feature
        self.coref_score_ffnn = self.network(pair, units, 1) if config["fine_grained"] else None
        self.gate_ffnn = self.network(2 * span, [], span) if config["coref_depth"] > 1 else None
        self.update_steps = 0

    def table(self, rows: int) -> nn.Embedding:
        return nn.Embedding(rows, self.config["feature_emb_size"])

    def network(self, size: int, hidden: Sequence[int], outputs: int) -> nn.Module:
        layers: list[nn.Module] = []
        for each in hidden:
            layers += [nn.Linear(size, each), nn.ReLU(), self.dropout]
            size = each
        last = nn.Linear(size, outputs)
        return nn.Sequential(*layers, last) if layers else last

    def candidates(self, sentence_map: Tensor) -> tuple[Tensor, Tensor]:
        """First and last tokens of all spans inside sentences."""
        tokens = len(sentence_map)
        starts = torch.arange(tokens).unsqueeze(1).repeat(1, self.max_span_width)
        ends = starts + torch.arange(self.max_span_width)
        inside = (ends < tokens) & (sentence_map[starts] == sentence_map[ends.clamp(max=tokens - 1)])
        return starts[inside], ends[inside]

    def vectors(self, hidden: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
        """Boundaries, width, and what a softmax over the document, but for the span masked, takes of its tokens."""
        parts = [hidden[starts], hidden[ends]]
        if self.emb_span_width is not None:
            parts.append(self.dropout(self.emb_span_width(ends - starts)))
        token = torch.arange(len(hidden)).unsqueeze(0).repeat(len(starts), 1)
        inside = (token >= starts.unsqueeze(1)) & (token <= ends.unsqueeze(1))
        heads = self.mention_token_attn
        scores = hidden.new_ones(len(hidden)) if heads is None else heads(hidden).squeeze(1)
        weights = (inside.to(hidden.dtype).log() + scores.unsqueeze(0)).softmax(1)
        return torch.cat([*parts, weights @ hidden], 1)

    def scored(self, vectors: Tensor, widths: Tensor) -> Tensor:
        scores: Tensor = self.span_emb_score_ffnn(vectors).squeeze(1)
        if self.span_width_score_ffnn is not None:
            scores = scores + self.span_width_score_ffnn(self.emb_span_width_prior.weight).squeeze(1)[widths]  # type: ignore[union-attr]
        return scores

    def _extract_top_spans(
        self, order: Sequence[int], starts: Sequence[int], ends: Sequence[int], count: int
    ) -> list[int]:
        """The first of an order that do not cross one before; the first again where there are too few."""
        kept: list[int] = []
        latest_end: dict[int, int] = {}
        earliest_start: dict[int, int] = {}
        for row in order:
            if len(kept) >= count:
                break
            start, end = starts[row], ends[row]
            if any(
                (token > start and latest_end.get(token, -1) > end)
                or (token < end and 0 <= earliest_start.get(token, -1) < start)
                for token in range(start, end + 1)
            ):
                continue
            kept.append(row)
            latest_end[start] = max(end, latest_end.get(start, -1))
            earliest_start[end] = min(start, earliest_start.get(end, start))
        kept.sort(key=lambda row: (starts[row], ends[row]))
        return kept + kept[:1] * (count - len(kept))

    def mentions(self, hidden: Tensor, sentence_map: Tensor) -> tuple[Tensor, ...]:
        """Candidates and their scores; which are kept, with their vectors."""
        starts, ends = self.candidates(sentence_map)
        vectors = self.vectors(hidden, starts, ends)
        scores = self.scored(vectors, ends - starts)
        count = int(min(self.config["max_num_extracted_spans"], self.config["top_span_ratio"] * len(hidden)))
        order = torch.argsort(scores, descending=True).tolist()
        kept = torch.tensor(self._extract_top_spans(order, starts.tolist(), ends.tolist(), count))
        return starts, ends, scores, kept, vectors[kept]

    def coarse(self, vectors: Tensor, own: Tensor) -> tuple[Tensor, ...]:
        """The best antecedents by their coarse scores: scores, which, distances, and whether they come before."""
        place = torch.arange(len(vectors))
        offsets = place.unsqueeze(1) - place.unsqueeze(0)
        before = offsets >= 1
        scores = own.unsqueeze(1) + own.unsqueeze(0)
        scores = scores + self.dropout(self.coarse_bilinear(vectors)) @ self.dropout(vectors.transpose(0, 1))
        scores = scores + before.to(scores.dtype).log()
        if self.antecedent_distance_score_ffnn is not None:
            weight = self.dropout(self.emb_antecedent_distance_prior.weight)  # type: ignore[union-attr]
            scores = scores + self.antecedent_distance_score_ffnn(weight).squeeze(1)[util.bucket_distance(offsets)]
        best, index = scores.topk(min(len(vectors), self.config["max_top_antecedents"]))
        return best, index, offsets.gather(1, index), before.gather(1, index)

    def forward(self, *arguments: Any) -> Any:
        return self.get_predictions_and_loss(*arguments)

    def get_predictions_and_loss(
        self,
        input_ids: Tensor,
        input_mask: Tensor,
        speaker_ids: Tensor,
        sentence_len: Any,
        genre: Tensor,
        sentence_map: Tensor,
        is_training: Any,
        gold_starts: Tensor | None = None,
        gold_ends: Tensor | None = None,
        gold_mention_cluster_map: Tensor | None = None,
    ) -> Any:
        config, mask = self.config, input_mask.bool()
        hidden = self.bert(input_ids, attention_mask=input_mask)[0][mask]
        starts, ends, scores, kept, vectors = self.mentions(hidden, sentence_map)
        own, top_starts = scores[kept], starts[kept]
        fast, index, offsets, before = self.coarse(vectors, own)
        found = fast
        if config["fine_grained"]:
            features = []
            if config["use_metadata"]:
                speakers = speaker_ids[mask][top_starts]
                features.append(self.emb_same_speaker((speakers.unsqueeze(1) == speakers[index]).long()))  # type: ignore[misc]
                features.append(self.emb_genre(genre)[None, None].repeat(*index.shape, 1))
            if config["use_segment_distance"]:
                segments = torch.arange(len(mask)).unsqueeze(1).repeat(1, mask.shape[1])[mask][top_starts]
                distance = (segments.unsqueeze(1) - segments[index]).clamp(0, config["max_training_sentences"] - 1)
                features.append(self.emb_segment_distance(distance))
            if config["use_features"]:
                features.append(self.emb_top_antecedent_distance(util.bucket_distance(offsets)))
            for depth in range(config["coref_depth"]):
                other = vectors[index]
                target = vectors.unsqueeze(1).repeat(1, index.shape[1], 1)
                pair = torch.cat([target, other, target * other, self.dropout(torch.cat(features, 2))], 2)
                found = self.coref_score_ffnn(pair).squeeze(2) + fast  # type: ignore[misc]
                if depth != config["coref_depth"] - 1:
                    refined = getattr(ho, config["higher_order"])(vectors, other, found, self.device)
                    gate = torch.sigmoid(self.gate_ffnn(torch.cat([vectors, refined], 1)))  # type: ignore[misc]
                    vectors = gate * refined + (1 - gate) * vectors
        found = torch.cat([torch.zeros(len(kept), 1), found], 1)
        outputs = [starts, ends, scores, top_starts, ends[kept], index, found]
        if gold_mention_cluster_map is None:
            return tuple(outputs)
        same = (starts[kept].unsqueeze(1) == gold_starts) & (ends[kept].unsqueeze(1) == gold_ends)
        clusters = (same.long() * gold_mention_cluster_map).sum(1)
        return outputs, self.loss(found, own, clusters, index, before)

    def loss(self, scores: Tensor, own: Tensor, clusters: Tensor, index: Tensor, before: Tensor) -> Tensor:
        config = self.config
        of_antecedent = clusters[index] + (before.long() - 1) * 100000
        right = (of_antecedent == clusters.unsqueeze(1)) & (clusters > 0).unsqueeze(1)
        none = ~right.any(1, keepdim=True)
        log_right = torch.cat([none, right], 1).to(scores.dtype).log()
        if config["loss_type"] == "marginalized":
            loss = (scores.logsumexp(1) - (scores + log_right).logsumexp(1)).sum()
        else:
            allowed = torch.cat([torch.ones(len(before), 1, dtype=torch.bool), before], 1)
            scores = scores + allowed.to(scores.dtype).log()
            (highest, place), (of_right, right_place) = scores.max(1), (scores + log_right).max(1)
            delta = torch.full_like(highest, (3 - config["false_new_delta"]) / 2)
            delta = delta - (1 - config["false_new_delta"]) * ((place == 0) & ~none.squeeze(1)).to(scores.dtype)
            loss = ((1 + highest - of_right) * delta * (place != right_place)).sum()
        if config["mention_loss_coef"]:
            chance = own.sigmoid()
            log_chances = chance[clusters > 0].log().sum() + (1 - chance[clusters == 0]).log().sum()
            loss = loss - log_chances * config["mention_loss_coef"]
        return loss
