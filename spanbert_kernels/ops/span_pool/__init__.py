"""Span pooling: one vector a span, of any parts, written in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from spanbert_kernels.ops import checks, library, plans
from spanbert_kernels.ops.backends import Operation
from spanbert_kernels.ops.choices import PARTS, Backend, Part
from spanbert_kernels.ops.plans import SpanPlan
from spanbert_kernels.ops.span_pool import reference

__all__ = ["PARTS", "span_pool"]

OPERATION = Operation("span_pool", ("cuda", "triton", "cpu", "eager"))
LINEAR_PARTS = {"start", "end", "mean", "sum", "width"}
# Without gradients the eager backend works in chunks of this many gathered elements, to stay small in memory.
EAGER_CHUNK = 2**26

_INPUTS = f"{plans.SPANS_SCHEMA}, Tensor? scores, Tensor? width_embedding, Tensor? width_index, int[] parts"
# `argmax [N, H]` and `lse [N, heads]` are what a GPU's backward wants back of the forward, if `keep` says so; the CPU
# kernels compute them again and return them empty.
_FORWARD = f"(Tensor hidden, {_INPUTS}, bool keep) -> (Tensor output, Tensor argmax, Tensor lse)"
_BACKWARD = (
    f"(Tensor grad_output, Tensor hidden, Tensor argmax, Tensor lse, {_INPUTS}) "
    "-> (Tensor grad_hidden, Tensor grad_scores, Tensor grad_width_embedding)"
)


def output_size(hidden: Tensor, scores: Tensor | None, width_embedding: Tensor | None, parts: Sequence[int]) -> Any:
    """Columns of the output: the sum of the parts' sizes."""
    total: Any = 0
    for part in parts:
        if PARTS[part] == "attention":
            total += hidden.shape[1] * (1 if scores is None else scores.shape[1])
        elif PARTS[part] == "width":
            total += 0 if width_embedding is None else width_embedding.shape[1]
        else:
            total += hidden.shape[1]
    return total


def kept_sizes(
    hidden: Tensor, num_spans: int, max_width: int, scores: Tensor | None, parts: Sequence[int], keep: bool
) -> tuple[tuple[int, ...], torch.dtype, tuple[int, ...]]:
    """What a GPU's forward keeps: shape and dtype of `argmax` (offsets from a span's first token), shape of `lse`."""
    names = [PARTS[part] for part in parts]
    argmax = (num_spans, hidden.shape[1]) if keep and "max" in names else (0, 0)
    lse = (num_spans, scores.shape[1]) if keep and "attention" in names and scores is not None else (0, 0)
    return argmax, torch.uint8 if 0 < max_width <= 256 else torch.int32, lse


