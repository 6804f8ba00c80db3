"""coref-hoi (github.com/lxucs/coref-hoi), e2e-coref in PyTorch: mentions scored, pruned and paired without the vectors
of all candidates, nor a row of attention over the document for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spanbert_kernels import ops
from spanbert_kernels.acceleration.span_layers import OriginalPath, Replacement
from spanbert_kernels.nn.linear import run_linear
from spanbert_kernels.ops.choices import Part

# Of dropout on the embedding of each width: a span takes one of them.
DRAWS = 32
REFINED = ("attended_antecedent", "max_antecedent", "entity_equalization", "span_clustering")


@dataclass(frozen=True)
class ScoredMentions:
    """Candidates `[N, 2]` and their scores `[N]`; those kept `[K]`, their tokens, vectors `[K, S]` and scores `[K]`."""

    candidates: Tensor
    candidate_scores: Tensor
    kept: Tensor
    spans: Tensor
    vectors: Tensor
    scores: Tensor


@dataclass(frozen=True)
class Antecedents:
    """The best C of each mention by their coarse scores, `[K, C]` each: which, the scores, how many mentions before,
    and whether before at all.
    """

    index: Tensor
    scores: Tensor
    offsets: Tensor
    mask: Tensor


def mentions(model: Any, hidden: Tensor, sentence_map: Tensor) -> ScoredMentions:
    """All spans of up to `max_span_width` tokens inside sentences, and the best that do not cross.

    Args:
        model: a `CorefModel`.
        hidden: `[T, H]`, the document's tokens.
        sentence_map: `[T]`, the sentence of each token.
    """
    config, tokens = model.config, len(hidden)
    if bool((sentence_map.diff() < 0).any()):
        raise OriginalPath("sentences whose numbers do not ascend")
    borders = (sentence_map.diff() != 0).nonzero()[:, 0] + 1
    plan = ops.enumerate_spans(F.pad(F.pad(borders, (1, 0)), (0, 1), value=tokens), model.max_span_width)
    candidates = plan.pairs()
    parts: list[Part] = ["start", "end"]
    given: dict[str, Any] = {}
    draw = None
    if config["use_features"]:
        parts.append("width")
        widths = model.emb_span_width.weight
        if model.training and model.dropout.p > 0:
            draw = torch.randint(DRAWS, (len(candidates),), device=hidden.device)
            given["width_embedding"] = model.dropout(widths.repeat(DRAWS, 1))
        else:
            given["width_embedding"] = widths
    if config["model_heads"]:
        given["scores"] = model.mention_token_attn(hidden)[:, 0]
    parts.append("attention" if config["model_heads"] else "mean")

    def rows_of(chosen: Tensor | slice) -> dict[str, Any]:
        """Where dropout acts, the rows of the spans' widths in the table of draws."""
        if draw is None:
            return {}
        own = draw[chosen]
        return {"width_rows": lambda width: width - 1 + model.max_span_width * own}

    first, _, dropout, last = model.span_emb_score_ffnn
    scores = ops.span_score(
        hidden, plan, parts, first.weight, first.bias, last.weight[0], last.bias, **given, **rows_of(slice(None)),
        dropout_p=dropout.p if model.training else 0.0,
    )  # fmt: skip
    if config["use_width_prior"]:
        prior = model.span_width_score_ffnn(model.emb_span_width_prior.weight)[:, 0]
        scores = scores + F.embedding(candidates[:, 1] - candidates[:, 0], prior[:, None])[:, 0]
    count = int(min(config["max_num_extracted_spans"], config["top_span_ratio"] * tokens))
    kept = ops.prune_spans(plan, scores.detach(), count)
    if 0 < len(kept) < count:  # like the package
        kept = torch.cat([kept, kept[:1].expand(count - len(kept))])
    spans = candidates[kept]
    vectors = ops.span_pool(hidden, spans, parts, **given, **rows_of(kept))
    return ScoredMentions(candidates, scores, kept, spans, vectors, F.embedding(kept, scores[:, None])[:, 0])


