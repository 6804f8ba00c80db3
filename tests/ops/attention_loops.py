"""Attention by loops, from the definitions: what the attention operations are compared with."""

from __future__ import annotations

import itertools

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
        terms = scale * weights * (slopes + (weights * slopes).sum(-1, keepdim=True))
        sizes["q"] = max(sizes["q"], float((terms @ k.abs()).max()))
        sizes["k"] = max(sizes["k"], float((terms.mT @ q.abs()).max()))
        sizes["v"] = max(sizes["v"], float((exponents.mT @ grad.abs()).max()))
    return sizes


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
    """Query row by query row, with the documents that it sees listed one by one."""
    scale = q.shape[2] ** -0.5 if scale is None else scale
    tokens, clusters = cu_seqlens.tolist(), cu_clusters.tolist()
    heads, largest = q.shape[1], max((b - a for a, b in itertools.pairwise(clusters)), default=0)

    def rows_of(kind: str, document: int) -> list[int]:
        begin, end = tokens[document], tokens[document + 1]
        if kind == "anchors":
            return [document] if end > begin else []
        return list(range(begin, end))

    def linked(i: int, j: int) -> bool:
        return indptr is None or indices is None or j in indices[indptr[i] : indptr[i + 1]].tolist()

    output = [q.new_zeros(heads, q.shape[2]) for _ in q]
    lse = torch.full((heads, len(q)), -torch.inf, dtype=q.dtype)
    weights = torch.zeros(len(q), heads, largest, dtype=q.dtype)
    for first, last in itertools.pairwise(clusters):
        for i in range(first, last):
            seen = [j for j in range(first, last) if (j != i or include_self) and linked(i, j) and rows_of(keys, j)]
            groups = [torch.tensor(rows_of(keys, j)) for j in seen]
            for r in rows_of(queries, i) if seen else []:
                scores = [torch.einsum("nhd,hd->hn", k[group], q[r]) * scale for group in groups]
                together = torch.cat(scores, 1)
                lse[:, r] = together.detach().logsumexp(1)
                if normalize == "joint":
                    shares = list(together.softmax(1).split([len(group) for group in groups], 1))
                else:
                    shares = [s.softmax(1) / len(seen) for s in scores]
                for j, group, share in zip(seen, groups, shares, strict=True):
                    weights[r, :, j - first] = share.detach().sum(1)
                    keep = kept_share(seed, dropout_p, heads, torch.tensor([r]), group, q.dtype)[:, 0]
                    output[r] = output[r] + torch.einsum("hn,nhd->hd", share * keep, v[group])
    stacked = torch.stack(output) if output else torch.zeros_like(q)
    extras = [extra for extra, asked in ((lse, return_lse), (weights, return_weights)) if asked]
    return (stacked + 0 * (q.sum() + k.sum() + v.sum()), *extras)
