"""Attention between the documents of a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, overload

import torch
import torch.distributed as dist
from torch import Tensor

from spanbert_kernels.ops import attention_plans, checks
from spanbert_kernels.ops.attention.checks import check_heads, check_scale
from spanbert_kernels.ops.attention.operators import attend
from spanbert_kernels.ops.attention.work import AttentionWork, pair_statistics
from spanbert_kernels.ops.attention_plans import AttentionPlan
from spanbert_kernels.ops.choices import NORMALIZATIONS, Backend, Normalization, Role
from spanbert_kernels.ops.cross_document_attention import reference
from spanbert_kernels.ops.cross_document_attention.operators import (
    OPERATION,
    DifferentiableOnce,
    PairwiseAttention,
    cross_document_attention_weights,
)
from spanbert_kernels.ops.cross_document_attention.ring import GatheredAnchors, PairwiseRing, RingAttention
from spanbert_kernels.ops.distributed_plans import DistributedPlan, agreed_plan
from spanbert_kernels.ops.document_attention import AttentionOptions
from spanbert_kernels.ops.philox import Dropout
from spanbert_kernels.ops.repeats import key_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["cross_document_attention"]


class CrossDocumentOptions(AttentionOptions, total=False):
    include_self: bool
    links: tuple[Tensor, Tensor] | None
    normalize: Normalization
    group: dist.ProcessGroup | None


ClusteredDocuments = Tensor | AttentionPlan | DistributedPlan


@overload
def cross_document_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: ClusteredDocuments,
    cu_clusters: Tensor | None = ...,
    queries: Role = ...,
    keys: Role = ...,
    *,
    return_lse: Literal[False] = ...,
    return_weights: Literal[False] = ...,
    **options: Unpack[CrossDocumentOptions],
) -> Tensor: ...


@overload
def cross_document_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: ClusteredDocuments,
    cu_clusters: Tensor | None = ...,
    queries: Role = ...,
    keys: Role = ...,
    *,
    return_lse: Literal[True],
    return_weights: Literal[False] = ...,
    **options: Unpack[CrossDocumentOptions],
) -> tuple[Tensor, Tensor]: ...


@overload
def cross_document_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: ClusteredDocuments,
    cu_clusters: Tensor | None = ...,
    queries: Role = ...,
    keys: Role = ...,
    *,
    return_lse: Literal[False] = ...,
    return_weights: Literal[True],
    **options: Unpack[CrossDocumentOptions],
) -> tuple[Tensor, Tensor]: ...


@overload
def cross_document_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: ClusteredDocuments,
    cu_clusters: Tensor | None = ...,
    queries: Role = ...,
    keys: Role = ...,
    *,
    return_lse: Literal[True],
    return_weights: Literal[True],
    **options: Unpack[CrossDocumentOptions],
) -> tuple[Tensor, Tensor, Tensor]: ...


@overload
def cross_document_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: ClusteredDocuments,
    cu_clusters: Tensor | None = ...,
    queries: Role = ...,
    keys: Role = ...,
    *,
    return_lse: bool = ...,
    return_weights: bool = ...,
    **options: Unpack[CrossDocumentOptions],
) -> Tensor | tuple[Tensor, ...]: ...


def cross_document_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor | AttentionPlan | DistributedPlan,
    cu_clusters: Tensor | None = None,
    queries: Role = "anchors",
    keys: Role = "anchors",
    *,
    include_self: bool = False,
    links: tuple[Tensor, Tensor] | None = None,
    group: dist.ProcessGroup | None = None,
    normalize: Normalization = "joint",
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    return_weights: bool = False,
    backend: Backend | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Each query attends to the keys of the other documents of its cluster.

    A query in document i sees the keys of every document j of its cluster, `j != i` unless `include_self`, and only
    linked documents where `links` is given. A query that sees no key gives 0, with gradient 0. Tokens of different
    documents have no distance, so there is no window and there are no relative terms, as `document_attention` has them.

    Args:
        q: `[D, heads, head_dim]` for anchor queries (one row per document), `[T, heads, head_dim]` for token queries.
        k, v: likewise for the keys.
        cu_seqlens: int32 or int64 `[D + 1]`, offsets of the documents in the packed tokens. Or a plan made by
            `plan_attention`, which serves all layers of a batch and has the clusters, `queries`, `keys`,
            `include_self` and `links` in it: they are not given again.
        cu_clusters: int32 or int64 `[C + 1]`, offsets of the clusters in the documents.
        queries, keys: `"anchors"` or `"tokens"`. An empty document has no anchor: its row is ignored.
        include_self: a document sees itself as well.
        links: CSR `(indptr [D + 1], indices)`, row = query document, never crossing clusters.
        group: a process group whose ranks have documents of the same clusters, each its own; every rank calls this, and
            runs the backward. The arguments are then those that `plan_attention` has with a group; the plan that it
            makes serves all layers of a batch.
        normalize: `"joint"`, one softmax over all keys seen; `"pairwise"`, a softmax per document, averaged over the
            visible documents that are not empty.
        dropout_p, seed, scale, backend: as in `document_attention`.
        return_lse: also the log-sum-exp, natural log, `[heads, rows]`, joint only; -inf where there is no key.
        return_weights: also the document weights, float32 `[rows, heads, documents of the largest cluster]`: the
            softmax mass on each document of the query's cluster, before dropout. They sum to 1 (no key: to 0).

    Returns:
        The output, with q's rows; with `return_lse` or `return_weights` a tuple of it and them, in this order.

    Raises:
        ValueError: shapes, offsets, options, links that cross clusters; the value seen is named.
        TypeError: dtypes or devices.

    Source: anchors x anchors is Transformer-XH's attention between documents (Zhao et al. 2020) with a dot product.

    Example:
        >>> import torch
        >>> q = k = torch.zeros(3, 1, 2)
        >>> v = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[4.0, 4.0]]])
        >>> cu_seqlens, cu_clusters = torch.tensor([0, 5, 9, 12]), torch.tensor([0, 2, 3])
        >>> cross_document_attention(q, k, v, cu_seqlens, cu_clusters).view(3, 2).tolist()
        [[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]]
    """
    checks.check_choice("normalize", normalize, NORMALIZATIONS)
    for name, flag in (("include_self", include_self), ("return_lse", return_lse), ("return_weights", return_weights)):
        checks.check_flag(name, flag)
    if return_lse and normalize != "joint":
        raise ValueError(f'return_lse needs normalize="joint", got {normalize!r}')
    if group is not None or isinstance(cu_seqlens, DistributedPlan):
        sight = (cu_clusters, queries, keys, include_self, links)
        shared = _plan_of_ranks(group, q, k, v, cu_seqlens, sight)
        dropout = checks.check_dropout(dropout_p, seed, "q", q)
        options = (normalize, check_scale(scale, q), dropout, return_weights, OPERATION.choose(q, backend))
        return _asked(*_over_ranks(q, k, v, shared, *options), return_lse, return_weights)
    check_heads(q, k, v, "rows")
    if isinstance(cu_seqlens, AttentionPlan):
        plan = _check_plan(cu_seqlens, cu_clusters, queries, keys, include_self, links)
    else:
        checks.check_offsets("cu_seqlens", cu_seqlens, None, "tokens")
        if cu_clusters is None:
            raise ValueError("cu_clusters is needed beside cu_seqlens, got None")
        attention_plans.check_who_sees_whom(cu_seqlens, cu_clusters, queries, keys, links)
        tokens = q.shape[0] if queries == "tokens" else k.shape[0] if keys == "tokens" else 0
        plan = AttentionPlan.of_clusters(
            cu_seqlens,
            cu_clusters,
            queries,
            keys,
            include_self=include_self,
            links=links,
            num_tokens=tokens,
            checked=True,
        )
    _check_sides(q, k, plan)
    dropout = checks.check_dropout(dropout_p, seed, "q", q)
    scale = check_scale(scale, q)
    chosen = OPERATION.choose(q, backend)
    weights: Tensor | None
    if chosen == "eager":
        output, lse, weights = _eager(q, k, v, plan, normalize, scale, dropout, return_weights)
    else:
        output, lse, weights = _kernels(
            q, k, v, plan, normalize, scale, dropout, backend=chosen, weighed=return_weights, planned=plan is cu_seqlens
        )
    return _asked(output, lse, weights, return_lse, return_weights)


