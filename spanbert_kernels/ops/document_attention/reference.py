"""What document_attention means, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from spanbert_kernels.ops import philox
from spanbert_kernels.ops.attention.relative import RelativeTerms
from spanbert_kernels.ops.documents import document_of


def longest(lengths: Tensor, least: int = 1) -> int:
    """The largest length, at least 1: a compiler that does not know the values need not care for empty tensors.

    Of rows in a product it wants 2, as it lays a single one out in another way.
    """
    length = int(lengths.max().clamp(min=least)) if lengths.numel() else least
    torch._check(length >= least)
    return length


def pad_rows(rows: Tensor, begin: Tensor, lengths: Tensor, max_length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Runs of packed `rows [R, ...]` side by side: `[D, L, ...]`, zeros beyond a run's end, the index of each row
    (0 beyond the end) and the mask of the real ones, both `[D, L]`.
    """
    position = torch.arange(max_length, device=rows.device)
    mask = position < lengths[:, None]
    index = torch.where(mask, begin[:, None] + position, 0)
    if rows.shape[0] == 0:
        rows = rows.sum(0, keepdim=True)  # a row of zeros to index, which keeps the graph
    keep = mask.view(*mask.shape, *[1] * (rows.dim() - 1))
    # Zeros, not neighbours' rows: what a document does not see may hold Inf or NaN.
    return torch.where(keep, rows[index], 0), index, mask


def keep_factors(
    heads: int, dropout_p: float, seed: Tensor | None, query_index: Tensor, key_index: Tensor, dtype: torch.dtype
) -> Tensor | float:
    """What dropout multiplies the weights `[B, heads, Q, K]` by: 0 or `1 / (1 - p)`; 1 where nothing is dropped."""
    if dropout_p == 0.0:
        return 1.0
    assert seed is not None
    head = torch.arange(heads, device=query_index.device)[:, None, None]
    keep = philox.keep(seed, dropout_p, head, query_index[:, None, :, None], key_index[:, None, None, :])
    return keep.to(dtype) / (1.0 - dropout_p)


def logits(
    q: Tensor, k: Tensor, scale: float, relative: RelativeTerms | None, query_index: Tensor, key_index: Tensor
) -> Tensor:
    """`[B, heads, Q, K]` of `q [B, Q, heads, d]` and `k [B, K, heads, d]`, with the terms by distance."""
    products = torch.einsum("bqhd,bkhd->bhqk", q, k)
    if relative is None:
        return products * scale
    reach = relative.reach
    distance = key_index[:, None, :] - query_index[:, :, None]  # of packed rows: the same as in their document
    row = relative.index[distance.clamp(-reach, reach) + reach].long()  # [B, Q, K]
    rows = row[:, None].expand_as(products)
    if relative.keys is not None:
        by_row = torch.einsum("bqhd,xhd->bhqx", q, relative.keys.to(q.dtype))
        products = products + by_row.gather(3, rows)
    if relative.queries is not None:
        by_row = torch.einsum("bkhd,xhd->bhkx", k, relative.queries.to(k.dtype))
        products = products + by_row.gather(3, rows.mT).mT
    scores = products * scale
    if relative.bias is not None:
        # Not by indexing, whose gradient is summed in any order.
        bias = relative.bias.to(q.dtype).index_select(0, row.flatten())
        scores = scores + bias.view(*row.shape, bias.shape[1]).permute(0, 3, 1, 2)
    return scores


def masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
    query_index: Tensor,
    key_index: Tensor,
    relative: RelativeTerms | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax attention over the visible keys, in float32 (float64 for float64).

    `q [B, Q, heads, d]`, `k`, `v [B, K, heads, d]`, `visible [B, Q, K]`, packed indices `[B, Q]`, `[B, K]` ->
    output `[B, Q, heads, d]`, log-sum-exp `[B, heads, Q]`, weights before dropout `[B, heads, Q, K]`.
    A query that sees no key gives 0 and -inf.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    scores = logits(q.to(dtype), k.to(dtype), scale, relative, query_index, key_index)
    scores = scores.masked_fill(~visible[:, None], -torch.inf)
    any_key = visible.any(2)[:, None, :, None]  # [B, 1, Q, 1]
    lse = scores.logsumexp(3)
    weights = torch.where(any_key, scores, 0).softmax(3) * visible[:, None]
    kept = weights * keep_factors(q.shape[2], dropout_p, seed, query_index, key_index, dtype)
    output = torch.einsum("bhqk,bkhd->bqhd", kept, v.to(dtype))
    return output.to(q.dtype), lse.detach(), weights


def query_by_query(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
    window: int,
    relative: RelativeTerms | None,
) -> tuple[Tensor, Tensor]:
    """The same, with only those keys in a product that a query sees: 0 times Inf or NaN would be NaN."""
    document = document_of(cu_seqlens, q.shape[0])
    query = torch.arange(q.shape[0], device=q.device)
    begin = torch.maximum(cu_seqlens.long()[document], query - window)
    lengths = torch.minimum(cu_seqlens.long()[document + 1], query + window + 1) - begin
    padded_k, key_index, mask = pad_rows(k, begin, lengths, longest(lengths))
    padded_v = pad_rows(v, begin, lengths, longest(lengths))[0]
    options = (scale, dropout_p, seed, query[:, None], key_index, relative)
    output, lse, _ = masked_attention(q[:, None], padded_k, padded_v, mask[:, None], *options)
    return output[:, 0], lse[:, :, 0].T


def document_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
    max_seqlen: int | None,
    window: int | None,
    relative: RelativeTerms | None,
) -> tuple[Tensor, Tensor]:
    """`q`, `k`, `v [T, heads, d]` -> output `[T, heads, d]`, log-sum-exp `[heads, T]`."""
    looked_at = (q, k, v) if window is not None and not torch.compiler.is_compiling() else ()
    if window is not None and not all(tensor.isfinite().all() for tensor in looked_at):
        return query_by_query(q, k, v, cu_seqlens, scale, dropout_p, seed, window, relative)
    begin = cu_seqlens[:-1].long()
    lengths = cu_seqlens[1:].long() - begin
    if max_seqlen is None:
        max_seqlen = longest(lengths, least=2)
    padded_q, index, mask = pad_rows(q, begin, lengths, max_seqlen)
    padded_k, padded_v = pad_rows(k, begin, lengths, max_seqlen)[0], pad_rows(v, begin, lengths, max_seqlen)[0]
    visible = mask[:, :, None] & mask[:, None, :]
    if window is not None:
        position = torch.arange(max_seqlen, device=q.device)
        visible = visible & ((position[:, None] - position).abs() <= window)
    options = (scale, dropout_p, seed, index, index, relative)
    output, lse, _ = masked_attention(padded_q, padded_k, padded_v, visible, *options)
    document = document_of(cu_seqlens, q.shape[0])
    position = torch.arange(q.shape[0], device=q.device) - begin[document]
    return output[document, position], lse[document, :, position].T
