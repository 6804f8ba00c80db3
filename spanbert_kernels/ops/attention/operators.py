"""The raw operators of softmax attention over any work, and them under autograd.

`softmax(q k^T scale) v` over all keys that a query sees: document_attention's, and the joint softmax of
cross_document_attention.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from spanbert_kernels.ops.attention.relative import DistanceTerms
from spanbert_kernels.ops.attention.work import TILE_ROWS, AttentionWork
from spanbert_kernels.ops.attention_plans import AttentionPlan
from spanbert_kernels.ops.backends import ATTENTION, Operation
from spanbert_kernels.ops.choices import Backend
from spanbert_kernels.ops.operators import gradient_of, gradients, needs_gradient, raw, save, saved
from spanbert_kernels.ops.philox import Dropout
from spanbert_kernels.ops.repeats import Key, Repeats, layout

OPERATION = Operation("document_attention", ATTENTION, summary="softmax attention of each packed document with itself")


def new_lse(q: Tensor) -> Tensor:
    """An empty log-sum-exp for `q [rows, heads, d]`: `[heads, rows]`, float32 (float64 for float64)."""
    return q.new_empty(q.shape[1], q.shape[0], dtype=torch.promote_types(q.dtype, torch.float32))


@raw(OPERATION)
def document_attention_forward(
    q: Tensor, k: Tensor, v: Tensor, work: AttentionWork, scale: float, dropout: Dropout
) -> tuple[Tensor, Tensor]:
    # q `[query rows, heads, d]`, k, v `[key rows, heads, d]` -> output like q, log-sum-exp `[heads, query rows]`,
    # natural, float32 (float64 for float64). A query row without a key, or of no document, gives 0 and -inf, and its
    # gradient is 0, as is that of a key row that nobody sees. Dropout by row numbers.
    return q.new_empty(q.shape), new_lse(q)


@raw(OPERATION)
def document_attention_backward(
    grad_output: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    work: AttentionWork,
    scale: float,
    dropout: Dropout,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


@raw(("triton",))
def document_attention_qkv_backward(
    grad_output: Tensor,
    qkv: Tensor,
    lse: Tensor,
    words: Tensor | None,
    work: AttentionWork,
    scale: float,
    dropout: Dropout,
) -> Tensor:
    # The gradients of q, k and v, which are `qkv [T, 3, heads, d]`, in one tensor like that.
    return qkv.new_empty(qkv.shape)


MOST_ROWS_OF_WORDS = 1024  # of a document: the bits of 12 heads of 64 columns then take as much memory as q


def leaves_words(backend: str, q: Tensor, work: AttentionWork, dropout: Dropout) -> bool:
    """Whether the forward leaves the backward what dropout keeps: where the longest document is known, and is none of
    those whose scores are made at once.
    """
    fits = 2 * TILE_ROWS < work.max_seqlen <= MOST_ROWS_OF_WORDS and not work.clustered and q.numel() > 0
    return backend == "triton" and dropout.seed is not None and fits and q.element_size() == 2 and q.shape[2] <= 64


def new_words(q: Tensor, work: AttentionWork) -> Tensor:
    """Room for a bit of each entry: `[blocks of TILE_ROWS keys, heads, query rows]` of four words of 16 bits."""
    blocks = (work.max_seqlen + TILE_ROWS - 1) // TILE_ROWS
    return q.new_empty(blocks, q.shape[1], q.shape[0], 4, dtype=torch.int16)


@raw(("triton",))
def document_attention_words_forward(
    q: Tensor, k: Tensor, v: Tensor, work: AttentionWork, scale: float, dropout: Dropout
) -> tuple[Tensor, Tensor, Tensor]:
    # As document_attention_forward, and a bit of each entry (`triton_dropout.py`).
    return q.new_empty(q.shape), new_lse(q), new_words(q, work)


@raw(("triton",))
def document_attention_words_backward(
    grad_output: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    words: Tensor,
    work: AttentionWork,
    scale: float,
    dropout: Dropout,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def forward_for(
    ctx: Any, backend: str, *values: Any, repeats: Repeats | None, key: Key | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Output and log-sum-exp of q, k, v and the rest, and the words for a backward that will come."""
    q, _, _, work, _, dropout = values
    if any(ctx.needs_input_grad) and leaves_words(backend, q, work, dropout):
        with_words: tuple[Tensor, Tensor, Tensor]
        with_words = document_attention_words_forward(backend, *values, repeats=repeats, key=key)
        return with_words
    return *document_attention_forward(backend, *values, repeats=repeats, key=key), None


