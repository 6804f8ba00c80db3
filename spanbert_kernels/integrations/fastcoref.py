"""fastcoref's two models: mentions out of a band, antecedents of the mentions kept alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels.acceleration.span_layers import OriginalPath, Replacement
from spanbert_kernels.integrations import start_to_end


def fcoref(model: Any) -> Callable[..., tuple[Any, ...]]:
    """What stands for `FCorefModel.forward`."""

    def forward(
        batch: Any, gold_clusters: Any = None, topk_1d_indices: Any = None, return_all_outputs: bool = False
    ) -> tuple[Any, ...]:
        if topk_1d_indices is not None:
            raise OriginalPath("the mentions to keep are given (topk_1d_indices)")
        hidden, attention_mask = model.forward_transformer(batch)
        start, end = model.start_mention_mlp(hidden), model.end_mention_mlp(hidden)
        found = start_to_end.mentions(model, start, end, attention_mask, return_all_outputs)
        logits = pair_logits(model, hidden, found)
        outputs = (found.starts, found.ends, found.logits, logits) if return_all_outputs else ()
        return (*loss_of(model, logits, found, gold_clusters), *outputs)

    return forward


def pair_logits(model: Any, hidden: Tensor, found: start_to_end.Mentions) -> Tensor:
    """`[B, K, K + 1]`, each mention with those before it, and none."""
    start = start_to_end.states_of(model.start_coref_mlp, hidden, found.starts)
    end = start_to_end.states_of(model.end_coref_mlp, hidden, found.ends)
    return start_to_end.antecedent_logits(found, start_to_end.products(*start_to_end.bilinear_sides(model, start, end)))


def loss_of(model: Any, logits: Tensor, found: start_to_end.Mentions, gold_clusters: Any) -> tuple[Tensor, ...]:
    """The package's own loss, where there are clusters to learn."""
    if gold_clusters is None:
        return ()
    labels = model._get_cluster_labels_after_pruning(found.starts, found.ends, gold_clusters)
    return (model._get_marginal_log_likelihood_loss(logits, labels, found.mask),)


def lingmess(model: Any) -> Callable[..., tuple[Any, ...]]:
    """What stands for `LingMessModel.forward`."""

    def forward(batch: Any, gold_clusters: Any = None, return_all_outputs: bool = False) -> tuple[Any, ...]:
        hidden, attention_mask = model.forward_transformer(batch)
        start, end = model.start_mention_mlp(hidden), model.end_mention_mlp(hidden)
        found = start_to_end.mentions(model, start, end, attention_mask, return_all_outputs)
        labels, masks = model._get_categories_labels(
            batch["tokens"], batch["subtoken_map"], batch["new_token_map"], found.starts, found.ends
        )
        sides = (each.unbind(1) for each in category_sides(model, hidden, found))
        scores_of = [start_to_end.products(own, other) for own, other in zip(*sides, strict=True)]

        def summed(first: int, last: int) -> Tensor:
            """Of the categories that a pair belongs to."""
            seen = masks[:, :, first:last, :last]
            return sum(scores(first, last) * seen[:, each] for each, scores in enumerate(scores_of))

        logits = start_to_end.antecedent_logits(found, summed)
        outputs: tuple[Any, ...] = (found.starts, found.ends, found.logits, logits) if return_all_outputs else ()
        if gold_clusters is not None:
            by_category = [start_to_end.antecedent_logits(found, scores) for scores in scores_of]
            seen = F.pad(masks, (0, 1), value=1).bool()
            all_logits = torch.stack(by_category, 1).masked_fill(~seen, start_to_end.MASKED)
            all_logits = torch.cat([all_logits, logits[:, None]], 1)
            clusters = model._get_clusters_labels(found.starts, found.ends, gold_clusters)
            all_labels = model._get_all_labels(clusters, masks)
            loss = model._get_marginal_log_likelihood_loss(all_logits, all_labels, found.mask)
            outputs = (loss, *outputs, labels, clusters)
        return outputs

    return forward