def _asked(
    output: Tensor, lse: Tensor, weights: Tensor | None, return_lse: bool, return_weights: bool
) -> Tensor | tuple[Tensor, ...]:
    extras = [extra for extra, asked in ((lse, return_lse), (weights, return_weights)) if asked and extra is not None]
    return (output, *extras) if extras else output


def _plan_of_ranks(
    group: dist.ProcessGroup | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor | AttentionPlan | DistributedPlan,
    sight: tuple[Tensor | None, Role, Role, bool, tuple[Tensor, Tensor] | None],
) -> DistributedPlan:
    """The plan of a call, of which all ranks know whether it fits the tensors where it is made for the call."""
    if isinstance(cu_seqlens, DistributedPlan):
        _check_given_once(sight)
        check_heads(q, k, v, "rows")
        _check_sides(q, k, cu_seqlens)
        return cu_seqlens
    if isinstance(cu_seqlens, AttentionPlan):
        raise ValueError("this plan is one of a single process: give plan_attention the group, not this call")
    assert group is not None
    clusters, queries, keys, include_self, links = sight

    def check() -> tuple[int, int, int]:
        check_heads(q, k, v, "rows")
        for name, tensor, side in (("q", q, queries), ("k", k, keys)):
            _check_rows(name, tensor, side, cu_seqlens)
        return q.shape[1], q.shape[2], q.element_size()

    return agreed_plan(group, cu_seqlens, clusters, queries, keys, include_self, links, check)


