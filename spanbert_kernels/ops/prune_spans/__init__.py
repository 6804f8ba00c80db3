"""Span pruning: the best spans of which no two overlap in part."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spanbert_kernels import host
from spanbert_kernels.ops import checks, plans
from spanbert_kernels.ops.backends import Operation
from spanbert_kernels.ops.choices import Backend
from spanbert_kernels.ops.plans import SpanPlan

__all__ = ["prune_spans"]

# The host module, not the library of the other CPU kernels, holds its compiled code; eager is its way without that.
OPERATION = Operation(
    "prune_spans",
    ("cpu", "eager"),
    {"cpu": host.load},
    summary="the best spans of which no two cross",
    instead=("cpu", "the greedy choice is sequential, so tensors are copied to the host"),
)


@checks.uncompiled
def prune_spans(
    spans: Tensor | SpanPlan,
    scores: Tensor,
    k: int | Tensor | None,
    non_crossing: bool = True,
    *,
    cu_seqlens: Tensor | None = None,
    cu_sentences: Tensor | None = None,
    k_sentence: int | Tensor | None = None,
    k_start: int | None = None,
    end_inclusive: bool = True,
    backend: Backend | None = None,
) -> Tensor:
    """Which k spans to keep: best score first, and a span that crosses one kept before is left out.

    Two spans cross if they share tokens and each has tokens that the other lacks; nested and equal spans do not. A span
    without tokens crosses none and takes a place like any other. It has no gradient: select with the result, as in
    `scores[kept]`. It runs on the host, so tensors on a GPU are copied and waited for; `torch.compile` leaves it out of
    the graph.

    Args:
        spans: int32 or int64 `[N, 2]`, packed (start, end), or a plan.
        scores: floating point `[N]`, on any device; of equal scores the earlier span comes first. -inf ranks last and
            may be kept.
        k: how many spans to keep; with `cu_seqlens`, how many of each document, or int32 or int64 `[D]`, each
            document's own number. None leaves it to the limits below.
        non_crossing: False keeps the k best whether they cross or not.
        cu_seqlens: int32 or int64 `[D + 1]`, offsets of the documents in the packed tokens; without it all spans share
            one budget.
        cu_sentences: `[S + 1]`, offsets of the sentences, for `k_sentence`: how many spans of each sentence to keep at
            most, or `[S]`.
        k_start: how many spans with the same first token to keep at most.
        end_inclusive: the end of a span tensor is its last token (default), or the one after it.
        backend: `"cpu"`, the compiled host module, or `"eager"`, the same in numpy; by default the first that is here.

    Returns:
        int64, indices into `scores` of the spans kept, ordered by (start, end, index), on the device of `scores`.
        Fewer than k where no more can be kept; the published procedure repeats its first span then.

    Raises:
        ValueError: shapes, a negative k, NaN among the scores (the first is named), a span that starts before token 0
            or, with `cu_seqlens` or `cu_sentences`, that does not lie in one document or sentence (a span without
            tokens: does not start in one).
        TypeError: dtypes.

    Source: ExtractSpans of Lee et al. 2018 and of Joshi et al. 2019 (coref_kernels.cc), with ties made stable.

    Example:
        >>> spans = torch.tensor([[0, 1], [1, 2], [1, 1], [3, 3]])
        >>> prune_spans(spans, torch.tensor([1.0, 2.0, 0.5, -1.0]), k=2).tolist()
        [2, 1]
        >>> prune_spans(spans, torch.tensor([1.0, 2.0, 0.5, -1.0]), None, non_crossing=False, k_start=1).tolist()
        [0, 1, 3]
    """
    if isinstance(spans, SpanPlan):
        start, end = plans.plan_bounds(spans, end_inclusive)
    else:
        start, end = plans.span_bounds(spans, end_inclusive)
    checks.check_flag("non_crossing", non_crossing)
    checks.check_floating("scores", scores, 1, "[N]")
    for name, tensor in (("spans", start), ("scores", scores)):
        checks.check_readable(name, tensor)
    if len(scores) != len(start):
        raise ValueError(f"scores must hold one score for each of {len(start)} spans, got {list(scores.shape)}")
    device = scores.device
    start, end, scores = start.cpu(), end.cpu(), scores.detach().cpu()
    whole, *further = _limits(start, end, k, cu_seqlens, cu_sentences, k_sentence, k_start)
    compiled = OPERATION.choose(scores, backend) == "cpu"
    # numpy has no bfloat16; float32 holds each of its values.
    scores = scores.float() if scores.dtype == torch.bfloat16 else scores
    documents, budgets = whole
    kept = host.prune_spans(
        start.numpy(), end.numpy(), scores.numpy(), budgets, non_crossing, documents=documents, limits=further,
        compiled=compiled,
    )  # fmt: skip
    return torch.from_numpy(kept).to(device)


def _limits(
    start: Tensor,
    end: Tensor,
    k: int | Tensor | None,
    cu_seqlens: Tensor | None,
    cu_sentences: Tensor | None,
    k_sentence: int | Tensor | None,
    k_start: int | None,
) -> list[Any]:
    """The group of each span `[N]` and how many of each group may be kept `[groups]`: of documents, or None and one
    number for all; then of sentences and of starts, where they are limited.
    """
    if (cu_sentences is None) != (k_sentence is None):
        raise ValueError("cu_sentences and k_sentence come together")
    if k is None and k_sentence is None and k_start is None:
        raise ValueError("k is None, and so are k_sentence and k_start: nothing says how many spans to keep")
    k = len(start) if k is None else k
    if cu_seqlens is not None:
        limits: list[Any] = [_of_each("document", "k", k, "cu_seqlens", cu_seqlens, start, end)]
    elif isinstance(k, Tensor):
        raise ValueError("k as a tensor holds a number for each document: it needs cu_seqlens")
    else:
        limits = [(None, checks.check_integer("k", k, 0))]
    if cu_sentences is not None and k_sentence is not None:
        limits.append(_of_each("sentence", "k_sentence", k_sentence, "cu_sentences", cu_sentences, start, end))
    if k_start is not None:
        group = _numbered(start)
        most = int(group.max()) + 1 if len(group) else 0
        limits.append((group.numpy(), np.full(most, checks.check_integer("k_start", k_start, 0))))
    return limits


def _numbered(start: Tensor) -> Tensor:
    """A number for each start, from 0 on: its distance from the first, or its rank where they lie far apart."""
    if len(start) and int(start.max()) - int(start.min()) > 8 * len(start):
        return torch.unique(start, return_inverse=True)[1]
    return start - start.min() if len(start) else start


def _of_each(
    unit: str, name: str, k: int | Tensor, offsets_name: str, offsets: Tensor, start: Tensor, end: Tensor
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The document, or another unit that offsets tell apart, of each span, and how many of each may be kept."""
    checks.check_index(offsets_name, offsets, 1, f"[{unit}s + 1]")
    checks.check_readable(offsets_name, offsets)
    offsets = offsets.cpu()
    checks.check_offsets(offsets_name, offsets, None, "tokens")
    units = len(offsets) - 1
    if isinstance(k, Tensor):
        checks.check_index(name, k, 1, f"[{unit}s]")
        if len(k) != units:
            raise ValueError(f"{name} must hold a number for each of {units} {unit}s, got {list(k.shape)}")
        checks.check_readable(name, k)
        budgets = k.cpu().long()
    else:
        checks.check_integer(name, k, 0)
        budgets = torch.full((units,), k, dtype=torch.int64)
    if units and int(budgets.min()) < 0:
        raise ValueError(f"{name} must be at least 0, got {int(budgets.min())}")
    group = torch.searchsorted(offsets[1:].long().contiguous(), start.contiguous(), right=True)
    last = torch.where(end > start, end - 1, start)
    bad = (start < 0) | (last >= offsets[-1])
    bad |= last >= offsets[1:][group.clamp(max=units - 1)] if units else True
    if bool(bad.any()):
        row = int(bad.to(torch.uint8).argmax())
        raise ValueError(f"spans: span {row} covers tokens {int(start[row])} to {int(end[row]) - 1}, not in one {unit}")
    return group.numpy(), budgets.numpy()
