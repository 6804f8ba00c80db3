"""What cross_document_attention means, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from spanbert_kernels.ops.cross_document_attention.linked_reference import linked_attention, linked_rows
from spanbert_kernels.ops.document_attention.reference import keep_factors, longest, masked_attention, pad_rows
from spanbert_kernels.ops.documents import document_of


def rows_of_clusters(kind: str, cu_seqlens: Tensor, cu_clusters: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """For anchors or tokens: first row and number of rows of each cluster `[C]`, document of each row `[count]`."""
    clusters = cu_clusters.long()
    if kind == "anchors":
        return clusters[:-1], clusters[1:] - clusters[:-1], torch.arange(count, device=clusters.device)
    offsets = cu_seqlens.long()[clusters]
    return offsets[:-1], offsets[1:] - offsets[:-1], document_of(cu_seqlens, count)


def link_matrix(links: tuple[Tensor, Tensor], documents: int) -> Tensor:
    """CSR links `(indptr [D + 1], indices)` as a bool matrix `[D, D]`, row = query document."""
    indptr, indices = links[0].long(), links[1].long()
    row = torch.repeat_interleave(torch.arange(documents, device=indptr.device), indptr[1:] - indptr[:-1])
    matrix = torch.zeros(documents, documents, dtype=torch.bool, device=indptr.device)
    matrix[row, indices] = True
    return matrix


def pairwise_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor,
    place: Tensor,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
    query_index: Tensor,
    key_index: Tensor,
) -> tuple[Tensor, Tensor]:
    """A softmax for each document that a query sees, averaged.

    The arguments of `masked_attention` and, one-hot `[B, K, J]`, the place of each key's document in its cluster ->
    output `[B, Q, heads, d]`, document weights `[B, Q, heads, J]`.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    one_hot = place.to(dtype)
    scores = torch.einsum("bqhd,bkhd->bhqk", q.to(dtype), k.to(dtype)) * scale
    scores = scores.masked_fill(~visible[:, None], -torch.inf)
    # The largest score of each document is subtracted, so that no document's sum vanishes beside another's.
    document = place.int().argmax(2)[:, None, None].expand_as(scores)
    largest = scores.new_full((*scores.shape[:3], place.shape[2]), -torch.inf)
    largest = largest.scatter_reduce(3, document, scores.detach(), "amax").gather(3, document)
    powers = torch.where(visible[:, None], scores - largest, -torch.inf).exp()
    sums = torch.einsum("bhqk,bkj->bhqj", powers, one_hot)
    weights = powers / torch.where(visible[:, None], torch.einsum("bhqj,bkj->bhqk", sums, one_hot), 1)

    seen = torch.einsum("bqk,bkj->bqj", visible.to(dtype), one_hot) > 0
    number = seen.sum(2).clamp(min=1)  # [B, Q]: documents seen
    kept = weights * keep_factors(q.shape[2], dropout_p, seed, query_index, key_index, dtype)
    output = torch.einsum("bhqk,bkhd->bqhd", kept, v.to(dtype)) / number[:, :, None, None]
    return output.to(q.dtype), (seen / number[..., None])[:, :, None].expand(-1, -1, q.shape[2], -1)


