"""cross_document_attention where the documents of a cluster lie on several ranks.

Keys that are anchors are gathered, and the operation runs as ever on what a rank then has. Keys that are tokens go
round: while a rank works with one block of keys, the next one is on its way, and in the backward the gradients of the
one before go home. Whatever comes from others is added up in one order: results do not change from run to run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from spanbert_kernels.ops.attention.operators import document_attention_forward
from spanbert_kernels.ops.choices import Backend
from spanbert_kernels.ops.cross_document_attention import parts
from spanbert_kernels.ops.cross_document_attention.operators import REFUSAL, cross_document_attention_weights
from spanbert_kernels.ops.distributed_plans import DistributedPlan, Round
from spanbert_kernels.ops.operators import gradient_of, gradients
from spanbert_kernels.ops.philox import Dropout

_BETWEEN_SEEDS = 0x9E3779B97F4A7C15  # odd, so that all differ


class GatheredAnchors(torch.autograd.Function):
    """Rows of all ranks' documents in their order, from each rank's own; the gradient of a row comes home."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, plan: DistributedPlan) -> Tensor:
        ctx.plan = plan
        most, counts = max(plan.counts), plan.counts
        if not most:
            return rows.new_empty(rows.shape)
        everything = plan.ranks.all_rows(rows, most)
        first = torch.cat([torch.arange(count) + rank * most for rank, count in enumerate(counts)]).to(rows.device)
        return everything.index_select(0, first.index_select(0, plan.by_rank.argsort()))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return gradients(ctx, gradient_of(REFUSAL, _home, grad, ctx.plan))


def _home(grad: Tensor, plan: DistributedPlan) -> Tensor:
    return plan.ranks.sums_of_rows(grad.index_select(0, plan.by_rank), plan.counts)


def of_round(dropout: Dropout, plan: DistributedPlan, step: Round) -> Dropout:
    """With a seed of these queries and keys: their rows are counted from 0 in every round."""
    if dropout.seed is None:
        return dropout
    number = 1 + plan.ranks.rank * plan.ranks.size + step.source
    return dropout._replace(seed=dropout.seed + ((number * _BETWEEN_SEEDS + 2**63) % 2**64 - 2**63))


def _rounds(k: Tensor, v: Tensor, plan: DistributedPlan) -> Iterator[tuple[int, Tensor, Tensor]]:
    """The number of each round, its keys and its values, while those of the next are on their way."""
    steps = plan.rounds
    here = (k, v)
    for number in range(len(steps)):
        following = _begin(k, v, plan, number + 1) if number + 1 < len(steps) else None
        yield number, *here
        if following is not None:
            here = following.wait().unbind(0)


def _begin(k: Tensor, v: Tensor, plan: DistributedPlan, number: int) -> Any:
    step = plan.rounds[number]
    own = [rows if step.sent is None else rows.index_select(0, step.sent) for rows in (k, v)]
    outgoing = torch.stack(own)
    incoming = k.new_empty(2, step.rows, *k.shape[1:])
    return plan.ranks.exchange(outgoing, step.to, incoming, step.source)


