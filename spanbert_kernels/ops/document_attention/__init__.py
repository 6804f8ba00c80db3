"""Self-attention of packed documents, each with itself: BERT's attention without padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict, overload

import torch
from torch import Tensor

from spanbert_kernels.ops import attention_plans, checks
from spanbert_kernels.ops.attention.checks import check_heads, check_scale
from spanbert_kernels.ops.attention.operators import OPERATION, DistanceAttention, QkvAttention, attend, parts_of
from spanbert_kernels.ops.attention.relative import DistanceTerms, RelativeTerms, check_relative
from spanbert_kernels.ops.attention_plans import AttentionPlan
from spanbert_kernels.ops.backends import Reasons
from spanbert_kernels.ops.choices import Backend
from spanbert_kernels.ops.document_attention import reference
from spanbert_kernels.ops.operators import needs_gradient
from spanbert_kernels.ops.repeats import Key, key_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["document_attention", "document_attention_qkv"]


class AttentionOptions(TypedDict, total=False):
    """What both attentions take, whatever they return."""

    dropout_p: float
    seed: Tensor | None
    scale: float | None
    backend: Backend | None


class DocumentOptions(AttentionOptions, total=False):
    max_seqlen: int | None
    window: int | None
    relative: RelativeTerms | None


Documents = Tensor | AttentionPlan

# Who cannot take a window or relative terms.
WITHOUT_DISTANCES: Reasons = (("cuda", "it has no kernel for a window or relative terms"),)


@overload
def document_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Documents,
    *,
    return_lse: Literal[False] = ...,
    **options: Unpack[DocumentOptions],
) -> Tensor: ...


@overload
def document_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Documents,
    *,
    return_lse: Literal[True],
    **options: Unpack[DocumentOptions],
) -> tuple[Tensor, Tensor]: ...


@overload
def document_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Documents, *, return_lse: bool, **options: Unpack[DocumentOptions]
) -> Tensor | tuple[Tensor, Tensor]: ...


def document_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor | AttentionPlan,
    *,
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    scale: float | None = None,
    max_seqlen: int | None = None,
    window: int | None = None,
    relative: RelativeTerms | None = None,
    return_lse: bool = False,
    backend: Backend | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention of each document with itself, `softmax(q k^T * scale) v`, over packed documents.

    Args:
        q, k, v: `[T, heads, head_dim]`, float32, bfloat16, float16 or float64; any strides, so views of one fused
            `[T, 3 * heads * head_dim]` projection are taken as they are.
        cu_seqlens: int32 or int64 `[D + 1]`, offsets of the documents; empty documents are fine. Or the plan made of it
            by `plan_attention`, which serves all layers of a batch.
        dropout_p: share of the attention entries dropped, in [0, 1).
        seed: int64 tensor with one number; by default drawn from torch's generator, once per call.
        scale: by default `head_dim ** -0.5`.
        max_seqlen: tokens of the longest document, where the caller knows it; saves a synchronisation on `eager`.
            Compiled kernels on a GPU, where nobody looks at it, go by the offsets; a plan measures it once.
        window: a query sees the keys up to so many tokens before and behind it alone; by default all of its document.
        relative: terms of the logits by a key's distance from its query, as in DeBERTa, T5 and MPNet.
        return_lse: also return the log-sum-exp (natural log, `[heads, T]`, float32, not differentiable).
        backend: the backend to use; by default the best one here.

    Returns:
        `[T, heads, head_dim]`, or that and the log-sum-exp.

    Raises:
        ValueError: shapes, offsets that do not ascend from 0 to T, a dropout outside [0, 1).
        TypeError: dtypes or devices.

    Large scores: gradients are as exact as on `eager`. The compiled backwards make the weights again from the rounded
    log-sum-exp, `exp(score - lse)`, and divide them by their sum.

    Source: Vaswani et al. 2017; the packing is that of flash-attention's varlen interface. Dropout: `ops/philox.py`.

    Example:
        >>> q = k = v = torch.ones(3, 1, 2)
        >>> document_attention(q, k, v, torch.tensor([0, 1, 3])).shape
        torch.Size([3, 1, 2])
    """
    by_distance = window is not None or relative is not None
    plan, chosen, key = _checked(q, k, v, cu_seqlens, max_seqlen, backend, by_distance)
    dropout = checks.check_dropout(dropout_p, seed, "q", q)
    scale = check_scale(scale, q)
    checks.check_flag("return_lse", return_lse)
    if window is not None:
        window = checks.check_integer("window", window, 0)
    if relative is not None:
        check_relative(relative, q)
    if chosen == "eager":
        known = (plan.max_seqlen or None) if plan is cu_seqlens else max_seqlen
        # Autocast would take the products out of float32, on this backend alone.
        with torch.autocast(q.device.type, enabled=False):
            output, lse = reference.document_attention(
                q, k, v, plan.cu_seqlens, scale, *dropout, known, window, relative
            )
    elif by_distance:
        terms, work = DistanceTerms.of(window, relative), plan.work(chosen != "cpu")
        tables, rest = terms[2:], (terms.window, terms.index, chosen, work, scale, dropout)
        output, lse = DistanceAttention.apply(q, k, v, *tables, *rest)
    else:
        output, lse = attend(OPERATION.name, chosen, q, k, v, plan, scale, dropout, key)
    return (output, lse) if return_lse else output