def _check_sides(q: Tensor, k: Tensor, plan: AttentionPlan | DistributedPlan) -> None:
    checks.check_device("cu_seqlens", plan.cu_seqlens, "q", q)
    _check_rows("q", q, plan.queries, plan.cu_seqlens)
    _check_rows("k", k, plan.keys, plan.cu_seqlens)


@checks.uncompiled
def _over_ranks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: DistributedPlan,
    normalize: Normalization,
    scale: float,
    dropout: Dropout,
    weighed: bool,
    backend: Backend,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Every rank's documents, as in one process that has them all."""
    whole, rows, places = plan.whole, plan.query_rows, plan.whole.max_documents
    placed = q
    if rows is not None:
        if plan.queries == "anchors":  # what an empty document holds must reach nothing
            filled = plan.filled.index_select(0, rows)
            placed = torch.where(filled[:, None, None], q, 0)
        count = whole.num_tokens if plan.queries == "tokens" else whole.num_documents
        placed = q.new_zeros(count, *q.shape[1:]).index_copy(0, rows, placed)
    lse: Tensor
    weights: Tensor | None
    if plan.keys == "anchors":
        keys, values = GatheredAnchors.apply(torch.stack([k, v], 1), plan).unbind(1)
        call = (placed, keys, values, whole, normalize, scale, dropout)
        if backend == "eager":
            output, lse, weights = _eager(*call, weighed)
        else:
            output, lse, weights = _kernels(*call, backend=backend, weighed=weighed, planned=True)
    elif normalize == "joint":
        given = (plan, backend, scale, dropout, places if weighed else 0)
        with torch.autocast(q.device.type, enabled=False):
            output, lse, weights = RingAttention.apply(placed, k, v, *given)
        if weights is not None:
            weights = _adding_up_to_one(weights)
    else:
        each = _equal_shares(plan.sight(), placed.shape[0], max(places, 1))
        seen = (each > 0).sum(1).to(torch.promote_types(q.dtype, torch.float32))
        shares = torch.where(seen > 0, 1 / seen, 0)
        with torch.autocast(q.device.type, enabled=False):
            output = PairwiseRing.apply(placed, k, v, shares, plan, scale, dropout)
        lse = shares.new_full((q.shape[1], placed.shape[0]), -torch.inf)
        weights = each[:, None, :places].expand(-1, q.shape[1], -1)
    if weighed and weights is None:  # no rank has a document
        weights = q.new_zeros(q.shape[0], q.shape[1], 0, dtype=torch.float32)
    if rows is None:
        return output, lse, weights
    return output.index_select(0, rows), lse.index_select(1, rows), None if weights is None else weights[rows]


def _adding_up_to_one(weights: Tensor) -> Tensor:
    """Document weights, which do but for the rounding of the log-sum-exp; 0 where nothing is seen."""
    total = weights.sum(2, keepdim=True)
    return torch.where(total > 0, weights / total, weights)


