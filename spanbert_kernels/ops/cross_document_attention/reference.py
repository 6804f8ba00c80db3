"""What cross_document_attention means, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from spanbert_kernels.ops.document_attention.reference import longest, masked_attention, pad_rows
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
) -> tuple[Tensor, Tensor, Tensor]:
    """-> output like q, lse `[heads, rows]`, document weights `[rows, heads, documents of the largest cluster]`."""
    documents = len(cu_seqlens) - 1
    filled = cu_seqlens[1:] > cu_seqlens[:-1]  # [D]: an empty document has no anchor
    first_document = cu_clusters[:-1].long()
    largest = longest(cu_clusters.diff()) if documents else 0

    q_begin, q_count, q_document = rows_of_clusters(queries, cu_seqlens, cu_clusters, q.shape[0])
    k_begin, k_count, k_document = rows_of_clusters(keys, cu_seqlens, cu_clusters, k.shape[0])
    q_rows, k_rows = longest(q_count), longest(k_count)

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
        seen = visible[:, :, :, None] & place[:, None]  # [C, Q, K, J]
        number = seen.any(2).sum(2)  # [C, Q]: visible documents
        total = padded_q.new_zeros(padded_q.shape, dtype=torch.promote_types(q.dtype, torch.float32))
        for j in range(largest):
            part, _, _ = masked_attention(
                padded_q.to(total.dtype), padded_k, padded_v, seen[..., j], scale, dropout_p, seed, q_index, k_index
            )
            total = total + part
        output = (total / number.clamp(min=1)[:, :, None, None]).to(q.dtype)
        lse = total.new_full((len(q_count), q.shape[1], q_rows), -torch.inf)
        share = (seen.any(2) / number.clamp(min=1)[..., None])[:, :, None].expand(-1, -1, q.shape[1], -1)

    # Back to packed rows: the cluster of each row, and its place there.
    cluster = torch.searchsorted(cu_clusters[1:].long().contiguous(), q_document, right=True)
    position = torch.arange(q.shape[0], device=q.device) - q_begin[cluster]
    return output[cluster, position], lse[cluster, :, position].T, share[cluster, position].float()