@overload
def document_attention_qkv(
    qkv: Tensor, cu_seqlens: Documents, *, return_lse: Literal[False] = ..., **options: Unpack[DocumentOptions]
) -> Tensor: ...


@overload
def document_attention_qkv(
    qkv: Tensor, cu_seqlens: Documents, *, return_lse: Literal[True], **options: Unpack[DocumentOptions]
) -> tuple[Tensor, Tensor]: ...


def document_attention_qkv(
    qkv: Tensor, cu_seqlens: Documents, *, return_lse: bool = False, **options: Unpack[DocumentOptions]
) -> Tensor | tuple[Tensor, Tensor]:
    """`document_attention` of q, k and v that are one tensor, whose gradient is written as one: a copy less.

    Args:
        qkv: `[T, 3, heads, head_dim]`, what one product for all three gives.
        cu_seqlens, return_lse, options: as in `document_attention`.

    Returns:
        What `document_attention(*qkv.unbind(1), ...)` returns, bit for bit, and so are its gradients.

    Raises:
        ValueError: shapes, offsets that do not ascend from 0 to T, a dropout outside [0, 1).
        TypeError: dtypes or devices.

    Source: flash-attention's `flash_attn_varlen_qkvpacked_func` takes one tensor, too.

    Example:
        >>> document_attention_qkv(torch.ones(3, 3, 1, 2), torch.tensor([0, 1, 3])).shape
        torch.Size([3, 1, 2])
    """
    checks.check_floating("qkv", qkv, 4, "[T, 3, heads, head_dim]")
    if qkv.shape[1] != 3:
        raise ValueError(f"qkv must have shape [T, 3, heads, head_dim], got {list(qkv.shape)}")
    offsets = cu_seqlens.cu_seqlens if isinstance(cu_seqlens, AttentionPlan) else cu_seqlens
    if isinstance(offsets, Tensor):
        checks.check_device("cu_seqlens", offsets, "qkv", qkv)
    q, k, v = parts_of(qkv)
    by_distance = options.get("window") is not None or options.get("relative") is not None
    if needs_gradient(qkv) and not by_distance:
        given = (cu_seqlens, options.get("max_seqlen"), options.get("backend"))
        plan, chosen, key = _checked(q, k, v, *given, distances=False)
        if chosen != "eager":
            dropout = checks.check_dropout(options.get("dropout_p", 0.0), options.get("seed"), "qkv", qkv)
            checks.check_flag("return_lse", return_lse)
            rest = (plan.work(chosen != "cpu"), check_scale(options.get("scale"), q), dropout)
            output, lse = QkvAttention.apply(qkv, chosen, *rest, None if key is None else plan.repeats)
            return (output, lse) if return_lse else output
    return document_attention(q, k, v, cu_seqlens, return_lse=return_lse, **options)


def _checked(
    q: Tensor, k: Tensor, v: Tensor, sight: Documents, max_seqlen: int | None, backend: Backend | None, distances: bool
) -> tuple[AttentionPlan, Backend, Key | None]:
    """The plan, the backend, and what a plan's call depends on: one that was checked before is not again."""
    key = None
    if isinstance(sight, AttentionPlan):
        key = key_of(OPERATION.name, backend, distances, q, k, v)
        if key is not None and (known := sight.repeats.checked.get(key)) is not None:
            return sight, known, key
    check_heads(q, k, v, "T")
    if q.shape[0] != k.shape[0]:
        raise ValueError(f"q and k must have the same number of tokens, got {q.shape[0]} and {k.shape[0]}")
    if isinstance(sight, AttentionPlan):
        plan = _check_plan(sight, q)
    else:
        checks.check_offsets("cu_seqlens", sight, q.shape[0], "tokens")
        believed = attention_plans.checked_max_seqlen(max_seqlen, sight)
        said = 0 if believed else max_seqlen or 0
        plan = AttentionPlan.of_documents(sight, q.shape[0], believed, said_max_seqlen=said, checked=True)
    checks.check_device("cu_seqlens", plan.cu_seqlens, "q", q)
    chosen = OPERATION.choose(q, backend, WITHOUT_DISTANCES if distances else ())
    if key is not None:
        plan.repeats.keep(key, chosen)
    return plan, chosen, key


def _check_plan(plan: AttentionPlan, q: Tensor) -> AttentionPlan:
    if plan.cu_clusters is not None:
        raise ValueError("this plan is one of clusters, for cross_document_attention: make it of cu_seqlens alone")
    if plan.num_tokens != q.shape[0]:
        raise ValueError(f"the plan was made for {plan.num_tokens} tokens, but q has {q.shape[0]}")
    return plan
