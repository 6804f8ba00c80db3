"""Span pruning: the best spans of which no two overlap in part."""

from __future__ import annotations

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
    k: int | Tensor,
    non_crossing: bool = True,
    *,
    cu_seqlens: Tensor | None = None,
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
            document's own number.
        non_crossing: False keeps the k best whether they cross or not.
        cu_seqlens: int32 or int64 `[D + 1]`, offsets of the documents in the packed tokens; without it all spans share
            one budget.
        end_inclusive: the end of a span tensor is its last token (default), or the one after it.
        backend: `"cpu"`, the compiled host module, or `"eager"`, the same in numpy; by default the first that is here.

    Returns:
        int64, indices into `scores` of the spans kept, ordered by (start, end, index), on the device of `scores`.
        Fewer than k where no more can be kept; the published procedure repeats its first span then.

    Raises:
        ValueError: shapes, a negative k, NaN among the scores (the first is named), a span that starts before token 0
            or, with `cu_seqlens`, that does not lie in one document (a span without tokens: does not start in one).
        TypeError: dtypes.

    Source: ExtractSpans of Lee et al. 2018 and of Joshi et al. 2019 (coref_kernels.cc), with ties made stable.

    Example:
        >>> spans = torch.tensor([[0, 1], [1, 2], [1, 1], [3, 3]])
        >>> prune_spans(spans, torch.tensor([1.0, 2.0, 0.5, -1.0]), k=2).tolist()
        [2, 1]
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
    budgets, documents = _budgets(k, cu_seqlens, start, end)
    compiled = OPERATION.choose(scores, backend) == "cpu"
    # numpy has no bfloat16; float32 holds each of its values.
    scores = scores.float() if scores.dtype == torch.bfloat16 else scores
    kept = host.prune_spans(
        start.numpy(), end.numpy(), scores.numpy(), budgets, non_crossing, documents=documents, compiled=compiled
    )
    return torch.from_numpy(kept).to(device)


def _budgets(
    k: int | Tensor, cu_seqlens: Tensor | None, start: Tensor, end: Tensor
) -> tuple[int | NDArray[np.int64], NDArray[np.int64] | None]:
    """How many spans may be kept; with documents, of each of them, int64 `[D]`, and the document of each span `[N]`."""
    if cu_seqlens is None:
        if isinstance(k, Tensor):
            raise ValueError("k as a tensor holds a number for each document: it needs cu_seqlens")
        return checks.check_integer("k", k, 0), None
    checks.check_index("cu_seqlens", cu_seqlens, 1, "[documents + 1]")
    checks.check_readable("cu_seqlens", cu_seqlens)
    offsets = cu_seqlens.cpu()
    checks.check_offsets("cu_seqlens", offsets, None, "tokens")
    documents = len(offsets) - 1
    if isinstance(k, Tensor):
        checks.check_index("k", k, 1, "[documents]")
        if len(k) != documents:
            raise ValueError(f"k must hold a number for each of {documents} documents, got {list(k.shape)}")
        checks.check_readable("k", k)
        budgets = k.cpu().long()
    else:
        checks.check_integer("k", k, 0)
        budgets = torch.full((documents,), k, dtype=torch.int64)
    if documents and int(budgets.min()) < 0:
        raise ValueError(f"k must be at least 0, got {int(budgets.min())}")
    document = torch.searchsorted(offsets[1:].long().contiguous(), start.contiguous(), right=True)
    last = torch.where(end > start, end - 1, start)
    bad = (start < 0) | (last >= offsets[-1])
    bad |= last >= offsets[1:][document.clamp(max=documents - 1)] if documents else True
    if bool(bad.any()):
        row = int(bad.to(torch.uint8).argmax())
        raise ValueError(
            f"spans: span {row} covers tokens {int(start[row])} to {int(end[row]) - 1}, not in one document"
        )
    return budgets.numpy(), document.numpy()