def _eager(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: AttentionPlan,
    normalize: str,
    scale: float,
    dropout: Dropout,
    weighed: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    assert plan.cu_clusters is not None
    sight = (plan.cu_seqlens, plan.cu_clusters, plan.queries, plan.keys, plan.include_self, plan.links)
    # Autocast would take the products out of float32, on this backend alone.
    with torch.autocast(q.device.type, enabled=False):
        once = [DifferentiableOnce.apply(tensor) if tensor.requires_grad else tensor for tensor in (q, k, v)]
        return reference.cross_document_attention(
            once[0], once[1], once[2], *sight, normalize, scale, *dropout, weighed
        )


def _kernels(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: AttentionPlan,
    normalize: str,
    scale: float,
    dropout: Dropout,
    *,
    backend: Backend,
    weighed: bool,
    planned: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """`planned`: the plan will serve other calls, too."""
    assert plan.cu_clusters is not None
    work = plan.work(backend != "cpu")
    places = 0
    if weighed or normalize == "pairwise":
        places = plan.max_documents or attention_plans.largest(plan.cu_clusters)
    weights = None
    if normalize == "joint":
        key = key_of(OPERATION.name, backend, None, q, k, v) if planned else None
        output, lse = attend(OPERATION.name, backend, q, k, v, plan, scale, dropout, key)
        if weighed:
            call = (q.detach(), k.detach(), lse, work, places, scale)
            weights = cross_document_attention_weights(backend, *call)
            weights = _adding_up_to_one(weights)
        return output, lse, weights
    statistics = pair_statistics(work, q.shape[0], places)
    output, lse = PairwiseAttention.apply(q, k, v, backend, work, statistics, scale, dropout)
    if weighed:
        weights = _equal_shares(work, q.shape[0], places)[:, None].expand(-1, q.shape[1], -1)
    return output, lse, weights


def _equal_shares(work: AttentionWork, rows: int, places: int) -> Tensor:
    """1 / n for each of the n documents with keys that a query row sees, float32 `[rows, places]`."""
    begin, end, key_begin, key_end, first, last = work.documents
    document = torch.arange(begin.shape[0], device=begin.device)
    if work.links is None or work.link_offsets is None:
        other = first[:, None] + torch.arange(places, device=begin.device)
        seen = (other < last[:, None]) & (work.include_self | (other != document[:, None]))
        other = other.clamp(max=max(begin.shape[0] - 1, 0))
    else:
        query = torch.searchsorted(
            work.link_offsets[1:].contiguous(), torch.arange(len(work.links), device=begin.device), right=True
        )
        linked = (query < len(document)) & (work.links >= 0)
        query, target = torch.where(linked, query, len(document)), torch.where(linked, work.links, 0)
        place = target - torch.cat([first, first.new_zeros(1)])[query]
        seen = torch.zeros(len(document) + 1, places + 1, dtype=torch.bool, device=begin.device)
        seen[query, torch.where(linked, place, places)] = True
        seen = seen[:-1, :-1]
        other = (first[:, None] + torch.arange(places, device=begin.device)).clamp(max=max(len(document) - 1, 0))
    seen = seen & (key_begin < key_end)[other]
    shares = seen.float() / seen.sum(1, keepdim=True).clamp(min=1)
    row = torch.arange(rows, device=begin.device)
    owner = row if work.anchor_queries else torch.searchsorted(end.contiguous(), row, right=True)
    return shares[owner] * ((begin[owner] <= row) & (row < end[owner]))[:, None]


def _check_rows(name: str, tensor: Tensor, side: str, cu_seqlens: Tensor) -> None:
    if side == "anchors":
        if tensor.shape[0] != len(cu_seqlens) - 1:
            raise ValueError(f"{name} must have one row per document ({len(cu_seqlens) - 1}), got {tensor.shape[0]}")
    elif (
        cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling() and tensor.shape[0] != int(cu_seqlens[-1])
    ):
        raise ValueError(f"{name} must have one row per token ({int(cu_seqlens[-1])}), got {tensor.shape[0]}")


def _check_plan(
    plan: AttentionPlan,
    cu_clusters: Tensor | None,
    queries: Role,
    keys: Role,
    include_self: bool,
    links: tuple[Tensor, Tensor] | None,
) -> AttentionPlan:
    if plan.cu_clusters is None:
        raise ValueError("this plan is one of documents alone: give plan_attention the clusters, cu_clusters")
    _check_given_once((cu_clusters, queries, keys, include_self, links))
    return plan


def _check_given_once(sight: tuple[Tensor | None, Role, Role, bool, tuple[Tensor, Tensor] | None]) -> None:
    if sight != (None, "anchors", "anchors", False, None):
        raise ValueError("a plan has cu_clusters, queries, keys, include_self and links in it: do not give them again")
