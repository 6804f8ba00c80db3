"""SpERT (github.com/lavis-nlp/spert): candidates and the contexts between them, pooled without `[B, N, L, H]`.

SpERT repeats the hidden states for each candidate and each relation, adds -1e30 to what a mask leaves out, and takes
the maximum. A mask marks tokens that stand side by side, so that it is a span.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spanbert_kernels import ops
from spanbert_kernels.acceleration.span_layers import OriginalPath, Replacement, probe_refusal

# What SpERT adds to tokens that a mask leaves out; with it a mask that marks nothing pools to this number.
LEFT_OUT = -1e30
# The argument that asks for predictions, by version.
_FLAGS = ("inference", "evaluate")


def bounds_of(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Of masks `[..., L]` the first marked place and the one behind the last, `[...]` each; equal if there is none.

    Raises:
        OriginalPath: marked places that do not stand side by side, or masks of floating point.

    Example:
        >>> [bound.tolist() for bound in bounds_of(torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0]]))]
        [[1, 0], [3, 0]]
    """
    if masks.is_floating_point():
        raise OriginalPath(f"masks of {masks.dtype}")
    marked = (masks != 0).to(torch.uint8)
    start, width = marked.argmax(-1), marked.sum(-1)
    end = start + width
    behind_last = masks.shape[-1] - marked.flip(-1).argmax(-1)
    if ((width > 0) & (behind_last != end)).any():
        raise OriginalPath("a mask whose tokens do not stand side by side")
    return start, end