def antecedents(model: Any, found: ScoredMentions) -> Antecedents:
    """The coarse scores of a mention with those before it, and the best of them."""
    config, count = model.config, len(found.kept)
    place = torch.arange(count, device=found.kept.device)
    offsets = place[:, None] - place
    before = offsets >= 1
    source = model.dropout(run_linear(model.coarse_bilinear, found.vectors))
    scores = source @ model.dropout(found.vectors.T) + found.scores[:, None] + found.scores
    if config["use_distance_prior"]:
        weight = model.dropout(model.emb_antecedent_distance_prior.weight)
        prior = model.antecedent_distance_score_ffnn(weight)[:, 0]
        scores = scores + F.embedding(_package(model)["util"].bucket_distance(offsets), prior[:, None])[..., 0]
    scores = scores + before.to(scores.dtype).log()
    best = scores.topk(min(count, config["max_top_antecedents"]))
    return Antecedents(best.indices, best.values, offsets.gather(1, best.indices), before.gather(1, best.indices))


def fine_scores(model: Any, vectors: Tensor, index: Tensor, features: Tensor) -> Tensor:
    """`coref_score_ffnn` of a mention, an antecedent, their product and features `[K, C, E]`: the first layer's parts
    of the two are computed once a mention.
    """
    first, *rest = model.coref_score_ffnn
    of_mention, of_antecedent, of_product, of_features = first.weight.split(
        [vectors.shape[1]] * 3 + [features.shape[-1]], 1
    )
    units = F.linear(vectors[:, None] * F.embedding(index, vectors), of_product)
    units = units + F.linear(vectors, of_mention, first.bias)[:, None] + F.linear(features, of_features)
    units = units + F.embedding(index, F.linear(vectors, of_antecedent))
    for layer in rest:
        units = layer(units)
    return units[..., 0]