def category_sides(model: Any, hidden: Tensor, found: start_to_end.Mentions) -> tuple[Tensor, Tensor]:
    """Of each category two states of each mention, whose product is the score of a pair, `[B, categories, K, 2 H]`."""
    start = start_to_end.states_of(model.coref_start_all_mlps, hidden, found.starts)
    end = start_to_end.states_of(model.coref_end_all_mlps, hidden, found.ends)
    start, end = (each.unflatten(-1, (model.num_cats, -1)).transpose(1, 2) for each in (start, end))
    with_start = start @ model.antecedent_s2s_all_weights + end @ model.antecedent_e2s_all_weights
    with_end = start @ model.antecedent_s2e_all_weights + end @ model.antecedent_e2e_all_weights
    # The biases meet the antecedent's state.
    of_start = model.antecedent_s2s_all_biases + model.antecedent_e2s_all_biases
    of_end = model.antecedent_s2e_all_biases + model.antecedent_e2e_all_biases
    own = torch.cat([with_start + of_start[:, None], with_end + of_end[:, None]], -1)
    return own, torch.cat([start, end], -1)


def categories(model: Any) -> Callable[..., tuple[Tensor, Tensor]]:
    """What stands for `LingMessModel._get_categories_labels`: the category of each pair, from its two sets of words."""
    package = type(model)._get_categories_labels.__globals__
    stop_words, pronoun_of, number_of = (package[name] for name in ("STOPWORDS", "get_pronoun_id", "CATEGORIES"))

    def of_document(words: list[set[str]]) -> Tensor:
        """`[K, K]`, -1 but below the diagonal."""
        pronoun = torch.tensor([pronoun_of(each) for each in words], dtype=torch.long)
        sets = [frozenset(each - stop_words) for each in words]
        own = {each: number for number, each in enumerate(dict.fromkeys(sets))}
        word = {each: number for number, each in enumerate(dict.fromkeys(w for each in own for w in each))}
        holds = torch.zeros(len(own), len(word))
        for number, each in enumerate(own):
            holds[number, [word[w] for w in each]] = 1
        size = holds.sum(1)
        contains = holds @ holds.T == torch.minimum(size[:, None], size)
        row = torch.tensor([own[each] for each in sets], dtype=torch.long)
        found = torch.where(contains, number_of["contain"], number_of["other"])[row[:, None], row]
        found[row[:, None] == row] = number_of["match"]
        is_pronoun = pronoun > -1
        found[is_pronoun[:, None] | is_pronoun] = number_of["pron-ent"]
        both = is_pronoun[:, None] & is_pronoun
        found[both] = number_of["pron-pron-no-comp"]
        found[both & (pronoun[:, None] == pronoun)] = number_of["pron-pron-comp"]
        place = torch.arange(len(row))
        return found.masked_fill(place >= place[:, None], -1)

    def method(
        tokens: Any, subtoken_map: Any, new_token_map: Any, span_starts: Tensor, span_ends: Tensor
    ) -> tuple[Tensor, Tensor]:
        documents = []
        for text, to_word, to_token, starts, ends in zip(
            tokens, subtoken_map, new_token_map, span_starts.tolist(), span_ends.tolist(), strict=False
        ):
            words = [
                {
                    text[place].lower()
                    for each in set(to_word[start : end + 1]) - {None}
                    if (place := to_token[each]) is not None
                }
                for start, end in zip(starts, ends, strict=True)
            ]
            documents.append(of_document(words))
        labels = torch.stack(documents).double().to(span_starts.device)
        masks = [labels == number for number in range(model.num_cats - 1)] + [labels != -1]
        return labels, torch.stack(masks, 1).int()

    return method


COVERS = ("_calc_mention_logits", "_prune_topk_mentions", "_calc_coref_logits", "_mask_antecedent_logits")
WHAT = "mention scores in a band, the best of them, and their antecedents"
REPLACEMENTS = (
    Replacement("fastcoref.coref_models.modeling_fcoref.FCorefModel", WHAT, fcoref, covers=COVERS),
    Replacement("fastcoref.coref_models.modeling_lingmess.LingMessModel", WHAT, lingmess, covers=COVERS),
    Replacement(
        "fastcoref.coref_models.modeling_lingmess.LingMessModel",
        "categories of pairs, for all at once",
        categories,
        method="_get_categories_labels",
    ),
)
