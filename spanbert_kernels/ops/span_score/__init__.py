"""A scorer of two layers over pooled spans that never forms the layer between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from spanbert_kernels.ops import checks
from spanbert_kernels.ops.choices import PARTS, Activation, Backend, Part
from spanbert_kernels.ops.plans import SpanPlan
from spanbert_kernels.ops.span_linear import projection
from spanbert_kernels.ops.span_linear.call import check_call, eager
from spanbert_kernels.ops.span_linear.operators import ONCE
from spanbert_kernels.ops.span_pool import check_parts
from spanbert_kernels.ops.span_score import layer as layers
from spanbert_kernels.ops.span_score import reference
from spanbert_kernels.ops.span_score.layer import Norm
from spanbert_kernels.ops.span_score.operators import OPERATION, SpanScore

__all__ = ["span_score"]


def span_score(
    hidden: Tensor | Mapping[Part, Tensor],
    spans: Tensor | SpanPlan,
    parts: Sequence[Part],
    weight: Tensor,
    bias: Tensor | None,
    out_weight: Tensor,
    out_bias: Tensor | None = None,
    scores: Tensor | None = None,
    width_embedding: Tensor | None = None,
    *,
    activation: Activation = "relu",
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    norm: Norm | None = None,
    cu_seqlens: Tensor | None = None,
    width_rows: Callable[[Tensor], Tensor] | None = None,
    end_inclusive: bool = True,
    validate: bool = False,
    backend: Backend | None = None,
) -> Tensor:
    """`Linear -> activation -> dropout (-> LayerNorm) -> Linear` over pooled spans: the scorers of span models.

    The first layer is computed as `span_linear` does it. Its result, `[N, O]`, is never formed: tiles of it are
    reduced against `out_weight` as they arise, and recomputed in the backward. Memory: `[T, B * O]` for B parts.

    Args:
        hidden: `[T, H]`, packed tokens; float32, bfloat16, float16 or float64. Or a mapping of the parts that read
            tokens to a tensor each, of the same T; H may differ, and the columns of `weight` with it.
        spans: int32 or int64 `[N, 2]` packed positions, or a plan (`plan_spans`, `enumerate_spans`): faster.
        parts: as `span_pool` has them, without `max`: any of `start`, `end`, `mean`, `sum`, `attention`, `width`.
        weight: `[O, D]` of the first layer, D the columns of that `span_pool`.
        bias: `[O]` of the first layer or None; with `cu_seqlens` also `[D, O]`, a row a document.
        out_weight: `[S, O]` of the second layer, or `[O]`; with `cu_seqlens` also `[D, S, O]`: every document
            has its classes.
        out_bias: `[S]`, or one number for an `out_weight [O]`; with `cu_seqlens` also `[D, S]`.
        scores: `[T]`, or `[T, K]` for K heads (K * H columns), for `attention`.
        width_embedding: `[R, E]`, for `width`; a span of w tokens takes row `min(w, R) - 1`.
        activation: `none`, `relu` or `gelu` (the exact one).
        dropout_p: share of the entries between the layers that is dropped, in [0, 1).
        seed: int64 tensor with one number; by default drawn from torch's generator, once per call.
        norm: `(weight [O], bias [O], epsilon)` of a LayerNorm before the second layer; weight and bias may be None.
        cu_seqlens: int32 or int64 `[D + 1]`, offsets of the documents. A span is of the document of its first token.
        width_rows: another way from widths (int64 `[N]`) to rows (int64 `[N]`): buckets.
        end_inclusive: the end of a span tensor is its last token (default), or the one after it.
        validate: check the range on any device (on a CPU it is always checked).
        backend: the backend to use; by default the best one here.

    Returns:
        `[N, S]`, or `[N]` for an `out_weight [O]`, in the dtype of `hidden`, computed in float32 (float64) and rounded
        once. A span without tokens has a pooled vector of zeros, and zeros for what differs by document: what the
        layers make of it.

    Gradients reach `hidden`, both weights and biases, the norm's, `scores` and `width_embedding`. A second derivative
    is there on `eager`.

    Raises:
        ValueError: shapes, an unknown or repeated part, `max`, a missing input, an unknown activation, a dropout
            outside [0, 1), a span outside the tokens (named).
        TypeError: dtypes or devices.
        RuntimeError: a second derivative on another backend than `eager`.

    Source: the mention scorer of Lee et al. 2017. Dropout: `ops/philox.py`, keyed by output row and column.

    Example:
        >>> hidden = torch.tensor([[1.0, 5.0], [3.0, 2.0], [0.0, 9.0]])
        >>> weight, out_weight = torch.tensor([[1.0, -1.0], [1.0, 1.0]]), torch.tensor([10.0, 1.0])
        >>> span_score(hidden, torch.tensor([[0, 0], [1, 2], [0, 2]]), ["start"], weight, None, out_weight).tolist()
        [6.0, 15.0, 6.0]
    """
    if "max" in [PARTS[code] for code in check_parts(parts)]:
        raise ValueError(
            "parts: span_score takes no part 'max': it is not linear, so its layer cannot be pooled after the "
            "projection; use span_linear(..., activation=...) and a second linear layer"
        )
    call = check_call(
        OPERATION, hidden, spans, parts, weight, bias, scores, width_embedding, activation, cu_seqlens, width_rows,
        end_inclusive, validate, backend,
    )  # fmt: skip
    layer = layers.check_layer(out_weight, out_bias, norm, call)
    dropout = checks.check_dropout(dropout_p, seed, "hidden", call.like)
    # Autocast would take the products out of float32.
    with torch.autocast(call.like.device.type, enabled=False):
        if call.backend == "eager":
            scored = eager(call, reference.span_score, *dropout, layer, sources=layer.tensors())
        else:
            weight, added = layers.in_kernels(layer)
            document = of_span = call.document()
            if call.fewer_products_over_spans():
                call = projection.over_pooled_spans(call)
            ready = projection.project(call, ONCE.format("span_score"), exactly=layer.epsilon is not None)
            projected, work, inner, _ = ready
            weight = ready.padded(weight)
            documents = call.cu_seqlens if weight.dim() == 3 else None
            weight, document = (weight[None], None) if documents is None else (weight, document)
            scored = SpanScore.apply(
                projected, inner.scores, inner.width_projected, inner.bias, weight, inner.width_index, inner.parts,
                inner.activation, documents, document, layer.epsilon, dropout, work, call.backend,
            )  # fmt: skip
            for each in added:
                scored = reference.plus_bias(scored, of_span, each)
    scored = scored.to(call.dtype)
    return scored.squeeze(1) if out_weight.dim() == 1 else scored
