"""Self-attention of packed documents, each with itself: BERT's attention without padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import torch
from torch import Tensor

from spanbert_kernels.ops import attention_plans, checks, library, philox
from spanbert_kernels.ops.attention_plans import AttentionPlan, AttentionWork
from spanbert_kernels.ops.backends import Operation
from spanbert_kernels.ops.choices import Backend
from spanbert_kernels.ops.document_attention import reference

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["document_attention"]

OPERATION = Operation("document_attention", ("triton", "cuda", "cpu", "eager"))
WORK_TENSORS = 7  # the first fields of AttentionWork

# Softmax attention over all keys that a query sees, `softmax(q k^T scale) v`, for any work: cross_document_attention
# calls the same operators. `q [query rows, heads, d]`, `k`, `v [key rows, heads, d]` -> output like q, log-sum-exp
# `[heads, query rows]`, natural, float32 (float64 for float64). A query row without a key, or of no document, gives 0
# and -inf, and its gradient is 0, as is that of a key row that nobody sees. Dropout: `ops/philox.py`, by row numbers.
_CALL = f"{attention_plans.WORK_SCHEMA}, float scale, float dropout_p, Tensor? seed"
_FORWARD = f"(Tensor q, Tensor k, Tensor v, {_CALL}) -> (Tensor, Tensor)"
_BACKWARD = (
    f"(Tensor grad_output, Tensor q, Tensor k, Tensor v, Tensor output, Tensor lse, {_CALL})"
    " -> (Tensor, Tensor, Tensor)"
)


def lse_like(q: Tensor) -> Tensor:
    """An empty log-sum-exp for `q [rows, heads, d]`: `[heads, rows]`, float32 (float64 for float64)."""
    return q.new_empty(q.shape[1], q.shape[0], dtype=torch.promote_types(q.dtype, torch.float32))


def _forward_fake(q: Tensor, k: Tensor, v: Tensor, *call: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), lse_like(q)


def _backward_fake(
    grad_output: Tensor, q: Tensor, k: Tensor, v: Tensor, output: Tensor, lse: Tensor, *call: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


library.define("document_attention_forward", _FORWARD, _forward_fake, ("cpu", "triton"))
library.define("document_attention_backward", _BACKWARD, _backward_fake, ("cpu", "triton"))


def check_heads(q: Tensor, k: Tensor, v: Tensor, rows: str) -> None:
    """`q`, `k`, `v` agree in heads, size, dtype and device, and `k`, `v` in rows."""
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        checks.check_floating(name, tensor, 3, f"[{rows}, heads, head_dim]")
    for name, tensor in (("k", k), ("v", v)):
        checks.check_same(name, tensor, "q", q)
        if tensor.shape[1:] != q.shape[1:]:
            raise ValueError(
                f"{name} must have {list(q.shape[1:])} (heads, head_dim) as q has, got {list(tensor.shape[1:])}"
            )
    if k.shape != v.shape:
        raise ValueError(f"k and v must have the same shape, got {list(k.shape)} and {list(v.shape)}")
    if q.shape[2] == 0:
        raise ValueError(f"head_dim must be at least 1, got q of shape {list(q.shape)}")


def check_dropout(dropout_p: float, seed: Tensor | None, q: Tensor) -> Tensor | None:
    """The seed of this call: the one given, a fresh one, or None where nothing is dropped."""
    checks.check_probability("dropout_p", dropout_p)
    if seed is None:
        return None if dropout_p == 0.0 else philox.new_seed(q.device)
    checks.check_tensor("seed", seed, "[1]")
    if seed.dtype != torch.int64 or seed.numel() != 1:
        raise TypeError(f"seed must be one int64 number in a tensor, got {seed.dtype} of shape {list(seed.shape)}")
    checks.check_device("seed", seed, "q", q)
    return None if dropout_p == 0.0 else seed.reshape(1)


def check_scale(scale: float | None, q: Tensor) -> float:
    """The scale of the logits, by default that of the heads' size."""
    if scale is None:
        return q.shape[2] ** -0.5
    checks.check_number("scale", scale)
    return scale