def document_by_document(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    cu_clusters: Tensor,
    queries: str,
    keys: str,
    include_self: bool,
    links: tuple[Tensor, Tensor] | None,
    largest: int,
    normalize: str,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same, with only those keys in a product that a document sees: 0 times Inf or NaN would be NaN."""
    documents = torch.arange(len(cu_seqlens) - 1, device=q.device)
    filled = cu_seqlens[1:] > cu_seqlens[:-1]
    cluster = torch.searchsorted(cu_clusters[1:].long().contiguous(), documents, right=True)
    seen = (cluster[:, None] == cluster) & filled[:, None] & filled
    if links is not None:
        seen = seen & link_matrix(links, len(documents))
    if not include_self:
        seen = seen & (documents[:, None] != documents)
    q_document = rows_of_clusters(queries, cu_seqlens, cu_clusters, q.shape[0])[2]
    k_document = rows_of_clusters(keys, cu_seqlens, cu_clusters, k.shape[0])[2]
    places = k_document - cu_clusters.long()[cluster[k_document]]

    output = torch.zeros_like(q)
    lse = q.new_full((q.shape[1], q.shape[0]), -torch.inf, dtype=torch.promote_types(q.dtype, torch.float32))
    share = lse.new_zeros(q.shape[0], q.shape[1], largest)
    for document in documents.tolist():
        mine, others = (q_document == document).nonzero()[:, 0], seen[document][k_document].nonzero()[:, 0]
        if not len(mine) or not len(others):
            continue
        visible = seen.new_ones(1, len(mine), len(others))
        place = (torch.arange(largest, device=q.device) == places[others, None])[None]
        call = (q[mine][None], k[others][None], v[others][None], visible)
        rows = (mine[None], others[None])
        if normalize == "joint":
            part, sums, weights = masked_attention(*call, scale, dropout_p, seed, *rows)
            lse[:, mine] = sums[0]
            share[mine] = torch.einsum("hqk,kj->qhj", weights[0].detach(), place[0].to(weights.dtype))
        else:
            part, shares = pairwise_attention(*call, place, scale, dropout_p, seed, *rows)
            share[mine] = shares[0].to(share.dtype)
        output = output.index_put((mine,), part[0])
    return output, lse, share.float()


def cross_document_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    cu_clusters: Tensor,
    queries: str,
    keys: str,
    include_self: bool,
    links: tuple[Tensor, Tensor] | None,
    normalize: str,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
    weighed: bool = True,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """-> output like q, lse `[heads, rows]`, document weights `[rows, heads, documents of the largest cluster]`, which
    may be None unless `weighed`.
    """
    documents = len(cu_seqlens) - 1
    filled = cu_seqlens[1:] > cu_seqlens[:-1]  # [D]: an empty document has no anchor
    first_document = cu_clusters[:-1].long()
    if documents == 0:  # no rows either; the sums keep the graph
        output = q + (k.sum() + v.sum())
        lse = q.new_zeros(q.shape[1], 0, dtype=torch.promote_types(q.dtype, torch.float32))
        return output, lse, lse.new_zeros(0, q.shape[1], 0, dtype=torch.float32)
    largest = longest(cu_clusters.diff())

    q_begin, q_count, q_document = rows_of_clusters(queries, cu_seqlens, cu_clusters, q.shape[0])
    k_begin, k_count, k_document = rows_of_clusters(keys, cu_seqlens, cu_clusters, k.shape[0])
    q_rows, k_rows = longest(q_count, least=2), longest(k_count, least=2)
    if links is not None and not torch.compiler.is_compiling():
        # A pair of rows takes as much memory as d pairs of the matrices below.
        most = len(q_count) * q_rows * k_rows // max(q.shape[2], 1)
        sight = (links, cu_seqlens, cu_clusters, queries, keys, include_self)
        pairs = linked_rows(*sight, q.shape[0], most)
        if pairs is not None:
            return linked_attention(q, k, v, pairs, normalize, scale, dropout_p, seed, largest if weighed else None)

    if not torch.compiler.is_compiling() and not (q.isfinite().all() & k.isfinite().all() & v.isfinite().all()):
        by_side = (cu_seqlens, cu_clusters, queries, keys, include_self, links)
        return document_by_document(q, k, v, *by_side, largest, normalize, scale, dropout_p, seed)

    # Rows of empty documents are ignored: their content must reach nothing.
    q = torch.where(filled[q_document][:, None, None], q, 0)
    k = torch.where(filled[k_document][:, None, None], k, 0)
    v = torch.where(filled[k_document][:, None, None], v, 0)
    padded_q, q_index, q_mask = pad_rows(q, q_begin, q_count, q_rows)  # [C, Q, heads, d]
    padded_k, k_index, k_mask = pad_rows(k, k_begin, k_count, k_rows)  # [C, K, heads, d]
    padded_v = pad_rows(v, k_begin, k_count, k_rows)[0]
    of_query = pad_rows(q_document, q_begin, q_count, q_rows)[0]  # [C, Q]
    of_key = pad_rows(k_document, k_begin, k_count, k_rows)[0]  # [C, K]

    visible = (q_mask & filled[of_query])[:, :, None] & (k_mask & filled[of_key])[:, None, :]
    if links is not None:
        visible = visible & link_matrix(links, documents)[of_query[:, :, None], of_key[:, None, :]]
    if not include_self:
        visible = visible & (of_query[:, :, None] != of_key[:, None, :])

    # Which place in its cluster a key's document has: [C, K, documents of the largest cluster].
    place = torch.arange(largest, device=q.device) == (of_key - first_document[:, None])[..., None]
    if normalize == "joint":
        output, lse, weights = masked_attention(
            padded_q, padded_k, padded_v, visible, scale, dropout_p, seed, q_index, k_index
        )
        share = torch.einsum("chqk,ckj->cqhj", weights.detach(), place.to(weights.dtype))
    else:
        output, share = pairwise_attention(
            padded_q, padded_k, padded_v, visible, place, scale, dropout_p, seed, q_index, k_index
        )
        lse = share.new_full((len(q_count), q.shape[1], q_rows), -torch.inf)

    # Back to packed rows: the cluster of each row, and its place there.
    cluster = torch.searchsorted(cu_clusters[1:].long().contiguous(), q_document, right=True)
    position = torch.arange(q.shape[0], device=q.device) - q_begin[cluster]
    return output[cluster, position], lse[cluster, :, position].T, share[cluster, position].float()