class DocumentAttention(torch.autograd.Function):
    """The compiled kernels under autograd, for the operation of that name. A second derivative raises."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        operation: str,
        backend: str,
        work: AttentionWork,
        scale: float,
        dropout: Dropout,
        repeats: Repeats | None = None,
        key: Key | None = None,
    ) -> tuple[Tensor, Tensor]:
        values = (q, k, v, work, scale, dropout)
        output, lse, words = forward_for(ctx, backend, *values, repeats=repeats, key=key)
        ctx.text = f'{operation} has no second derivative, but document_attention on backend="eager"'
        save(ctx, words, backend, q, k, v, lse, work, scale, dropout, repeats=repeats)
        ctx.mark_non_differentiable(lse)
        ctx.set_materialize_grads(False)  # zeros for the log-sum-exp would be a launch
        return output, lse

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: Tensor) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return gradients(ctx)
        words, backend, *kept = saved(ctx)
        operator = document_attention_backward
        if words is not None:
            operator = document_attention_words_backward
            kept.insert(4, words)
        compute = functools.partial(operator, repeats=ctx.repeats)
        return gradients(ctx, *gradient_of(ctx.text, compute, backend, grad_output, *kept))


class QkvAttention(torch.autograd.Function):
    """The compiled kernels under autograd where q, k and v are one tensor, whose gradient is one, too."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        backend: str,
        work: AttentionWork,
        scale: float,
        dropout: Dropout,
        repeats: Repeats | None,
    ) -> tuple[Tensor, Tensor]:
        values = (*parts_of(qkv), work, scale, dropout)
        output, lse, words = forward_for(ctx, backend, *values, repeats=repeats)
        save(ctx, backend, qkv, lse, words, work, scale, dropout, repeats=repeats)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(lse)
        return output, lse

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: Tensor) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return gradients(ctx)
        backend, *kept = saved(ctx)
        compute = functools.partial(_gradient_of_qkv, ctx.repeats, backend)
        text = f'{OPERATION.name} has no second derivative, but on backend="eager"'
        return gradients(ctx, gradient_of(text, compute, grad_output, *kept))


def parts_of(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of `[T, 3, heads, d]`."""
    return qkv.select(1, 0), qkv.select(1, 1), qkv.select(1, 2)


def _gradient_of_qkv(
    repeats: Repeats | None,
    backend: str,
    grad_output: Tensor,
    qkv: Tensor,
    lse: Tensor,
    words: Tensor | None,
    *rest: Any,
) -> Tensor:
    found: Tensor
    if backend == "triton":
        found = document_attention_qkv_backward(backend, grad_output, qkv, lse, words, *rest, repeats=repeats)
    else:
        values = (grad_output, *parts_of(qkv), lse, *rest)
        found = torch.stack(document_attention_backward(backend, *values, repeats=repeats), 1)
    return found


def attend(
    operation: str,
    backend: Backend,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: AttentionPlan,
    scale: float,
    dropout: Dropout,
    key: Key | None,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp by the compiled kernels, with what a plan keeps of such calls where there is a `key`."""
    work = plan.work(backend != "cpu")
    if key is None:
        output, lse = DocumentAttention.apply(q, k, v, operation, backend, work, scale, dropout)
        return output, lse
    key = (*key, scale, dropout.dropout_p, layout(dropout.seed))
    if needs_gradient(q, k, v):
        output, lse = DocumentAttention.apply(q, k, v, operation, backend, work, scale, dropout, plan.repeats, key)
    else:
        values = (q, k, v, work, scale, dropout)
        output, lse = document_attention_forward(backend, *values, repeats=plan.repeats, key=key)
    return output, lse


@raw(OPERATION)
def distance_attention_forward(
    q: Tensor, k: Tensor, v: Tensor, work: AttentionWork, terms: DistanceTerms, scale: float, dropout: Dropout
) -> tuple[Tensor, Tensor]:
    # As that of document_attention, of documents that see themselves alone. The logits, of which the log-sum-exp is
    # one, are with their terms, and a query sees the keys of its window.
    return q.new_empty(q.shape), new_lse(q)


@raw(OPERATION)
def distance_attention_backward(
    grad_output: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    work: AttentionWork,
    terms: DistanceTerms,
    scale: float,
    dropout: Dropout,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    # Gradients of q, k, v, bias, keys, queries: an empty one for a table that is absent.
    tables = (q.new_empty(0) if table is None else table.new_empty(table.shape) for table in terms[2:])
    return (q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), *tables)  # type: ignore[return-value]


class DistanceAttention(torch.autograd.Function):
    """The compiled kernels of attention by distance under autograd. A second derivative raises."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        keys: Tensor | None,
        queries: Tensor | None,
        window: int,
        index: Tensor | None,
        backend: str,
        work: AttentionWork,
        scale: float,
        dropout: Dropout,
    ) -> tuple[Tensor, Tensor]:
        terms = DistanceTerms(window, index, bias, keys, queries)
        output, lse = distance_attention_forward(backend, q, k, v, work, terms, scale, dropout)
        ctx.text = f'{OPERATION.name} has no second derivative, but on backend="eager"'
        save(ctx, backend, q, k, v, lse, work, terms, scale, dropout)
        ctx.mark_non_differentiable(lse)
        ctx.set_materialize_grads(False)  # zeros for the log-sum-exp would be a launch
        return output, lse

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, _: Tensor) -> tuple[Tensor | None, ...]:
        if grad_output is None:
            return gradients(ctx)
        backend, *kept = saved(ctx)
        terms = kept[5]
        found = gradient_of(ctx.text, distance_attention_backward, backend, grad_output, *kept)
        tables = (None if table is None else grad for table, grad in zip(terms[2:], found[3:], strict=True))
        return gradients(ctx, *found[:3], *tables)