class AttentionOptions(TypedDict, total=False):
    """What both attentions take, whatever they return."""

    dropout_p: float
    seed: Tensor | None
    scale: float | None
    backend: Backend | None


class DocumentOptions(AttentionOptions, total=False):
    max_seqlen: int | None


Documents = Tensor | AttentionPlan


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
    check_heads(q, k, v, "T")
    if q.shape[0] != k.shape[0]:
        raise ValueError(f"q and k must have the same number of tokens, got {q.shape[0]} and {k.shape[0]}")
    if isinstance(cu_seqlens, AttentionPlan):
        plan = _check_plan(cu_seqlens, q)
    else:
        checks.check_offsets("cu_seqlens", cu_seqlens, q.shape[0], "tokens")
        believed = attention_plans.checked_max_seqlen(max_seqlen, cu_seqlens)
        plan = AttentionPlan(
            cu_seqlens=cu_seqlens, num_tokens=q.shape[0], max_seqlen=believed, max_documents=1, checked=True
        )
    checks.check_device("cu_seqlens", plan.cu_seqlens, "q", q)
    seed = check_dropout(dropout_p, seed, q)
    scale = check_scale(scale, q)
    checks.check_flag("return_lse", return_lse)
    chosen = OPERATION.choose(q, backend)
    if chosen == "eager":
        known = (plan.max_seqlen or None) if plan is cu_seqlens else max_seqlen
        # Autocast would take the products out of float32, on this backend alone.
        with torch.autocast(q.device.type, enabled=False):
            output, lse = reference.document_attention(q, k, v, plan.cu_seqlens, scale, dropout_p, seed, known)
    else:
        call = (OPERATION.name, chosen, scale, dropout_p, seed)
        output, lse = DocumentAttention.apply(q, k, v, *call, *plan.work(chosen != "cpu"))
    return (output, lse) if return_lse else output


def _check_plan(plan: AttentionPlan, q: Tensor) -> AttentionPlan:
    if plan.cu_clusters is not None:
        raise ValueError("this plan is one of clusters, for cross_document_attention: make it of cu_seqlens alone")
    if plan.num_tokens != q.shape[0]:
        raise ValueError(f"the plan was made for {plan.num_tokens} tokens, but q has {q.shape[0]}")
    return plan


class DocumentAttention(torch.autograd.Function):
    """The compiled kernels under autograd. A second derivative raises."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        operation: str,
        backend: str,
        scale: float,
        dropout_p: float,
        seed: Tensor | None,
        *work: Any,
    ) -> tuple[Tensor, Tensor]:
        output, lse = library.raw("document_attention_forward", backend)(q, k, v, *work, scale, dropout_p, seed)
        found = AttentionWork(*work)
        ctx.save_for_backward(q, k, v, output, lse, seed, *found[:WORK_TENSORS])
        ctx.call = (operation, backend, scale, dropout_p, found[WORK_TENSORS:])
        ctx.mark_non_differentiable(lse)
        return output, lse

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads = DocumentAttentionBackward.apply(grad_output, *ctx.saved_tensors, *ctx.call)
        return (*grads, *[None] * (5 + len(AttentionWork._fields)))


class DocumentAttentionBackward(torch.autograd.Function):
    """The gradient; its own derivative raises."""

    @staticmethod
    def forward(
        ctx: Any,
        grad_output: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        output: Tensor,
        lse: Tensor,
        seed: Tensor | None,
        *rest: Any,
    ) -> tuple[Tensor, Tensor, Tensor]:
        operation, backend, scale, dropout_p, sizes = rest[WORK_TENSORS:]
        ctx.operation = operation
        grads: tuple[Tensor, Tensor, Tensor] = library.raw("document_attention_backward", backend)(
            grad_output, q, k, v, output, lse, *rest[:WORK_TENSORS], *sizes, scale, dropout_p, seed
        )
        return grads

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(f'{ctx.operation} has no second derivative, but document_attention on backend="eager"')
