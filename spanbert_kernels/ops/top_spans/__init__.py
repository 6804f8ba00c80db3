"""The best spans of each document, or of each start, by the scores of their first and last tokens, out of a band of
which no more than a block is ever there.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from spanbert_kernels import host
from spanbert_kernels.ops import checks, documents
from spanbert_kernels.ops.backends import Operation
from spanbert_kernels.ops.banded_span_scores import reference, terms
from spanbert_kernels.ops.banded_span_scores.terms import ScoreTerms
from spanbert_kernels.ops.choices import Backend
from spanbert_kernels.ops.span_gather.reference import rows
from spanbert_kernels.ops.top_spans import selection

__all__ = ["TopSpans", "top_spans"]

OPERATION = Operation(
    "top_spans",
    ("cpu", "eager"),
    {"cpu": host.load},
    summary="the best spans of each document, or of each start, by their first and last tokens",
    instead=("eager", "it is matrix products and a sort, which PyTorch's library does well"),
)
Per = Literal["document", "start"]
BLOCK = 2**18  # scores that are there at a time


class TopSpans(NamedTuple):
    """`spans` int64 `[K, 2]`, first and last token, by (start, end); `scores [K]`; `offsets` int64 `[G + 1]`: the spans
    of document g, or of start g, are those from `offsets[g]` to `offsets[g + 1]`.

    Example:
        >>> best = top_spans(None, None, None, 2, 1, per="start", start_scores=torch.tensor([1.0, 2.0]))
        >>> best.spans[best.offsets[1] : best.offsets[2]].tolist()
        [[1, 1]]
    """

    spans: Tensor
    scores: Tensor
    offsets: Tensor


@checks.uncompiled
def top_spans(
    start: Tensor | None,
    end: Tensor | None,
    weight: Tensor | None,
    max_width: int,
    k: int | Tensor,
    cu_seqlens: Tensor | None = None,
    *,
    per: Per = "document",
    start_scores: Tensor | None = None,
    end_scores: Tensor | None = None,
    bias: Tensor | None = None,
    backend: Backend | None = None,
) -> TopSpans:
    """The k best of the spans that `banded_span_scores` scores, without their `[T, W]` scores, or `[T, T]`.

    The spans are chosen without a gradient, and only those chosen have one: its products are of at most K rows. It
    reads the offsets on the host, so `torch.compile` leaves it out of the graph.

    Args:
        start, end, weight, max_width, start_scores, end_scores, bias: what makes a span's score, as
            `banded_span_scores` has them.
        k: how many spans of each document, or start, at most; or int32 or int64 `[D]`, each document's own number.
        cu_seqlens: int32 or int64 `[D + 1]`, offsets of the documents; by default all tokens are one.
        per: "document", or "start": the best last tokens for each first one.
        backend: `"cpu"`, which chooses in the compiled host module, or `"eager"`, in PyTorch; by default the first that
            is here.

    Returns:
        The spans, their scores in the dtype of start, and where each document's, or start's, begin. Of equal scores the
        earlier (start, end) is better; NaN is the best of all, as `torch.topk` has it.

    Raises:
        ValueError: shapes, `max_width` below 1, a negative k, an unknown `per`, nothing to add, or `k` as a tensor that
            does not hold a number for each document.
        TypeError: dtypes or devices.

    Source: the mentions that Kirstain et al. 2021 keep out of `[T, T]` scores; of starts alone, the answer spans of
    Devlin et al. 2019.

    Example:
        >>> start, end = torch.tensor([1.0, 5.0, 2.0]), torch.tensor([0.0, 1.0, 3.0])
        >>> best = top_spans(None, None, None, 2, k=2, start_scores=start, end_scores=end)
        >>> best.spans.tolist(), best.scores.tolist()
        ([[1, 1], [1, 2]], [6.0, 8.0])
        >>> top_spans(None, None, None, 2, 1, per="start", start_scores=start, end_scores=end).spans.tolist()
        [[0, 1], [1, 2], [2, 2]]
    """
    given = terms.check_terms(start, end, weight, start_scores, end_scores, bias)
    terms.check_band(max_width, cu_seqlens, given)
    checks.check_choice("per", per, ("document", "start"))
    for name, tensor in given.given.items():
        checks.check_readable(name, tensor)
    tokens, device = given.tokens, given.like.device
    budgets = _budgets(k, cu_seqlens, tokens, per, device)
    compiled = OPERATION.choose(given.like, backend) == "cpu"
    with torch.autocast(device.type, enabled=False):
        wide = given.widened()
        with torch.no_grad():
            projected = None if wide.start is None else wide.projected()
            chosen = _chosen(wide, projected, min(max_width, tokens), cu_seqlens, budgets, per, compiled)
        spans = torch.stack([chosen.start, chosen.last], 1)
        scores = _scores(wide, projected, chosen.start, chosen.last).to(given.like.dtype)
    counts = torch.bincount(chosen.group, minlength=len(budgets))
    return TopSpans(spans, scores, torch.cat([counts.new_zeros(1), counts.cumsum(0)]))


def _budgets(k: int | Tensor, cu_seqlens: Tensor | None, tokens: int, per: Per, device: torch.device) -> Tensor:
    """How many spans of each document, or of each start."""
    count = tokens if per == "start" else 1 if cu_seqlens is None else len(cu_seqlens) - 1
    if not isinstance(k, Tensor):
        return torch.full((count,), checks.check_integer("k", k, 0), device=device)
    if per == "start" or cu_seqlens is None:
        raise ValueError("k as a tensor holds a number for each document: it needs cu_seqlens, and no per='start'")
    checks.check_index("k", k, 1, "[documents]")
    checks.check_readable("k", k)
    if len(k) != count:
        raise ValueError(f"k must hold a number for each of {count} documents, got {list(k.shape)}")
    if count and int(k.min()) < 0:
        raise ValueError(f"k must be at least 0, got {int(k.min())}")
    return k.long().to(device)


def _chosen(
    wide: ScoreTerms,
    projected: Tensor | None,
    width: int,
    cu_seqlens: Tensor | None,
    budgets: Tensor,
    per: Per,
    compiled: bool,
) -> selection.Candidates:
    """The best of all tokens' spans, a block of scores at a time."""
    tokens, device = wide.tokens, wide.like.device
    token = torch.arange(tokens, device=device)
    document = torch.zeros_like(token) if cu_seqlens is None else documents.document_of(cu_seqlens, tokens)
    ends = torch.full_like(token, tokens) if cu_seqlens is None else cu_seqlens[1:].long()[document]
    group = token if per == "start" else document
    step = max(1, BLOCK // max(width, 1))
    found = []
    for first in range(0, tokens, step):
        block = slice(first, min(first + step, tokens))
        inside = token[block, None] + torch.arange(width, device=device) < ends[block, None]
        scores = None
        if projected is not None:
            assert wide.end is not None
            size = min(max(reference.SMALLEST_BLOCK, width), block.stop - first)
            scores = reference.band(projected[block], wide.end[first:], width, size)
        scores, starts = wide.with_rank_one(scores, block, width), token[block]
        if per == "document":
            # The k best spans begin at no more than k starts: at those whose own best are the best.
            strongest = scores.masked_fill(~inside, -torch.inf).amax(1)
            candidates = selection.Candidates(starts, starts, strongest, group[block])
            starts = selection.best(candidates, budgets, compiled).start
            scores, inside = scores[starts - first], inside[starts - first]
        row, ahead = inside.nonzero(as_tuple=True)
        start = starts[row]
        candidates = selection.Candidates(start, start + ahead, scores[inside], group[start])
        found.append(selection.best(candidates, budgets, compiled))
    if not found:
        return selection.Candidates(token, token, torch.zeros_like(token), token)
    if len(found) == 1 or per == "start":
        return selection.joined(found)
    return selection.best(selection.joined(found), budgets, compiled)


def _scores(wide: ScoreTerms, projected: Tensor | None, first: Tensor, last: Tensor) -> Tensor:
    """The scores of the spans chosen, `[K]`, for autograd."""
    terms = []
    if projected is not None:
        terms.append(SpanScores.apply(wide.start, wide.end, wide.weight, projected, first, last))
    for each, token in ((wide.start_scores, first), (wide.end_scores, last)):
        if each is not None:
            terms.append(rows(each[:, None], token)[:, 0])
    terms += [] if wide.bias is None else [wide.bias]
    scores: Tensor = sum(terms[1:], terms[0])
    return scores


class SpanScores(torch.autograd.Function):
    """`start[first] @ weight @ end[last]` of some spans, whose projections are there already."""

    @staticmethod
    def forward(
        ctx: Any, start: Tensor, end: Tensor, weight: Tensor | None, projected: Tensor, first: Tensor, last: Tensor
    ) -> Tensor:
        chosen = projected[first]
        ctx.save_for_backward(start, end, weight, chosen, first, last)
        return (chosen * end[last]).sum(1)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(grad_output.device.type, enabled=False):
            if torch.is_grad_enabled():
                return SpanScores.differentiable(ctx, grad_output)
            return SpanScores.gradients(ctx, grad_output)

    @staticmethod
    def differentiable(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients that will be differentiated again."""
        start, end, weight, _, first, last = ctx.saved_tensors
        inputs = [each if each is not None and each.requires_grad else None for each in (start, end, weight)]
        wanted = [each for each in inputs if each is not None]
        left = rows(start, first)
        values = ((left if weight is None else left @ weight) * rows(end, last)).sum(1)
        found = iter(torch.autograd.grad(values, wanted, grad_output, create_graph=True))
        return (*(None if each is None else next(found) for each in inputs), None, None, None)

    @staticmethod
    def gradients(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        start, end, weight, chosen, first, last = ctx.saved_tensors
        grad_start = grad_weight = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[2]:
            # A start has several spans, which follow each other: their sum goes through the weight.
            own, place = torch.unique_consecutive(first, return_inverse=True)
            sums = _summed(grad_output[:, None] * end[last], place, len(own))
            grad_weight = None if weight is None else start[own].T @ sums
            grad_start = torch.zeros_like(start).index_copy_(0, own, sums if weight is None else sums @ weight.T)
        grad_end = _summed(grad_output[:, None] * chosen, last, len(end)) if ctx.needs_input_grad[1] else None
        return grad_start, grad_end, grad_weight, None, None, None


def _summed(values: Tensor, row: Tensor, count: int) -> Tensor:
    """The sums of the rows of `values` that belong to each of `count` rows, in one order on every device."""
    if not len(row):
        return values.new_zeros(count, values.shape[1])
    sums: Tensor = torch.ops.aten.embedding_dense_backward(values, row, count, -1, False)
    return sums
