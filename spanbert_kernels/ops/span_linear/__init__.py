"""A linear layer over pooled spans, computed as project, then pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spanbert_kernels.ops import documents, products
from spanbert_kernels.ops.choices import ACTIVATIONS, Activation, Backend, Part
from spanbert_kernels.ops.plans import SpanPlan
from spanbert_kernels.ops.span_linear import projection, reference
from spanbert_kernels.ops.span_linear.call import Call, check_call, eager
from spanbert_kernels.ops.span_linear.operators import ONCE, OPERATION, SpanLinear

__all__ = ["ACTIVATIONS", "span_linear"]


def span_linear(
    hidden: Tensor | Mapping[Part, Tensor],
    spans: Tensor | SpanPlan,
    parts: Sequence[Part],
    weight: Tensor,
    bias: Tensor | None = None,
    scores: Tensor | None = None,
    width_embedding: Tensor | None = None,
    *,
    activation: Activation = "none",
    cu_seqlens: Tensor | None = None,
    width_rows: Callable[[Tensor], Tensor] | None = None,
    end_inclusive: bool = True,
    validate: bool = False,
    backend: Backend | None = None,
) -> Tensor:
    """`activation(span_pool(hidden, spans, parts, ...) weight^T + bias)`, without the pooled vectors.

    The weight's blocks are applied to the T tokens once, and spans gather and add projected rows: N / T times fewer
    multiplications. Where there are fewer spans than tokens (N < T) that would be more, and pooled spans are multiplied
    instead. `max` is not linear: its block is always applied to pooled spans.

    Args:
        hidden: `[T, H]`, packed tokens; float32, bfloat16, float16 or float64. Or a mapping of the parts that read
            tokens to a tensor each, of the same T; H may differ, and the columns of `weight` with it.
        spans: int32 or int64 `[N, 2]` packed positions, or a plan (`plan_spans`, `enumerate_spans`): faster.
        parts: as `span_pool` has them: any of `start`, `end`, `mean`, `sum`, `max`, `attention`, `width`.
        weight: `[O, D]`, D the columns of that `span_pool`: a Linear's weight.
        bias: `[O]`, or with `cu_seqlens` `[D, O]`: a row a document.
        scores: `[T]`, or `[T, K]` for K heads (K * H columns), for `attention`.
        width_embedding: `[R, E]`, for `width`; a span of w tokens takes row `min(w, R) - 1`.
        activation: `none`, `relu` or `gelu` (the exact one).
        cu_seqlens: int32 or int64 `[D + 1]`, offsets of the documents. A span is of the document of its first token.
        width_rows: another way from widths (int64 `[N]`) to rows (int64 `[N]`): buckets.
        end_inclusive: the end of a span tensor is its last token (default), or the one after it.
        validate: check the range on any device (on a CPU it is always checked).
        backend: the backend to use; by default the best one here.

    Returns:
        `[N, O]` in the dtype of `hidden`, computed in float32 (float64) and rounded once. A span without tokens has a
        pooled vector of zeros, and zeros for what differs by document: it gives `activation(bias)`.

    Gradients reach `hidden`, `weight`, `bias`, `scores` and `width_embedding`. A second derivative is there on `eager`.

    Raises:
        ValueError: shapes, an unknown or repeated part, a missing input, an unknown activation, a span outside the
            tokens (named).
        TypeError: dtypes or devices.
        RuntimeError: a second derivative on another backend than `eager`.

    Source: a linear layer over a concatenation is a sum of products, one a part; Kirstain et al. 2021 score mentions so
    from their endpoints. Here it holds for every part that is linear in the tokens.

    Example:
        >>> hidden = torch.tensor([[1.0, 5.0], [3.0, 2.0], [0.0, 9.0]])
        >>> weight = torch.tensor([[1.0, 0.0, 0.0, 2.0]])
        >>> span_linear(hidden, torch.tensor([[0, 1], [1, 2], [0, 2]]), ["start", "mean"], weight).tolist()
        [[8.0], [14.0], [11.666666984558105]]
    """
    call = check_call(
        OPERATION, hidden, spans, parts, weight, bias, scores, width_embedding, activation, cu_seqlens, width_rows,
        end_inclusive, validate, backend,
    )  # fmt: skip
    # Autocast would take the products out of float32.
    with torch.autocast(call.like.device.type, enabled=False):
        if call.backend == "eager":
            return eager(call, _definition).to(call.dtype)
        if call.fewer_products_over_spans():
            return reference.activate(_over_pooled_spans(call), activation).to(call.dtype)
        addend, column = None, call.columns.maximum
        if column is not None:
            block = call.weight[:, column : column + call.tokens.columns("max")]
            addend = products.linear(projection.pool(call, ["max"]), block)
        ready = projection.project(call, ONCE.format("span_linear"))
        projected, work, inputs, zeros = ready
        output: Tensor = SpanLinear.apply(
            projected, inputs.scores, inputs.width_projected, inputs.bias,
            None if addend is None else ready.padded(addend), inputs.width_index, inputs.parts, inputs.activation,
            work, call.backend, call.dtype,
        )  # fmt: skip
        return (output[:, : len(call.weight)] if zeros else output).to(call.dtype)


def _definition(*inputs: Any) -> Tensor:
    return reference.span_linear(*inputs[:-1])  # the last are the output rows, which only dropout asks for


def _over_pooled_spans(call: Call) -> Tensor:
    """What stands before the activation, from pooled spans."""
    pooled, document = projection.pool(call, call.parts), call.document()
    if document is None or call.bias is None or call.bias.dim() == 1:
        return products.linear(pooled, call.weight, call.bias)
    return products.linear(pooled, call.weight) + documents.rows_of_documents(call.bias, document)
