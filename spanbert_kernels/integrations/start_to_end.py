"""What start-to-end coreference models compute of their tokens' states, in memory that grows with the spans that are
scored and kept: mention scores in a band, the best of them, and scores of pairs of those.

The models are those of `fastcoref` (FCoref and LingMess) and of `s2e-coref`, whose parameters have the same names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels import ops
from spanbert_kernels.acceleration.span_layers import OriginalPath

MASKED = -10000.0  # what the packages add where a score is ruled out, and clamp scores to
ROWS = 512  # of pair scores that are there at a time, and the columns before them


class Mentions(NamedTuple):
    """The mentions kept, `[B, K]` each, by (start, end): first and last token, 1 where there is one, and their scores;
    and the scores of all spans, `[B, L, L]`, where those are asked for.
    """

    starts: Tensor
    ends: Tensor
    mask: Tensor
    scores: Tensor
    logits: Tensor | None


def mentions(model: Any, start: Tensor, end: Tensor, attention_mask: Tensor, with_logits: bool) -> Mentions:
    """The best spans of each row, `top_lambda` times its tokens, of those up to `max_span_length` tokens.

    `start` and `end` are the tokens' states `[B, L, H]` as first and last token of a mention. Like the packages, padded
    tokens may be kept as well: their scores stand beside the others.
    """
    batch, length = start.shape[:2]
    k = (attention_mask.sum(-1) * model.top_lambda).int().long()
    most = int(k.max())
    if most > length:
        raise OriginalPath(f"{most} spans of {length} tokens are kept, more than there are for sure")
    documents = torch.arange(batch + 1, device=start.device) * length
    with torch.autocast(start.device.type, enabled=False):
        terms = _terms(model, start.flatten(0, 1), end.flatten(0, 1), with_logits)
        terms |= {"max_width": model.max_span_length, "cu_seqlens": documents}
        best = ops.top_spans(**terms, k=k)
        logits = _dense(ops.banded_span_scores(**terms), batch) if with_logits else None
    row = torch.searchsorted(documents[1:], best.spans[:, 0].contiguous(), right=True)
    slot = torch.arange(len(row), device=row.device) - best.offsets[row]
    # A slot without a mention is the last token, as in the packages.
    first, last = (torch.full((batch, most), length - 1, device=row.device) for _ in range(2))
    first[row, slot], last[row, slot] = (best.spans - documents[row, None]).unbind(1)
    scores = best.scores.new_zeros(batch, most).index_put((row, slot), best.scores.clamp(MASKED, -MASKED))
    mask = (torch.arange(most, device=k.device) < k[:, None]).int()
    return Mentions(first, last, mask, scores, logits)


def _terms(model: Any, start: Tensor, end: Tensor, project: bool) -> dict[str, Any]:
    """What a mention's score is the sum of, in float32 or wider; with the starts projected, where several want them."""
    joint, left, right = model.mention_s2e_classifier, model.mention_start_classifier, model.mention_end_classifier
    dtype = torch.promote_types(torch.promote_types(start.dtype, joint.weight.dtype), torch.float32)
    start, end = start.to(dtype), end.to(dtype)
    weight, bias = joint.weight.to(dtype), joint.bias.to(dtype)
    # The joint classifier's bias meets the end's state, like the end's own weight.
    of_end = right.weight[0].to(dtype) + (0 if project else bias)
    return {
        "start": F.linear(start, weight, bias) if project else start,
        "end": end,
        "weight": None if project else weight.T,
        "start_scores": start @ left.weight[0].to(dtype),
        "end_scores": end @ of_end,
        "bias": (left.bias + right.bias).to(dtype),
    }


def _dense(band: Tensor, batch: int) -> Tensor:
    """Scores of a band `[B * L, W]` as `[B, L, L]`, -10000 elsewhere."""
    length, width = len(band) // batch, min(band.shape[1], len(band) // batch)
    band = band[:, :width].clamp(MASKED, -MASKED)
    row = torch.arange(batch * length, device=band.device)[:, None]
    column = row % length + torch.arange(width, device=band.device)
    inside = column < length
    dense = band.new_full((batch * length, length), MASKED)
    index = (row.expand_as(column)[inside], column[inside])
    return dense.index_put(index, band[inside]).view(batch, length, length)


def states_of(mlp: Callable[[Tensor], Tensor] | None, hidden: Tensor, tokens: Tensor) -> Tensor:
    """What a token-wise layer makes of `tokens [B, K]` of `hidden [B, L, H]`, each of them computed once."""
    flat = tokens + torch.arange(len(hidden), device=hidden.device)[:, None] * hidden.shape[1]
    own, place = torch.unique(flat, return_inverse=True)
    states = hidden.flatten(0, 1).index_select(0, own)
    return F.embedding(place, states if mlp is None else mlp(states))


def bilinear_sides(model: Any, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
    """Two states of each mention, whose product is the sum of the four bilinear forms of its start and end with those
    of another: `[B, K, 2 H]` each, of the mention and of its antecedent.
    """
    with_start = model.antecedent_s2s_classifier(start) + model.antecedent_e2s_classifier(end)
    with_end = model.antecedent_s2e_classifier(start) + model.antecedent_e2e_classifier(end)
    return torch.cat([with_start, with_end], -1), torch.cat([start, end], -1)


def products(own: Tensor, other: Tensor) -> Callable[[int, int], Tensor]:
    """The pair scores that `antecedent_logits` asks for, of states `[B, K, H]` of the mentions and of antecedents."""

    def blocks(first: int, last: int) -> Tensor:
        # One by one: PyTorch's product of a batch is many times slower than that of matrices on a CPU.
        rows = [left[first:last] @ right[:last].T for left, right in zip(own, other, strict=True)]
        return torch.stack(rows)

    return blocks


def antecedent_logits(found: Mentions, blocks: Callable[[int, int], Tensor]) -> Tensor:
    """Scores of each mention with those before it, and 0 for none: `[B, K, K + 1]`; -10000 for those behind it.

    `blocks(first, last)` are the pair scores `[B, last - first, last]` of mentions `first : last` with those before
    `last`, which is all that has a meaning.
    """
    batch, count = found.starts.shape
    place = torch.arange(count, device=found.starts.device)
    rows = []
    for first in range(0, count, ROWS):
        last = min(first + ROWS, count)
        scores = blocks(first, last) + found.scores[:, first:last, None] + found.scores[:, None, :last]
        allowed = (place[:last] < place[first:last, None]) & found.mask[:, first:last, None].bool()
        scores = torch.where(allowed, scores.clamp(MASKED, -MASKED), MASKED)
        rows.append(F.pad(scores, (0, count - last), value=MASKED))
    scores = torch.cat(rows, 1) if rows else found.scores.new_zeros(batch, 0, 0)
    return F.pad(scores, (0, 1))