def _forward_fake(
    hidden: Tensor,
    starts: Tensor | None,
    ends: Tensor | None,
    rows: Tensor | None,
    cu_seqlens: Tensor | None,
    first: Tensor | None,
    reach: Tensor | None,
    num_spans: int,
    max_width: int,
    scores: Tensor | None,
    width_embedding: Tensor | None,
    width_index: Tensor | None,
    parts: list[int],
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    on_gpu = first is not None
    argmax, argmax_dtype, lse = kept_sizes(hidden, num_spans, max_width, scores, parts, keep and on_gpu)
    return (
        hidden.new_empty(num_spans, output_size(hidden, scores, width_embedding, parts)),
        hidden.new_empty(argmax, dtype=argmax_dtype),
        hidden.new_empty(lse, dtype=torch.float32),
    )


def _backward_fake(
    grad_output: Tensor,
    hidden: Tensor,
    argmax: Tensor,
    lse: Tensor,
    starts: Tensor | None,
    ends: Tensor | None,
    rows: Tensor | None,
    cu_seqlens: Tensor | None,
    first: Tensor | None,
    reach: Tensor | None,
    num_spans: int,
    max_width: int,
    scores: Tensor | None,
    width_embedding: Tensor | None,
    width_index: Tensor | None,
    parts: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    def like(tensor: Tensor | None) -> Tensor:
        return hidden.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)

    return like(hidden), like(scores), like(width_embedding)


library.define("span_pool_forward", _FORWARD, _forward_fake, OPERATION.backends)
library.define("span_pool_backward", _BACKWARD, _backward_fake, OPERATION.backends)


def span_pool(
    hidden: Tensor,
    spans: Tensor | SpanPlan,
    parts: Sequence[Part],
    scores: Tensor | None = None,
    width_embedding: Tensor | None = None,
    *,
    width_rows: Callable[[Tensor], Tensor] | None = None,
    end_inclusive: bool = True,
    validate: bool = False,
    backend: Backend | None = None,
) -> Tensor:
    """One vector for every span, made of the parts asked for, in their order, without a `[N, width, H]` tensor.

    Args:
        hidden: `[T, H]`, packed tokens; float32, bfloat16, float16 or float64.
        spans: int32 or int64 `[N, 2]` packed positions, or a plan (`plan_spans`, `enumerate_spans`): faster.
        parts: any of `start`, `end` (the boundary tokens), `mean`, `sum`, `max` (over the span's tokens), `attention`
            (softmax of `scores` inside the span), `width` (a row of `width_embedding`), each at most once.
        scores: `[T]`, or `[T, K]` for K heads that each pool all of H (K * H columns, head by head).
        width_embedding: `[R, E]`; a span of w tokens takes row `min(w, R) - 1`.
        width_rows: another way from widths (int64 `[N]`) to rows (int64 `[N]`): buckets.
        end_inclusive: the end of a span tensor is its last token (default), or the one after it.
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
    checks.check_floating("hidden", hidden, 2, "[T, H]")
    plans.check_width_rows(width_rows)
    codes = check_parts(parts)
    resolved = plans.resolve(spans, hidden, end_inclusive, validate)
    chosen = OPERATION.choose(hidden, backend)
    scores = check_scores(scores, hidden, parts)
    width_embedding = check_table(width_embedding, hidden, parts)
    if chosen == "eager":
        start, end = resolved.bounds() if isinstance(resolved, SpanPlan) else resolved
        index = None if width_embedding is None else plans.width_index(end - start, len(width_embedding), width_rows)
        # Autocast would take the weighted sums out of float32, on this backend alone.
        with torch.autocast(hidden.device.type, enabled=False):
            return _eager(hidden, start, end, tuple(parts), scores, width_embedding, index)

    index = None
    if width_embedding is not None and width_rows is not None:
        start, end = resolved.bounds() if isinstance(resolved, SpanPlan) else resolved
        index = plans.width_index(end - start, len(width_embedding), width_rows)
    work = plans.work_for(resolved, chosen, hidden.shape[0])
    output: Tensor = SpanPool.apply(hidden, scores, width_embedding, index, codes, chosen, *work)
    return output


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
    rows = max(1, EAGER_CHUNK // max(1, int((end - start).max()) * hidden.shape[1]))
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


class SpanPool(torch.autograd.Function):
    """The compiled kernels under autograd."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        scores: Tensor | None,
        table: Tensor | None,
        index: Tensor | None,
        parts: list[int],
        backend: str,
        *work: Any,
    ) -> Tensor:
        keep = any(ctx.needs_input_grad[:3])
        output, argmax, lse = library.raw("span_pool_forward", backend)(
            hidden, *work, scores, table, index, parts, keep
        )
        # The softmax's result, rounded, is of no use to the backward: it is made again.
        ctx.save_for_backward(hidden, argmax, lse, scores, table, index, *work[:6])
        ctx.parts, ctx.backend, ctx.sizes = parts, backend, work[6:]
        result: Tensor = output
        return result

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        *saved, starts, ends, rows, cu_seqlens, first, reach = ctx.saved_tensors
        work = (starts, ends, rows, cu_seqlens, first, reach, *ctx.sizes)
        hidden, _, _, scores, table, _ = saved
        grads = SpanPoolBackward.apply(grad_output, *saved, ctx.parts, ctx.backend, *work)
        wanted = [
            grad if source is not None and needed else None
            for grad, source, needed in zip(grads, (hidden, scores, table), ctx.needs_input_grad, strict=False)
        ]
        return (*wanted, *[None] * (len(work) + 3))


class SpanPoolBackward(torch.autograd.Function):
    """The gradient, itself differentiable in `grad_output` where the parts are linear."""

    @staticmethod
    def forward(
        ctx: Any,
        grad_output: Tensor,
        hidden: Tensor,
        argmax: Tensor,
        lse: Tensor,
        scores: Tensor | None,
        table: Tensor | None,
        index: Tensor | None,
        parts: list[int],
        backend: str,
        *work: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(table, index, *work[:6])
        ctx.parts, ctx.backend, ctx.sizes = parts, backend, work[6:]
        grads: tuple[Tensor, Tensor, Tensor] = library.raw("span_pool_backward", backend)(
            grad_output, hidden, argmax, lse, *work, scores, table, index, parts
        )
        return grads

    @staticmethod
    def backward(ctx: Any, grad_hidden: Tensor, grad_scores: Tensor, grad_table: Tensor) -> tuple[Tensor | None, ...]:
        names = [PARTS[part] for part in ctx.parts]
        bent = [name for name in names if name not in LINEAR_PARTS]
        if bent:
            raise RuntimeError(
                f"span_pool has a second derivative for its linear parts only, not for {', '.join(bent)}; "
                'backend="eager" has it for all'
            )
        table, index, *tensors = ctx.saved_tensors
        work = (*tensors, *ctx.sizes)
        # The parts are linear in (hidden, table): the gradient's derivative is the forward pass itself.
        table_gradient = grad_table if table is not None else None
        again: Tensor = SpanPool.apply(grad_hidden, None, table_gradient, index, ctx.parts, ctx.backend, *work)
        return (again, *[None] * (len(work) + 8))
