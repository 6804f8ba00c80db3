"""The raw operators of span_pool, and them under autograd."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from spanbert_kernels.ops.backends import ROWS, Operation
from spanbert_kernels.ops.choices import PARTS
from spanbert_kernels.ops.operators import gradients, raw, save, saved
from spanbert_kernels.ops.plans import SpanWork
from spanbert_kernels.ops.repeats import Repeats

OPERATION = Operation(
    "span_pool", ROWS, summary="start, end, mean, sum, max, attention, width of each span in one pass"
)
LINEAR_PARTS = {"start", "end", "mean", "sum", "width"}


class PoolInputs(NamedTuple):
    """What spans are pooled to, and what that takes beside the tokens.

    Attributes:
        scores: `[T, heads]` in the accumulators' dtype, for `attention`.
        width_embedding: `[R, E]`, for `width`.
        width_index: int64 `[N]` by output row, absent: row `min(width, R) - 1`.
        parts: indices of PARTS.
    """

    scores: Tensor | None
    width_embedding: Tensor | None
    width_index: Tensor | None
    parts: list[int]


def output_size(hidden: Tensor, inputs: PoolInputs) -> Any:
    """Columns of the output: the sum of the parts' sizes."""
    total: Any = 0
    for part in inputs.parts:
        if PARTS[part] == "attention":
            total += hidden.shape[1] * (1 if inputs.scores is None else inputs.scores.shape[1])
        elif PARTS[part] == "width":
            total += 0 if inputs.width_embedding is None else inputs.width_embedding.shape[1]
        else:
            total += hidden.shape[1]
    return total


def kept_tensors(hidden: Tensor, work: SpanWork, inputs: PoolInputs, keep: bool) -> tuple[Tensor, Tensor]:
    """What a GPU's forward keeps: `argmax` (offsets from a span's first token) and `lse`; empty where it does not."""
    names = [PARTS[part] for part in inputs.parts]
    argmax = (work.num_spans, hidden.shape[1]) if keep and "max" in names else (0, 0)
    scores = inputs.scores
    lse = (work.num_spans, scores.shape[1]) if keep and "attention" in names and scores is not None else (0, 0)
    offsets = torch.uint8 if 0 < work.max_width <= 256 else torch.int32
    return hidden.new_empty(argmax, dtype=offsets), hidden.new_empty(lse, dtype=torch.float32)


@raw(OPERATION)
def span_pool_forward(hidden: Tensor, work: SpanWork, inputs: PoolInputs, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    # The output, and `argmax [N, H]` and `lse [N, heads]`, which a GPU's backward wants back, if `keep` says so; the
    # CPU kernels compute them again and return them empty.
    output = hidden.new_empty(work.num_spans, output_size(hidden, inputs))
    return (output, *kept_tensors(hidden, work, inputs, keep and work.first is not None))


@raw(OPERATION)
def span_pool_backward(
    grad_output: Tensor, hidden: Tensor, argmax: Tensor, lse: Tensor, work: SpanWork, inputs: PoolInputs
) -> tuple[Tensor, Tensor, Tensor]:
    # The gradients of `hidden`, `scores` and `width_embedding`.
    scores, table, *_ = (hidden.new_empty(0) if x is None else x.new_empty(x.shape) for x in inputs[:2])
    return hidden.new_empty(hidden.shape), scores, table


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
        work: SpanWork,
        repeats: Repeats | None = None,
    ) -> Tensor:
        inputs, keep = PoolInputs(scores, table, index, parts), any(ctx.needs_input_grad[:3])
        result: Tensor
        result, argmax, lse = span_pool_forward(backend, hidden, work, inputs, keep, repeats=repeats)
        # The softmax's result, rounded, is of no use to the backward: it is made again.
        save(ctx, hidden, scores, table, argmax, lse, index, parts, backend, work, repeats=repeats)
        return result

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        kept = saved(ctx)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            grads = SpanPoolBackward.apply(grad_output, *kept)
        else:
            grads = _gradients(ctx.repeats, grad_output, *kept)
        wanted = [
            grad if source is not None and needed else None
            for grad, source, needed in zip(grads, kept[:3], ctx.needs_input_grad, strict=False)
        ]
        return gradients(ctx, *wanted)


def _gradients(
    repeats: Repeats | None,
    grad_output: Tensor,
    hidden: Tensor,
    scores: Tensor | None,
    table: Tensor | None,
    argmax: Tensor,
    lse: Tensor,
    index: Tensor | None,
    parts: list[int],
    backend: str,
    work: SpanWork,
) -> tuple[Tensor, Tensor, Tensor]:
    values = (grad_output, hidden, argmax, lse, work, PoolInputs(scores, table, index, parts))
    grads: tuple[Tensor, Tensor, Tensor] = span_pool_backward(backend, *values, repeats=repeats)
    return grads


class SpanPoolBackward(torch.autograd.Function):
    """The gradient, itself differentiable in `grad_output` where the parts are linear."""

    @staticmethod
    def forward(
        ctx: Any,
        grad_output: Tensor,
        hidden: Tensor,
        scores: Tensor | None,
        table: Tensor | None,
        argmax: Tensor,
        lse: Tensor,
        index: Tensor | None,
        parts: list[int],
        backend: str,
        work: SpanWork,
    ) -> tuple[Tensor, Tensor, Tensor]:
        save(ctx, table, index, parts, backend, work)
        return _gradients(None, grad_output, hidden, scores, table, argmax, lse, index, parts, backend, work)

    @staticmethod
    def backward(ctx: Any, grad_hidden: Tensor, grad_scores: Tensor, grad_table: Tensor) -> tuple[Tensor | None, ...]:
        table, index, parts, backend, work = saved(ctx)
        bent = [PARTS[part] for part in parts if PARTS[part] not in LINEAR_PARTS]
        if bent:
            raise RuntimeError(
                f"span_pool has a second derivative for its linear parts only, not for {', '.join(bent)}; "
                'backend="eager" has it for all'
            )
        # The parts are linear in (hidden, table): the gradient's derivative is the forward pass itself.
        table_gradient = grad_table if table is not None else None
        return gradients(ctx, SpanPool.apply(grad_hidden, None, table_gradient, index, parts, backend, work))