def predictions_and_loss(model: Any) -> Callable[..., Any]:
    """What stands for `CorefModel.get_predictions_and_loss`."""

    def method(
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
        real = input_mask.bool()
        hidden = model.bert(input_ids, attention_mask=input_mask)[0][real]
        found = mentions(model, hidden, sentence_map)
        best = antecedents(model, found)
        scores = best.scores
        if model.config["fine_grained"]:
            segments = torch.arange(len(input_ids), device=real.device)[:, None].expand_as(real)[real]
            features = _features(model, found, best, speaker_ids[real], genre, segments)
            scores = _refined(model, found.vectors, best, features)
        scores = F.pad(scores, (1, 0))
        outputs = [
            *found.candidates.T, found.candidate_scores, *found.spans.T, best.index, scores
        ]  # fmt: skip
        if gold_mention_cluster_map is None:
            return tuple(outputs)
        assert gold_starts is not None
        assert gold_ends is not None
        clusters = _clusters_of(found.spans, gold_starts, gold_ends, gold_mention_cluster_map)
        model.update_steps += 1
        return outputs, loss_of(model, found, best, scores, clusters)

    return method


def _features(
    model: Any, found: ScoredMentions, best: Antecedents, speakers: Tensor, genre: Tensor, segments: Tensor
) -> Tensor:
    """`[K, C, E]`, what is known of a pair beside its vectors."""
    config, first = model.config, found.spans[:, 0]
    parts = []
    if config["use_metadata"]:
        speaker = speakers[first]
        parts.append(model.emb_same_speaker((speaker[:, None] == speaker[best.index]).long()))
        parts.append(model.emb_genre(genre).expand(*best.index.shape, -1))
    if config["use_segment_distance"]:
        segment = segments[first]
        distance = (segment[:, None] - segment[best.index]).clamp(0, config["max_training_sentences"] - 1)
        parts.append(model.emb_segment_distance(distance))
    if config["use_features"]:
        parts.append(model.emb_top_antecedent_distance(_package(model)["util"].bucket_distance(best.offsets)))
    features: Tensor = model.dropout(torch.cat(parts, 2))
    return features


def _refined(model: Any, vectors: Tensor, best: Antecedents, features: Tensor) -> Tensor:
    """The fine scores, with vectors that antecedents refine where the model looks more than once."""
    config = model.config
    for depth in range(config["coref_depth"]):
        scores = fine_scores(model, vectors, best.index, features) + best.scores
        if depth == config["coref_depth"] - 1:
            break
        kind, device = config["higher_order"], vectors.device
        arguments: dict[str, tuple[Any, ...]] = {
            "entity_equalization": (F.embedding(best.index, vectors), best.index, scores),
            "span_clustering": (best.index, scores, getattr(model, "span_attn_ffnn", None)),
        }
        given = arguments.get(kind, (F.embedding(best.index, vectors), scores))
        refined = getattr(_package(model)["ho"], kind)(vectors, *given, device)
        gate = torch.sigmoid(model.gate_ffnn(torch.cat([vectors, refined], 1)))
        vectors = gate * refined + (1 - gate) * vectors
    return scores


def _clusters_of(spans: Tensor, gold_starts: Tensor, gold_ends: Tensor, clusters: Tensor) -> Tensor:
    """The number of each mention's cluster, 0 where it has none."""
    same = (spans[:, :1] == gold_starts) & (spans[:, 1:] == gold_ends)
    return (same * clusters).sum(1)


def loss_of(model: Any, found: ScoredMentions, best: Antecedents, scores: Tensor, clusters: Tensor) -> Tensor:
    """The package's loss of scores `[K, C + 1]`, the first of them of no antecedent, and clusters `[K]`."""
    config = model.config
    of_antecedent = clusters[best.index].masked_fill(~best.mask, -1)
    right = (of_antecedent == clusters[:, None]) & (clusters > 0)[:, None]
    none_right = ~right.any(1, keepdim=True)
    right = torch.cat([none_right, right], 1)
    if config["loss_type"] == "marginalized":
        loss = (scores.logsumexp(1) - (scores + right.to(scores.dtype).log()).logsumexp(1)).sum()
    else:
        allowed = scores + F.pad(best.mask, (1, 0), value=True).to(scores.dtype).log()
        highest, best_right = allowed.max(1), (allowed + right.to(scores.dtype).log()).max(1)
        share = config["false_new_delta"]
        wrongly_new = (highest.indices == 0) & ~none_right[:, 0]
        delta = torch.where(wrongly_new, (3 - share) / 2 - (1 - share), (3 - share) / 2)
        delta = delta.masked_fill(highest.indices == best_right.indices, 0)
        loss = ((1 + highest.values - best_right.values) * delta).sum()
    if config["mention_loss_coef"]:
        is_mention = (clusters > 0).to(scores.dtype)
        own = F.binary_cross_entropy_with_logits(found.scores, is_mention, reduction="sum")
        loss = loss + own * config["mention_loss_coef"]
    return loss


def _package(model: Any) -> dict[str, Any]:
    """What the package's own module has: functions of distances and of higher orders."""
    names: dict[str, Any] = type(model).get_predictions_and_loss.__globals__
    return names


def refusal(model: Any) -> str | None:
    """Why a model has to stay as it is, or None."""
    config = getattr(model, "config", None)
    if not isinstance(config, dict) or "top_span_ratio" not in config:
        return "its config is not that of coref-hoi"
    layers = [model.span_emb_score_ffnn] + ([model.coref_score_ffnn] if config["fine_grained"] else [])
    for each in layers:
        kinds = [type(layer) for layer in each] if isinstance(each, nn.Sequential) else []
        if kinds != [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]:
            return "its feed-forward networks do not have one hidden layer"
    looks_again = config["higher_order"] == "cluster_merging" or config["coref_depth"] > 1
    if config["fine_grained"] and looks_again and config["higher_order"] not in REFINED:
        return f"{config['higher_order']} goes through mentions one by one"
    return None


REPLACEMENTS = (
    Replacement(
        "model.CorefModel",
        "candidates scored without their vectors, and pruned and paired",
        predictions_and_loss,
        method="get_predictions_and_loss",
        covers=("_extract_top_spans",),
        refusal=refusal,
    ),
)