def pooled(hidden: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """The maximum over half-open spans of each document: `[B, L, H]`, `[B, N]` twice -> `[B, N, H]`; empty: zeros."""
    batch, length, size = hidden.shape
    first = torch.arange(batch, device=start.device)[:, None] * length
    spans = torch.stack([start + first, end + first], -1).flatten(0, 1)
    found = ops.span_pool(hidden.flatten(0, 1), spans, ["max"], end_inclusive=False).view(*start.shape, size)
    # SpERT's is a sum with numbers of float32.
    return found.to(torch.promote_types(found.dtype, torch.float32))


def pooled_candidates(hidden: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """As `pooled`, but that an empty candidate is -1e30, whose gradient is that of the document's first token."""
    empty = end == start
    found = pooled(hidden, start, end + empty)
    # Most batches have none, and the sum takes longer than the maximum.
    return found + (empty * LEFT_OUT)[..., None].to(found.dtype) if empty.any() else found


def classify_entities(
    module: Any, encodings: Tensor, hidden: Tensor, bounds: tuple[Tensor, Tensor], sizes: Tensor
) -> tuple[Tensor, Tensor]:
    """The scores of candidates `[B, N, types]`, and what was pooled of each `[B, N, H]`; `sizes`: their embeddings."""
    found = pooled_candidates(hidden, *bounds)
    context = hidden.flatten(0, 1)[encodings.flatten() == module._cls_token]
    joined = [context.unsqueeze(1).repeat(1, found.shape[1], 1), found, sizes]
    return module.entity_classifier(module.dropout(torch.cat(joined, 2))), found


def classify_relations(
    module: Any, hidden: Tensor, entities: Tensor, sizes: Tensor, relations: Tensor, bounds: tuple[Tensor, Tensor]
) -> Tensor:
    """The scores `[B, R, types]` of pairs of candidates `[B, R, 2]`; `bounds`: of the tokens between them."""
    context = pooled(hidden, *bounds)
    document = torch.arange(len(relations), device=relations.device)[:, None, None]
    pairs = [each[document, relations].flatten(2) for each in (entities, sizes)]
    scores: Tensor = module.rel_classifier(module.dropout(torch.cat([context, *pairs], 2)))
    return scores


def _in_chunks(
    module: Any,
    hidden: Tensor,
    entities: Tensor,
    sizes: Tensor,
    relations: Tensor,
    bounds: tuple[Tensor, Tensor],
    activation: Callable[[Tensor], Tensor],
) -> Tensor:
    """All relations, as many at a time as the model was told."""
    batch, count = relations.shape[:2]
    found = torch.zeros([batch, count, module._relation_types]).to(module.rel_classifier.weight.device)
    for first in range(0, count, module._max_pairs):
        part = slice(first, first + module._max_pairs)
        start, end = (bound[:, part] for bound in bounds)
        scores = classify_relations(module, hidden, entities, sizes, relations[:, part], (start, end))
        found[:, part] = activation(scores)
    return found


def _encode(module: Any, encodings: Tensor, context_masks: Tensor) -> Tensor:
    hidden: Tensor = module.bert(input_ids=encodings, attention_mask=context_masks.float())[0]
    return hidden


def _train(
    module: Any,
    encodings: Tensor,
    context_masks: Tensor,
    entity_masks: Tensor,
    entity_sizes: Tensor,
    relations: Tensor,
    rel_masks: Tensor,
) -> tuple[Tensor, Tensor]:
    candidates, contexts = bounds_of(entity_masks), bounds_of(rel_masks)
    hidden = _encode(module, encodings, context_masks)
    sizes = module.size_embeddings(entity_sizes)
    entity_scores, entities = classify_entities(module, encodings, hidden, candidates, sizes)
    return entity_scores, _in_chunks(module, hidden, entities, sizes, relations, contexts, lambda scores: scores)


def _predict(
    module: Any,
    encodings: Tensor,
    context_masks: Tensor,
    entity_masks: Tensor,
    entity_sizes: Tensor,
    entity_spans: Tensor,
    entity_sample_masks: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    candidates = bounds_of(entity_masks)
    hidden = _encode(module, encodings, context_masks)
    sizes = module.size_embeddings(entity_sizes)
    entity_scores, entities = classify_entities(module, encodings, hidden, candidates, sizes)
    chosen = module._filter_spans(entity_scores, entity_spans, entity_sample_masks, context_masks.shape[-1])
    relations, rel_masks, rel_sample_masks = chosen
    found = _in_chunks(module, hidden, entities, sizes, relations, bounds_of(rel_masks), torch.sigmoid)
    return entity_scores.softmax(2), found * rel_sample_masks.float().unsqueeze(-1), relations


def _flag_of(module: Any) -> str | None:
    parameters = inspect.signature(type(module).forward).parameters
    return next((name for name in _FLAGS if name in parameters), None)


def make(module: Any) -> Callable[..., Any]:
    """What stands for the forward of a model."""
    flag = _flag_of(module)

    def forward(*args: Any, **kwargs: Any) -> Any:
        predicts = flag is not None and kwargs.pop(flag, False)
        return (_predict if predicts else _train)(module, *args, **kwargs)

    return forward


def refusal(module: Any) -> str | None:
    """Why a model stays as it is: a copy of the code that somebody changed may compute something else."""
    if _flag_of(module) is None:
        return f"its forward has neither of the arguments {', '.join(_FLAGS)}"
    device, size = module.entity_classifier.weight.device, module.bert.config.hidden_size
    hidden = torch.linspace(-9, 9, 6 * size, device=device).sin().view(1, 6, size).to(module.entity_classifier.weight)
    encodings = torch.tensor([[0, 1, 1, 1, 1, 1]], device=device) + module._cls_token
    marked = torch.tensor([[[0, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 0], [0] * 6]], device=device)
    between = torch.tensor([[[0, 0, 0, 1, 0, 0], [0] * 6]], device=device)[:, : module._max_pairs]
    relations = torch.tensor([[[0, 1], [1, 2]]], device=device)[:, : module._max_pairs]
    lengths = torch.tensor([[2, 1, 0]], device=device)

    def own() -> tuple[Tensor, Tensor]:
        sizes = module.size_embeddings(lengths)
        scores, entities = module._classify_entities(encodings, hidden, marked, sizes)
        repeated = hidden.unsqueeze(1).repeat(1, relations.shape[1], 1, 1)
        return scores, module._classify_relations(entities, sizes, relations, between, repeated, 0)

    def ours() -> tuple[Tensor, Tensor]:
        sizes = module.size_embeddings(lengths)
        scores, entities = classify_entities(module, encodings, hidden, bounds_of(marked), sizes)
        return scores, classify_relations(module, hidden, entities, sizes, relations, bounds_of(between))

    return probe_refusal(module, own, ours)


REPLACEMENTS = (
    Replacement(
        "spert.models.SpERT",
        "candidates and contexts pooled as spans",
        make,
        covers=("_classify_entities", "_classify_relations", "_filter_spans", "_forward_train"),
        refusal=refusal,
    ),
)
