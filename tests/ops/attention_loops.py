"""Attention by loops, from the definitions: what the attention operations are compared with."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from spanbert_kernels.ops import philox


def kept_share(
    seed: Tensor | None, dropout_p: float, heads: int, queries: Tensor, keys: Tensor, dtype: torch.dtype
) -> Tensor:
    """0 or 1 / (1 - p) for every entry `[heads, queries, keys]`."""
    if seed is None:
        return torch.ones(heads, len(queries), len(keys), dtype=dtype)
    head = torch.arange(heads)[:, None, None]
    keep = philox.keep(seed, dropout_p, head, queries[None, :, None], keys[None, None, :])
    return keep.to(dtype) / (1.0 - dropout_p)


def document_attention_by_loop(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor | None = None,
    *,
    dropout_p: float = 0.0,
    scale: float | None = None,
    max_seqlen: int | None = None,
    return_lse: bool = True,
) -> tuple[Tensor, ...]:
    """PyTorch's own attention, document by document; with dropout, the softmax written out. `max_seqlen` is a hint."""
    scale = q.shape[2] ** -0.5 if scale is None else scale
    outputs, sums = [torch.zeros_like(q[:0]) + 0 * (q.sum() + k.sum() + v.sum())], [q.new_zeros(q.shape[1], 0)]
    offsets = cu_seqlens.tolist()
    for begin, end in itertools.pairwise(offsets):
        if begin == end:
            continue
        qs, ks, vs = (x[begin:end].transpose(0, 1) for x in (q, k, v))
        scores = qs @ ks.mT * scale
        if seed is None:
            out = functional.scaled_dot_product_attention(qs[None], ks[None], vs[None], scale=scale)[0]
        else:
            tokens = torch.arange(begin, end)
            out = (scores.softmax(-1) * kept_share(seed, dropout_p, q.shape[1], tokens, tokens, q.dtype)) @ vs
        outputs.append(out.transpose(0, 1))
        sums.append(scores.detach().logsumexp(-1))
    lse = torch.cat(sums, 1)
    return (torch.cat(outputs), lse) if return_lse else (torch.cat(outputs),)


def score_terms(tensors: dict[str, Tensor], incoming: list[Tensor], scale: float, keep: float) -> dict[str, float]:
    """The gradient of a score is `P (dP - delta)`: how large the gradients of q and k were if nothing cancelled.

    For v, the rounding of the exponent in `P = exp(s - lse)`: an error of P relative to the size of lse.
    """
    offsets = tensors["cu_seqlens"].tolist()
    sizes = dict.fromkeys("qkv", 0.0)
    for begin, end in itertools.pairwise(offsets):
        if begin == end:
            continue
        q, k, v, grad = (x[begin:end].transpose(0, 1) for x in (*(tensors[n] for n in "qkv"), incoming[0]))
        scores = q @ k.mT * scale
        weights, slopes = scores.softmax(-1), (grad @ v.mT).abs() / keep
        exponents = weights * scores.logsumexp(-1, keepdim=True).abs().clamp(min=1) / keep
        terms = abs(scale) * weights * (slopes + (weights * slopes).sum(-1, keepdim=True))
        sizes["q"] = max(sizes["q"], float((terms @ k.abs()).max()))
        sizes["k"] = max(sizes["k"], float((terms.mT @ q.abs()).max()))
        sizes["v"] = max(sizes["v"], float((exponents.mT @ grad.abs()).max()))
    return sizes


def largest_logit(q: Tensor, k: Tensor, scale: float | None) -> float:
    """The largest scaled product of a query and a key, of whatever documents, without its terms' signs."""
    if not q.numel() or not k.numel():
        return 0.0
    products = torch.einsum("rhd,nhd->hrn", q.abs(), k.abs())
    return float(products.max()) * abs(q.shape[2] ** -0.5 if scale is None else scale)


class Seen(NamedTuple):
    """A document's query rows and the documents that it sees: their places in the cluster, and their key rows."""

    rows: Tensor
    places: list[int]
    groups: list[Tensor]


