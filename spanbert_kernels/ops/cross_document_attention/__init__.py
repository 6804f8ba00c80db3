"""Attention between the documents of a cluster."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spanbert_kernels.ops import checks
from spanbert_kernels.ops.backends import Operation
from spanbert_kernels.ops.cross_document_attention import reference
from spanbert_kernels.ops.document_attention import check_dropout, check_heads

__all__ = ["cross_document_attention"]

OPERATION = Operation("cross_document_attention", ("eager",))
SIDES = ("anchors", "tokens")
NORMALIZATIONS = ("joint", "pairwise")


def cross_document_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    cu_clusters: Tensor,
    queries: str = "anchors",
    keys: str = "anchors",
    *,
    include_self: bool = False,
    links: tuple[Tensor, Tensor] | None = None,
    normalize: str = "joint",
    dropout_p: float = 0.0,
    seed: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    return_weights: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """Each query attends to the keys of the other documents of its cluster.

    A query in document i sees the keys of every document j of its cluster, `j != i` unless `include_self`, and only
    linked documents where `links` is given. A query that sees no key gives 0, with gradient 0.

    Args:
        q: `[D, heads, head_dim]` for anchor queries (one row per document), `[T, heads, head_dim]` for token queries.
        k, v: likewise for the keys.
        cu_seqlens: int32 or int64 `[D + 1]`, offsets of the documents in the packed tokens.
        cu_clusters: int32 or int64 `[C + 1]`, offsets of the clusters in the documents.
        queries, keys: `"anchors"` or `"tokens"`. An empty document has no anchor: its row is ignored.
        include_self: a document sees itself as well.
        links: CSR `(indptr [D + 1], indices)`, row = query document, never crossing clusters.
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
    for name, value in (("queries", queries), ("keys", keys)):
        if value not in SIDES:
            raise ValueError(f'{name} must be "anchors" or "tokens", got {value!r}')
    if normalize not in NORMALIZATIONS:
        raise ValueError(f'normalize must be "joint" or "pairwise", got {normalize!r}')
    if return_lse and normalize != "joint":
        raise ValueError(f'return_lse needs normalize="joint", got {normalize!r}')
    check_heads(q, k, v, "rows")
    checks.check_offsets("cu_seqlens", cu_seqlens, None, "tokens")
    documents = len(cu_seqlens) - 1
    checks.check_offsets("cu_clusters", cu_clusters, documents, "documents")
    for name, offsets in (("cu_seqlens", cu_seqlens), ("cu_clusters", cu_clusters)):
        checks.check_device(name, offsets, "q", q)
    _check_rows("q", q, queries, cu_seqlens)
    _check_rows("k", k, keys, cu_seqlens)
    if links is not None:
        _check_links(links, cu_clusters, documents)
        for place, part in enumerate(links):
            checks.check_device(f"links[{place}]", part, "q", q)
    seed = check_dropout(dropout_p, seed, q)
    scale = q.shape[2] ** -0.5 if scale is None else scale
    OPERATION.choose(q, backend)
    q, k, v = (DifferentiableOnce.apply(x) if x.requires_grad else x for x in (q, k, v))
    # Autocast would take the products out of float32, on this backend alone.
    with torch.autocast(q.device.type, enabled=False):
        output, lse, weights = reference.cross_document_attention(
            q, k, v, cu_seqlens, cu_clusters, queries, keys, include_self, links, normalize, scale, dropout_p, seed
        )
    extras = [extra for extra, asked in ((lse, return_lse), (weights, return_weights)) if asked]
    return (output, *extras) if extras else output


class DifferentiableOnce(torch.autograd.Function):
    """The tensor itself, with a gradient whose own derivative raises."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        result: Tensor = RefuseDerivative.apply(grad)
        return result


class RefuseDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError("cross_document_attention has no second derivative")


def _check_rows(name: str, tensor: Tensor, side: str, cu_seqlens: Tensor) -> None:
    if side == "anchors":
        if tensor.shape[0] != len(cu_seqlens) - 1:
            raise ValueError(f"{name} must have one row per document ({len(cu_seqlens) - 1}), got {tensor.shape[0]}")
    elif (
        cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling() and tensor.shape[0] != int(cu_seqlens[-1])
    ):
        raise ValueError(f"{name} must have one row per token ({int(cu_seqlens[-1])}), got {tensor.shape[0]}")


def _check_links(links: tuple[Tensor, Tensor], cu_clusters: Tensor, documents: int) -> None:
    indptr, indices = links
    checks.check_index("links[1]", indices, 1, "[links]")
    checks.check_offsets("links[0]", indptr, len(indices), "links")
    if len(indptr) != documents + 1:
        raise ValueError(
            f"links[0] must have one offset per document and one more ({documents + 1}), got {len(indptr)}"
        )
    if {indptr.device.type, indices.device.type} != {"cpu"} or torch.compiler.is_compiling():
        return
    cluster_of = [cluster for cluster, size in enumerate(cu_clusters.diff().tolist()) for _ in range(size)]
    offsets, targets = indptr.tolist(), indices.tolist()
    for query in range(documents):
        for target in targets[offsets[query] : offsets[query + 1]]:
            if not 0 <= target < documents:
                raise ValueError(f"document {query} links to document {target}, but there are {documents} documents")
            if cluster_of[target] != cluster_of[query]:
                raise ValueError(
                    f"document {query} of cluster {cluster_of[query]} links to document {target} "
                    f"of cluster {cluster_of[target]}: links must stay inside a cluster"
                )
