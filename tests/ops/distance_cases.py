"""Attention with terms by distance, from the definition by loops, and what its checks draw."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from attention_loops import kept_share, largest_logit
from op_checks import Tensors
from torch import Tensor

from spanbert_kernels.ops import RelativeTerms, document_attention

TABLES = ("bias", "keys", "queries")


def distance_inputs(
    size: int,
    *,
    lengths: tuple[int, ...] = (3, 0, 1, 2),
    heads: int = 2,
    dim: int = 3,
    index: Tensor | None = None,
    tables: tuple[str, ...] = (),
    seed: int | None = None,
) -> Tensors:
    """Tensors of a call; `tables` with the rows that `index` names."""
    generator = torch.Generator().manual_seed(size)
    cu_seqlens = torch.tensor([0, *(size * length for length in lengths)]).cumsum(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors = {name: numbers(int(cu_seqlens[-1]), heads, dim) for name in "qkv"}
    tensors |= {"q": 2 * tensors["q"], "cu_seqlens": cu_seqlens}  # weights far from uniform
    if index is not None:
        rows = int(index.max()) + 1
        shapes = {"bias": (rows, heads), "keys": (rows, heads, dim), "queries": (rows, heads, dim)}
        tensors |= {"index": index, **{name: numbers(*shapes[name]) for name in tables}}
    return tensors if seed is None else {**tensors, "seed": torch.tensor([seed])}


def by_distance(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Any,
    seed: Tensor | None = None,
    index: Tensor | None = None,
    bias: Tensor | None = None,
    keys: Tensor | None = None,
    queries: Tensor | None = None,
    **options: Any,
) -> Any:
    """document_attention with its terms' tensors one by one."""
    relative = None if index is None else RelativeTerms(index, bias, keys, queries)
    return document_attention(q, k, v, cu_seqlens, seed=seed, relative=relative, **options)


def row_of_distances(index: Tensor, length: int) -> Tensor:
    reach, entries = len(index) // 2, index.tolist()
    return torch.tensor(
        [[entries[max(-reach, min(reach, j - i)) + reach] for j in range(length)] for i in range(length)]
    )


def scores_by_loop(
    q: Tensor,
    k: Tensor,
    scale: float,
    window: int | None,
    index: Tensor | None,
    bias: Tensor | None,
    keys: Tensor | None,
    queries: Tensor | None,
) -> Tensor:
    """`[heads, n, n]` of a document, each pair's rows looked up; -inf outside the window."""
    scores = torch.einsum("ihd,jhd->hij", q, k)
    row = row_of_distances(index, len(q)) if index is not None else torch.zeros(len(q), len(q)).long()
    if keys is not None:
        scores = scores + torch.einsum("ihd,ijhd->hij", q, keys[row])
    if queries is not None:
        scores = scores + torch.einsum("jhd,ijhd->hij", k, queries[row])
    scores = scores * scale
    if bias is not None:
        scores = scores + bias[row].permute(2, 0, 1)
    position = torch.arange(len(q))
    seen = (position[:, None] - position).abs() <= (len(q) if window is None else window)
    return torch.where(seen, scores, -torch.inf)


def by_distance_in_loops(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    seed: Tensor | None = None,
    index: Tensor | None = None,
    bias: Tensor | None = None,
    keys: Tensor | None = None,
    queries: Tensor | None = None,
    *,
    window: int | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    max_seqlen: int | None = None,
    return_lse: bool = True,
) -> tuple[Tensor, ...]:
    """Document by document. `max_seqlen` is a hint."""
    scale = q.shape[2] ** -0.5 if scale is None else scale
    empty = sum((x.sum() for x in (q, k, v, bias, keys, queries) if x is not None), start=torch.zeros(()))
    outputs, sums = [torch.zeros_like(q[:0]) + 0 * empty], [q.new_zeros(q.shape[1], 0)]
    for begin, end in itertools.pairwise(cu_seqlens.tolist()):
        if begin == end:
            continue
        scores = scores_by_loop(q[begin:end], k[begin:end], scale, window, index, bias, keys, queries)
        rows = torch.arange(begin, end)
        weights = scores.softmax(-1) * kept_share(seed, dropout_p, q.shape[1], rows, rows, q.dtype)
        outputs.append(torch.einsum("hij,jhd->ihd", weights, v[begin:end]))
        sums.append(scores.detach().logsumexp(-1))
    return (torch.cat(outputs), torch.cat(sums, 1)) if return_lse else (torch.cat(outputs),)


def distance_terms(
    tensors: Tensors, incoming: list[Tensor], scale: float, keep: float, window: int | None
) -> dict[str, float]:
    """What `attention_loops.score_terms` says, for these terms and their tables."""
    index = tensors.get("index")
    tables = [tensors.get(name) for name in TABLES]
    sums = {name: torch.zeros_like(tensors[name]) for name in ("q", "k", "v", *TABLES) if name in tensors}
    for begin, end in itertools.pairwise(tensors["cu_seqlens"].tolist()):
        if begin == end:
            continue
        q, k, v, grad = (x[begin:end] for x in (tensors["q"], tensors["k"], tensors["v"], incoming[0]))
        scores = scores_by_loop(q, k, scale, window, index, *tables)
        weights = scores.softmax(-1)
        slopes = torch.einsum("ihd,jhd->hij", grad, v).abs() / keep
        exponents = weights * scores.logsumexp(-1, keepdim=True).abs().clamp(min=1) / keep
        terms = weights * (slopes + (weights * slopes).sum(-1, keepdim=True))
        scaled = abs(scale) * terms
        sums["q"][begin:end] += torch.einsum("hij,jhd->ihd", scaled, k.abs())
        sums["k"][begin:end] += torch.einsum("hij,ihd->jhd", scaled, q.abs())
        sums["v"][begin:end] += torch.einsum("hij,ihd->jhd", exponents, grad.abs())
        if index is None:
            continue
        row = row_of_distances(index, end - begin)
        bias, keys, queries = tables
        if bias is not None:
            sums["bias"].index_put_((row,), terms.permute(1, 2, 0), accumulate=True)
        if keys is not None:
            sums["q"][begin:end] += torch.einsum("hij,ijhd->ihd", scaled, keys[row].abs())
            sums["keys"].index_put_((row,), torch.einsum("hij,ihd->ijhd", scaled, q.abs()), accumulate=True)
        if queries is not None:
            sums["k"][begin:end] += torch.einsum("hij,ijhd->jhd", scaled, queries[row].abs())
            sums["queries"].index_put_((row,), torch.einsum("hij,jhd->ijhd", scaled, k.abs()), accumulate=True)
    return {name: float(total.max()) if total.numel() else 0.0 for name, total in sums.items()}


def largest_distance_logit(tensors: Tensors, scale: float | None) -> float:
    """What `attention_loops.largest_logit` says, for the logits with their terms."""
    factor = abs(tensors["q"].shape[2] ** -0.5 if scale is None else scale)
    found = largest_logit(tensors["q"], tensors["k"], scale)
    for side, name in (("q", "keys"), ("k", "queries")):
        if name in tensors and tensors[side].numel():
            found += factor * float(torch.einsum("rhd,xhd->hrx", tensors[side].abs(), tensors[name].abs()).max())
    return found + (float(tensors["bias"].abs().max()) if "bias" in tensors and tensors["bias"].numel() else 0.0)
