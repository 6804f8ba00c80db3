"""The raw operators of cross_document_attention beyond the joint softmax, and them under autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spanbert_kernels.ops.attention.work import AttentionWork, PairStatistics
from spanbert_kernels.ops.backends import ATTENTION, Operation
from spanbert_kernels.ops.operators import Gradient, gradients, raw, save, saved
from spanbert_kernels.ops.philox import Dropout

OPERATION = Operation("cross_document_attention", ATTENTION, summary="attention between the documents of a cluster")


@raw(OPERATION)
def cross_document_attention_weights(
    q: Tensor, k: Tensor, lse: Tensor, work: AttentionWork, places: int, scale: float
) -> Tensor:
    # The softmax mass on each document of a query's cluster, before dropout, from the log-sum-exp of the forward:
    # float32 `[query rows, heads, places]`, places = documents of the largest cluster; 0 where nothing is seen.
    return q.new_empty(q.shape[0], q.shape[1], places, dtype=torch.float32)


@raw(OPERATION)
def cross_document_attention_pairwise_forward(
    q: Tensor, k: Tensor, v: Tensor, work: AttentionWork, statistics: PairStatistics, scale: float, dropout: Dropout
) -> tuple[Tensor, Tensor]:
    # A softmax for each document that a query sees, averaged over those that have keys: output like q, and the
    # log-sum-exps `[heads, size]`, natural, -inf where a document is not seen or has no key.
    wide = torch.promote_types(q.dtype, torch.float32)
    return q.new_empty(q.shape), q.new_empty(q.shape[1], statistics.size, dtype=wide)


@raw(OPERATION)
def cross_document_attention_pairwise_backward(
    grad_output: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    work: AttentionWork,
    statistics: PairStatistics,
    scale: float,
    dropout: Dropout,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


REFUSAL = "cross_document_attention has no second derivative"


class PairwiseAttention(torch.autograd.Function):
    """The compiled kernels under autograd. A second derivative raises."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        backend: str,
        work: AttentionWork,
        statistics: PairStatistics,
        scale: float,
        dropout: Dropout,
    ) -> tuple[Tensor, Tensor]:
        call = (work, statistics, scale, dropout)
        output, lse = cross_document_attention_pairwise_forward(backend, q, k, v, *call)
        save(ctx, backend, q, k, v, lse, *call)
        ctx.mark_non_differentiable(lse)
        return output, lse

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        backend, *kept = saved(ctx)
        compute = cross_document_attention_pairwise_backward
        return gradients(ctx, *Gradient.apply(REFUSAL, compute, backend, grad_output, *kept))


class DifferentiableOnce(torch.autograd.Function):
    """The tensor itself, with a gradient whose own derivative raises."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        result: Tensor = Gradient.apply(REFUSAL, Tensor.clone, grad)
        return result
