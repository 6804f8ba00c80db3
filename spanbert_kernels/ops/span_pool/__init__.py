"""Span pooling: one vector a span, of any parts, written in one pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spanbert_kernels.ops import checks, plans
from spanbert_kernels.ops.choices import PARTS, Backend, Part
from spanbert_kernels.ops.operators import needs_gradient
from spanbert_kernels.ops.plans import SpanPlan
from spanbert_kernels.ops.repeats import key_of
from spanbert_kernels.ops.span_pool import reference
from spanbert_kernels.ops.span_pool.operators import OPERATION, PoolInputs, SpanPool, span_pool_forward
from spanbert_kernels.ops.tokens import Tokens, check_tokens

__all__ = ["PARTS", "span_pool"]


def span_pool(
    hidden: Tensor | Mapping[Part, Tensor],
    spans: Tensor | SpanPlan,
    parts: Sequence[Part],
    scores: Tensor | None = None,
    width_embedding: Tensor | None = None,
    *,
    width_rows: Callable[[Tensor], Tensor] | None = None,
    end_inclusive: bool = True,
    mask: Tensor | None = None,
    validate: bool = False,
    backend: Backend | None = None,
) -> Tensor:
    """One vector for every span, made of the parts asked for, in their order, without a `[N, width, H]` tensor.

    Args:
        hidden: `[T, H]`, packed tokens; float32, bfloat16, float16 or float64. Or a tensor for each part that reads
            tokens, `{"start": [T, H1], "end": [T, H2]}`, of one dtype: parts of one tensor are pooled in one pass.
        spans: int32 or int64 `[N, 2]` packed positions, or a plan (`plan_spans`, `enumerate_spans`): faster.
        parts: any of `start`, `end` (the boundary tokens), `mean`, `sum`, `max` (over the span's tokens), `attention`
            (softmax of `scores` inside the span), `width` (a row of `width_embedding`), each at most once.
        scores: `[T]`, or `[T, K]` for K heads that each pool all of H (K * H columns, head by head).
        width_embedding: `[R, E]`; a span of w tokens takes row `min(w, R) - 1`.
        width_rows: another way from widths (int64 `[N]`) to rows (int64 `[N]`): buckets.
        end_inclusive: the end of a span tensor is its last token (default), or the one after it.
        mask: bool `[N]`, of a span tensor; a span that is False has no token, whatever its numbers are.
        validate: check the range on any device (on a CPU it is always checked).
        backend: the backend to use; by default the best one here.

    Returns:
        `[N, sum of the parts' sizes]` in the dtype of `hidden`. A span without tokens gives zeros, and so does the
        `attention` of one whose scores are all -inf.

    Gradients reach `hidden`, `scores` and `width_embedding`; `max` sends its gradient to the first maximal token, and
    NaN propagates. The linear parts can be differentiated twice.

    Raises:
        ValueError: shapes, an unknown or repeated part, a missing input, a span outside the tokens (named).
        TypeError: dtypes or devices.

    Source: the parts are those of e2e-coref (Lee et al. 2017), SpERT (Eberts and Ulges 2020) and SpanBERT's coreference
    model (Joshi et al. 2020).

    Example:
        >>> hidden = torch.tensor([[1.0, 5.0], [3.0, 2.0], [0.0, 9.0]])
        >>> span_pool(hidden, torch.tensor([[0, 1], [1, 2]]), ["mean", "max"]).tolist()
        [[2.0, 3.5, 3.0, 5.0], [1.5, 5.5, 3.0, 9.0]]
    """
    repeats, key = None, None
    if isinstance(spans, SpanPlan) and isinstance(parts, (list, tuple)) and width_rows is None and mask is None:
        key = key_of(OPERATION.name, backend, (*parts, end_inclusive, validate), hidden, scores, width_embedding)
        repeats = None if key is None else spans.repeats
    chosen = None if repeats is None or key is None else repeats.checked.get(key)
    resolved: SpanPlan | tuple[Tensor, Tensor]
    if chosen is not None and isinstance(spans, SpanPlan) and isinstance(hidden, Tensor):  # checked before
        tokens, like, resolved = Tokens((hidden,), {}), hidden, spans
    else:
        plans.check_width_rows(width_rows)
        check_parts(parts)
        tokens = check_tokens(hidden, parts)
        like = tokens.tensors[0]
        resolved = plans.resolve(spans, like, end_inclusive, validate, mask)
        chosen = OPERATION.choose(like, backend)
    scores = check_scores(scores, tokens.of("attention"), parts)
    width_embedding = check_table(width_embedding, like, parts)
    if repeats is not None and key is not None:
        repeats.keep(key, chosen)

    def bounds() -> tuple[Tensor, Tensor]:
        return resolved.bounds() if isinstance(resolved, SpanPlan) else resolved

    index = None
    if width_embedding is not None and (width_rows is not None or chosen == "eager"):
        start, end = bounds()
        index = plans.width_index(end - start, len(width_embedding), width_rows)
    work = None if chosen == "eager" else plans.work_for(resolved, chosen, like.shape[0])

    def pooled(source: Tensor, own: Sequence[Part]) -> Tensor:
        attends, has_width = scores if "attention" in own else None, "width" in own
        table, rows = (width_embedding, index) if has_width else (None, None)
        if work is None:
            # Autocast would take the weighted sums out of float32, on this backend alone.
            with torch.autocast(source.device.type, enabled=False):
                return _eager(source, *bounds(), tuple(own), attends, table, rows)
        numbers = [PARTS.index(part) for part in own]
        if key is None or needs_gradient(source, attends, table):
            output: Tensor = SpanPool.apply(source, attends, table, rows, numbers, chosen, work, repeats)
        else:
            inputs = PoolInputs(attends, table, rows, numbers)
            output, *_ = span_pool_forward(chosen, source, work, inputs, False, repeats=repeats)
        return output

    if len(tokens.tensors) == 1:
        return pooled(like, parts)
    sizes: dict[str, Any] = {
        "attention": tokens.columns("attention") * (1 if scores is None else scores.shape[1]),
        "width": 0 if width_embedding is None else width_embedding.shape[1],
    }
    blocks: dict[Part, Tensor] = {}
    for place, source in enumerate(tokens.tensors):
        own = [part for part in parts if tokens.places.get(part, 0) == place]
        widths = [sizes.get(part, source.shape[1]) for part in own]
        blocks |= zip(own, pooled(source, own).split(widths, 1), strict=True)
    return torch.cat([blocks[part] for part in parts], 1)


def check_parts(parts: Sequence[str]) -> list[int]:
    if isinstance(parts, (str, bytes)) or not isinstance(parts, Sequence):
        kind = f"the string {parts!r}" if isinstance(parts, str) else type(parts).__name__
        raise TypeError(f"parts must be a sequence of names, got {kind}")
    if not parts:
        raise ValueError(f"parts is empty; it takes any of {', '.join(PARTS)}")
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"parts: unknown part {part!r}; there are {', '.join(PARTS)}")
        if list(parts).count(part) > 1:
            raise ValueError(f"parts: part {part!r} is named twice in {list(parts)}")
    return [PARTS.index(part) for part in parts]


def check_scores(scores: Tensor | None, hidden: Tensor, parts: Sequence[str]) -> Tensor | None:
    """Scores as `[T, K]` in the dtype that the kernels accumulate in."""
    if "attention" not in parts:
        return None
    if scores is None:
        raise ValueError("part 'attention' needs scores [T] or [T, K], got None")
    checks.check_tensor("scores", scores, "[T] or [T, K]")
    checks.check_device("scores", scores, "hidden", hidden)
    if not scores.dtype.is_floating_point:
        raise TypeError(f"scores must be floating point, got {scores.dtype}")
    if scores.dim() not in (1, 2) or scores.shape[0] != hidden.shape[0]:
        raise ValueError(f"scores must have shape [T] or [T, K] with T = {hidden.shape[0]}, got {list(scores.shape)}")
    if scores.dim() == 2 and scores.shape[1] == 0:
        raise ValueError(f"scores must have at least one head, got {list(scores.shape)}")
    scores = scores[:, None] if scores.dim() == 1 else scores
    return scores.to(torch.promote_types(hidden.dtype, torch.float32))


def check_table(width_embedding: Tensor | None, hidden: Tensor, parts: Sequence[str]) -> Tensor | None:
    if "width" not in parts:
        return None
    if width_embedding is None:
        raise ValueError("part 'width' needs width_embedding [R, E], got None")
    checks.check_floating("width_embedding", width_embedding, 2, "[R, E]")
    checks.check_device("width_embedding", width_embedding, "hidden", hidden)
    if len(width_embedding) == 0:
        raise ValueError(f"width_embedding must have at least one row, got {list(width_embedding.shape)}")
    return width_embedding.to(hidden.dtype)


def _eager(
    hidden: Tensor,
    start: Tensor,
    end: Tensor,
    parts: tuple[Part, ...],
    scores: Tensor | None,
    table: Tensor | None,
    index: Tensor | None,
) -> Tensor:
    differentiable = [x for x in (hidden, scores, table) if x is not None and x.requires_grad]
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and differentiable) or len(start) == 0:
        return reference.span_pool(hidden, start, end, parts, scores, table, index)
    rows = max(1, reference.EAGER_CHUNK // max(1, int((end - start).max()) * hidden.shape[1]))
    pieces = [
        reference.span_pool(
            hidden,
            start[i : i + rows],
            end[i : i + rows],
            parts,
            scores,
            table,
            None if index is None else index[i : i + rows],
        )
        for i in range(0, len(start), rows)
    ]
    return torch.cat(pieces)