def each_query(
    cu_seqlens: Tensor,
    cu_clusters: Tensor,
    indptr: Tensor | None,
    indices: Tensor | None,
    queries: str,
    keys: str,
    include_self: bool,
) -> Iterator[Seen]:
    """The documents that see anything, with those that they see listed one by one."""
    tokens, clusters = cu_seqlens.tolist(), cu_clusters.tolist()

    def rows_of(kind: str, document: int) -> list[int]:
        begin, end = tokens[document], tokens[document + 1]
        if kind == "anchors":
            return [document] if end > begin else []
        return list(range(begin, end))

    def linked(i: int, j: int) -> bool:
        return indptr is None or indices is None or j in indices[indptr[i] : indptr[i + 1]].tolist()

    for first, last in itertools.pairwise(clusters):
        for i in range(first, last):
            seen = [j for j in range(first, last) if (j != i or include_self) and linked(i, j) and rows_of(keys, j)]
            groups = [torch.tensor(rows_of(keys, j)) for j in seen]
            rows = rows_of(queries, i)
            if seen and rows:
                yield Seen(torch.tensor(rows), [j - first for j in seen], groups)


def cross_document_attention_by_loop(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    cu_clusters: Tensor,
    seed: Tensor | None = None,
    indptr: Tensor | None = None,
    indices: Tensor | None = None,
    *,
    queries: str = "anchors",
    keys: str = "anchors",
    include_self: bool = False,
    normalize: str = "joint",
    dropout_p: float = 0.0,
    scale: float | None = None,
    return_lse: bool = False,
    return_weights: bool = True,
) -> tuple[Tensor, ...]:
    """Document by document."""
    scale = q.shape[2] ** -0.5 if scale is None else scale
    heads, largest = q.shape[1], max(cu_clusters.diff().tolist(), default=0)
    output = torch.zeros_like(q)
    lse = torch.full((heads, len(q)), -torch.inf, dtype=q.dtype)
    weights = torch.zeros(len(q), heads, largest, dtype=q.dtype)
    for rows, places, groups in each_query(cu_seqlens, cu_clusters, indptr, indices, queries, keys, include_self):
        scores = [torch.einsum("rhd,nhd->hrn", q[rows], k[group]) * scale for group in groups]
        together = torch.cat(scores, 2)
        lse[:, rows] = together.detach().logsumexp(2)
        if normalize == "joint":
            shares = list(together.softmax(2).split([len(group) for group in groups], 2))
        else:
            shares = [s.softmax(2) / len(groups) for s in scores]
        for place, group, share in zip(places, groups, shares, strict=True):
            weights[rows, :, place] = share.detach().sum(2).T
            keep = kept_share(seed, dropout_p, heads, rows, group, q.dtype)
            output = output.index_add(0, rows, torch.einsum("hrn,nhd->rhd", share * keep, v[group]))
    extras = [extra for extra, asked in ((lse, return_lse), (weights, return_weights)) if asked]
    return (output + 0 * (q.sum() + k.sum() + v.sum()), *extras)


def cross_score_terms(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    cu_clusters: Tensor,
    seed: Tensor | None = None,
    indptr: Tensor | None = None,
    indices: Tensor | None = None,
    *,
    queries: str,
    keys: str,
    grad: Tensor,
    include_self: bool = False,
    normalize: str = "joint",
    dropout_p: float = 0.0,
    scale: float | None = None,
) -> dict[str, float]:
    """What `score_terms` says, for attention between documents."""
    scale = q.shape[2] ** -0.5 if scale is None else scale
    sums = {"q": torch.zeros_like(q), "k": torch.zeros_like(k), "v": torch.zeros_like(v)}
    for rows, _, groups in each_query(cu_seqlens, cu_clusters, indptr, indices, queries, keys, include_self):
        share = 1 / len(groups) if normalize == "pairwise" else 1.0
        for group in groups if normalize == "pairwise" else [torch.cat(groups)]:
            scores = torch.einsum("rhd,nhd->hrn", q[rows], k[group]) * scale
            weights = scores.softmax(2)
            slopes = torch.einsum("rhd,nhd->hrn", grad[rows], v[group]).abs() / (1 - dropout_p)
            terms = share * abs(scale) * weights * (slopes + (weights * slopes).sum(2, keepdim=True))
            exponents = share * weights * scores.logsumexp(2, keepdim=True).abs().clamp(min=1) / (1 - dropout_p)
            sums["q"][rows] += torch.einsum("hrn,nhd->rhd", terms, k[group].abs())
            sums["k"][group] += torch.einsum("hrn,rhd->nhd", terms, q[rows].abs())
            sums["v"][group] += torch.einsum("hrn,rhd->nhd", exponents, grad[rows].abs())
    return {name: float(total.max()) if total.numel() else 0.0 for name, total in sums.items()}