class RingAttention(torch.autograd.Function):
    """A joint softmax over keys that are tokens of all ranks: output, log-sum-exp, document weights."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        plan: DistributedPlan,
        backend: Backend,
        scale: float,
        dropout: Dropout,
        places: int,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        totals = parts.no_parts(q, places)
        for number, keys, values in _rounds(k, v, plan):
            if keys.shape[0] and q.shape[0]:
                of_keys = of_round(dropout, plan, plan.rounds[number])
                part = attend(q, keys, values, plan, number, backend, scale, of_keys, places)
                totals = parts.merged(totals, part)
        ctx.save_for_backward(q, k, v, totals.output, totals.lse, dropout.seed)
        ctx.rest = (plan, scale, dropout.dropout_p)
        weights = None if totals.weights is None else totals.weights.float()
        ctx.mark_non_differentiable(totals.lse, *[] if weights is None else [weights])
        return totals.output.to(q.dtype, copy=True), totals.lse, weights

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        *tensors, seed = ctx.saved_tensors
        plan, scale, dropout_p = ctx.rest
        found = gradient_of(REFUSAL, _ring_backward, grad_output, *tensors, plan, scale, Dropout(dropout_p, seed))
        return gradients(ctx, *found)


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: DistributedPlan,
    number: int,
    backend: Backend,
    scale: float,
    dropout: Dropout,
    places: int,
) -> parts.Totals:
    """What the keys of a round alone make."""
    work = plan.work(number, backend not in ("cpu", "eager"))
    if backend == "eager":
        place = plan.keep(("places", number), lambda: parts.places_of(work, k.shape[0], places)) if places else None
        return parts.attend_to_part(q, k, v, blocks_of(plan, number), scale, dropout, place)
    output, lse = document_attention_forward(backend, q, k, v, work, scale, dropout)
    weights = cross_document_attention_weights(backend, q, k, lse, work, places, scale) if places else None
    return parts.Totals(output, lse, weights)


def blocks_of(plan: DistributedPlan, number: int) -> list[parts.RowBlock]:
    """Who sees whom in a round, known to the host."""
    return plan.keep(("blocks", number), lambda: parts.blocks_of(plan.work(number, False)))


def blocks_by_document(plan: DistributedPlan, number: int) -> list[parts.RowBlock]:
    """The same by documents of the keys."""
    return plan.keep(("blocks by document", number), lambda: parts.blocks_by_document(plan.work(number, False)))


def _ring_backward(
    grad_output: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    lse: Tensor,
    plan: DistributedPlan,
    scale: float,
    dropout: Dropout,
) -> tuple[Tensor, Tensor, Tensor]:
    delta = (grad_output.to(output.dtype) * output).sum(2).T

    def of_part(number: int, keys: Tensor, values: Tensor) -> parts.Gradients:
        of_keys = of_round(dropout, plan, plan.rounds[number])
        blocks = blocks_of(plan, number)
        return parts.gradients_of_part(grad_output, q, keys, values, lse, delta, blocks, scale, of_keys)

    return _gradients(q, k, v, plan, of_part)


def _gradients(q: Tensor, k: Tensor, v: Tensor, plan: DistributedPlan, of_part: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`of_part(number, keys, values)` of every round: those of queries added up here, those of keys where they are."""
    grad_q = torch.zeros_like(q, dtype=parts.wide(q))
    grad_keys = k.new_zeros(2, *k.shape, dtype=parts.wide(k))
    going = []
    for number, keys, values in _rounds(k, v, plan):
        with torch.autocast(q.device.type, enabled=False):
            found = of_part(number, keys, values)
        grad_q += found.q
        pair = torch.stack([found.k, found.v])
        if number == 0:
            grad_keys += pair
        else:
            step = plan.rounds[number]
            incoming = k.new_empty(2, step.sent_rows, *k.shape[1:])
            going.append((step, plan.ranks.exchange(pair.to(k.dtype), step.source, incoming, step.to)))
    for step, exchange in going:
        received = exchange.wait().to(grad_keys.dtype)
        if step.sent is None:
            grad_keys += received
        else:
            grad_keys.index_add_(1, step.sent, received)
    grad_k, grad_v = grad_keys.to(k.dtype).unbind(0)
    return grad_q.to(q.dtype), grad_k, grad_v


class PairwiseRing(torch.autograd.Function):
    """A softmax for each document of all ranks, whose keys are tokens, averaged with the `shares [rows]`."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        shares: Tensor,
        plan: DistributedPlan,
        scale: float,
        dropout: Dropout,
    ) -> Tensor:
        output = torch.zeros_like(q, dtype=parts.wide(q))
        for number, keys, values in _rounds(k, v, plan):
            of_keys = of_round(dropout, plan, plan.rounds[number])
            blocks = blocks_by_document(plan, number)
            output += parts.attend_by_document(q, keys, values, blocks, shares, scale, of_keys)
        ctx.save_for_backward(q, k, v, shares, dropout.seed)
        ctx.rest = (plan, scale, dropout.dropout_p)
        return output.to(q.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, seed = ctx.saved_tensors
        plan, scale, dropout_p = ctx.rest
        rest = (plan, scale, Dropout(dropout_p, seed))
        return gradients(ctx, *gradient_of(REFUSAL, _pairwise_backward, grad_output, *tensors, *rest))


def _pairwise_backward(
    grad_output: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    shares: Tensor,
    plan: DistributedPlan,
    scale: float,
    dropout: Dropout,
) -> tuple[Tensor, Tensor, Tensor]:
    grad = grad_output.to(parts.wide(q)) * shares[:, None, None]

    def of_part(number: int, keys: Tensor, values: Tensor) -> parts.Gradients:
        of_keys = of_round(dropout, plan, plan.rounds[number])
        return parts.gradients_by_document(grad, q, keys, values, blocks_by_document(plan, number), scale, of_keys)

    return _gradients(q, k, v, plan, of_part)
