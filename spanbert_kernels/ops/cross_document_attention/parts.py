"""Attention of queries to a part of the keys that they see, in plain PyTorch, and how parts make a whole.

Each part has a softmax of its own. With `lse` the log-sum-exp of a part and `LSE` that of all, the part's weights are
`exp(lse - LSE)` of the whole's; the backward makes these at once, `P = exp(S - LSE)`, and with delta = rowsum(dO * O)
of the whole dS = P (dP - delta), part by part.

What is in no product here is not seen: blocks have no mask, so Inf or NaN beyond what a query sees reaches nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from spanbert_kernels.ops import philox
from spanbert_kernels.ops.attention.work import AttentionWork
from spanbert_kernels.ops.philox import Dropout

SCORES = 2**24  # of a block, at most: 64 MB in float32


class RowBlock(NamedTuple):
    """Query rows that see key rows, all of them all: both from a first row to one after the last."""

    query: int
    query_end: int
    key: int
    key_end: int


class Totals(NamedTuple):
    """Of the parts so far.

    Attributes:
        output: `[rows, heads, d]`, float32 (float64 for float64).
        lse: `[heads, rows]`, -inf where no key was seen.
        weights: document weights `[rows, heads, documents]`, where they are wanted.
    """

    output: Tensor
    lse: Tensor
    weights: Tensor | None


def wide(tensor: Tensor) -> torch.dtype:
    """What is added up in."""
    return torch.promote_types(tensor.dtype, torch.float32)


def no_parts(q: Tensor, places: int) -> Totals:
    """Before the first; `places` of document weights, 0 where they are not wanted."""
    weights = q.new_zeros(q.shape[0], q.shape[1], places, dtype=wide(q)) if places else None
    lse = q.new_full((q.shape[1], q.shape[0]), -torch.inf, dtype=wide(q))
    return Totals(torch.zeros_like(q, dtype=wide(q)), lse, weights)


def merged(totals: Totals, part: Totals) -> Totals:
    """Of one part more."""
    lse = torch.logaddexp(totals.lse, part.lse)
    pivot = torch.where(lse == -torch.inf, 0, lse)
    before, now = ((each.lse - pivot).exp().T[:, :, None] for each in (totals, part))
    output = totals.output * before + part.output * now
    if totals.weights is None or part.weights is None:
        return Totals(output, lse, None)
    return Totals(output, lse, totals.weights * before + part.weights * now)


def blocks_of(work: AttentionWork) -> list[RowBlock]:
    """Who sees whom, as few blocks; documents side by side that see the same are one. Waits for a GPU."""
    begin, end, key_begin, key_end, first, last = work.documents.tolist()
    offsets, links = (None if part is None else part.tolist() for part in (work.link_offsets, work.links))
    found: list[tuple[int, int, list[tuple[int, int]]]] = []
    for document, (row, row_end) in enumerate(zip(begin, end, strict=True)):
        if row == row_end:
            continue
        if links is None or offsets is None:
            of_cluster = (key_begin[first[document]], key_end[last[document] - 1])
            around = [(of_cluster[0], key_begin[document]), (key_end[document], of_cluster[1])]
            ranges = [of_cluster] if work.include_self else around
        else:
            targets = (links[link] for link in range(offsets[document], offsets[document + 1]) if links[link] >= 0)
            ranges = [(key_begin[target], key_end[target]) for target in targets]
        seen = list(_joined(ranges))
        if found and found[-1][1:] == (row, seen):
            found[-1] = (found[-1][0], row_end, seen)
        else:
            found.append((row, row_end, seen))
    return [RowBlock(row, row_end, *keys) for row, row_end, seen in found for keys in seen]


def _joined(ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Ascending ranges without empty ones, those that meet as one."""
    begin = end = -1
    for first, last in ranges:
        if first == last:
            continue
        if first == end:
            end = last
            continue
        if begin < end:
            yield begin, end
        begin, end = first, last
    if begin < end:
        yield begin, end


def blocks_by_document(work: AttentionWork) -> list[RowBlock]:
    """Key documents, each with the queries that see it. Rows of anchors of other ranks lie between those of a cluster.

    Waits for a GPU.
    """
    begin, end, key_begin, key_end, first, last = work.documents.tolist()
    found: list[RowBlock] = []
    seeing: list[list[int]] | None = None
    if work.back_links is not None and work.back_offsets is not None:
        offsets, links = work.back_offsets.tolist(), work.back_links.tolist()
        seeing = [[each for each in links[a:b] if each >= 0] for a, b in itertools.pairwise(offsets)]
    for document, keys in enumerate(zip(key_begin, key_end, strict=True)):
        if keys[0] == keys[1]:
            continue
        if seeing is None:
            of_cluster = (begin[first[document]], end[last[document] - 1])
            around = [(of_cluster[0], begin[document]), (end[document], of_cluster[1])]
            rows = [of_cluster] if work.include_self else around
        else:
            rows = [(begin[each], end[each]) for each in seeing[document]]
        found += [RowBlock(*queries, *keys) for queries in _joined(rows)]
    return found


def pieces(block: RowBlock, heads: int) -> Iterator[RowBlock]:
    """The block in pieces of at most SCORES scores, whole rows of keys where they fit."""
    keys = max(1, min(block.key_end - block.key, SCORES // heads))
    queries = max(1, SCORES // (heads * keys))
    for row in range(block.query, block.query_end, queries):
        for key in range(block.key, block.key_end, keys):
            yield RowBlock(row, min(row + queries, block.query_end), key, min(key + keys, block.key_end))


def _heads_first(rows: Tensor, first: int, last: int) -> Tensor:
    """`[heads, rows, d]` in what is added up in."""
    return rows[first:last].to(wide(rows)).transpose(0, 1)


def scores_of(q: Tensor, k: Tensor, block: RowBlock, scale: float) -> Tensor:
    """`[heads, query rows, key rows]`."""
    query, key = _heads_first(q, block.query, block.query_end), _heads_first(k, block.key, block.key_end)
    return (query @ key.mT) * scale


def kept(block: RowBlock, heads: int, dropout: Dropout, like: Tensor) -> Tensor | None:
    """What dropout multiplies the weights of a block by; None where nothing is dropped."""
    if dropout.seed is None:
        return None
    head, query, key = (
        torch.arange(first, last, device=like.device)
        for first, last in ((0, heads), (block.query, block.query_end), (block.key, block.key_end))
    )
    mask = philox.keep(dropout.seed, dropout.dropout_p, head[:, None, None], query[:, None], key)
    return mask.to(wide(like)) / (1.0 - dropout.dropout_p)


def attend_to_part(
    q: Tensor, k: Tensor, v: Tensor, blocks: list[RowBlock], scale: float, dropout: Dropout, place: Tensor | None
) -> Totals:
    """Output, log-sum-exp and, with the `place` of each key row, document weights of the keys of blocks."""
    result = no_parts(q, 0 if place is None else place.shape[1])
    for whole in blocks:
        for block in pieces(whole, q.shape[1]):
            scores = scores_of(q, k, block, scale)
            lse = scores.logsumexp(2)
            weights = scores.softmax(2)
            factors = kept(block, q.shape[1], dropout, q)
            dropped = weights if factors is None else weights * factors
            output = (dropped @ _heads_first(v, block.key, block.key_end)).transpose(0, 1)
            shares = None
            if place is not None:
                shares = (weights @ place[block.key : block.key_end].to(weights.dtype)).transpose(0, 1)
            rows = slice(block.query, block.query_end)
            before = Totals(result.output[rows], result.lse[:, rows], _rows_of(result.weights, rows))
            total = merged(before, Totals(output, lse, shares))
            result.output[rows], result.lse[:, rows] = total.output, total.lse
            if result.weights is not None and total.weights is not None:
                result.weights[rows] = total.weights
    return result


def _rows_of(weights: Tensor | None, rows: slice) -> Tensor | None:
    return None if weights is None else weights[rows]


def places_of(work: AttentionWork, rows: int, places: int) -> Tensor:
    """One-hot `[key rows, places]`, the place of each row's document in its cluster."""
    end, first = work.documents[3].contiguous(), work.documents[4]
    document = torch.searchsorted(end, torch.arange(rows, device=end.device), right=True)
    return torch.nn.functional.one_hot(document - first[document], places)


class Gradients(NamedTuple):
    """Of queries, keys and values, in what is added up in."""

    q: Tensor
    k: Tensor
    v: Tensor


def no_gradients(q: Tensor, k: Tensor) -> Gradients:
    """Zeros."""
    queries, keys = torch.zeros_like(q, dtype=wide(q)), torch.zeros_like(k, dtype=wide(k))
    return Gradients(queries, keys, keys.clone())


def gradients_of_part(
    grad_output: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    delta: Tensor,
    blocks: list[RowBlock],
    scale: float,
    dropout: Dropout,
) -> Gradients:
    """Through the keys of blocks, with `lse` and `delta [heads, rows]` those of all keys."""
    result = no_gradients(q, k)
    for whole in blocks:
        for block in pieces(whole, q.shape[1]):
            weights = (scores_of(q, k, block, scale) - lse[:, block.query : block.query_end, None]).exp()
            of_rows = delta[:, block.query : block.query_end, None]
            _add_gradients(result, grad_output, q, k, v, block, weights, of_rows, scale, dropout)
    return result


def _add_gradients(
    result: Gradients,
    grad_output: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block: RowBlock,
    weights: Tensor,
    delta: Tensor | None,
    scale: float,
    dropout: Dropout,
) -> None:
    """Of one block's weights; without delta those are a whole softmax, and it is made here."""
    rows, keys = slice(block.query, block.query_end), slice(block.key, block.key_end)
    grad, values = _heads_first(grad_output, *block[:2]), _heads_first(v, *block[2:])
    factors = kept(block, q.shape[1], dropout, q)
    slopes = grad @ values.mT
    if factors is not None:
        slopes = slopes * factors
    result.v[keys] += ((weights if factors is None else weights * factors).mT @ grad).transpose(0, 1)
    if delta is None:
        delta = (weights * slopes).sum(2, keepdim=True)
    slopes = weights * (slopes - delta) * scale
    result.q[rows] += (slopes @ _heads_first(k, *block[2:])).transpose(0, 1)
    result.k[keys] += (slopes.mT @ _heads_first(q, *block[:2])).transpose(0, 1)


def attend_by_document(
    q: Tensor, k: Tensor, v: Tensor, blocks: list[RowBlock], shares: Tensor, scale: float, dropout: Dropout
) -> Tensor:
    """Of blocks by document, a softmax for each document, each times the `shares [rows]` of the query."""
    output = torch.zeros_like(q, dtype=wide(q))
    for block in blocks:
        for piece, weights in _of_documents(q, k, block, scale):
            factors = kept(piece, q.shape[1], dropout, q)
            part = (weights if factors is None else weights * factors) @ _heads_first(v, *piece[2:])
            output[piece.query : piece.query_end] += part.transpose(0, 1)
    return output * shares[:, None, None]


def _of_documents(q: Tensor, k: Tensor, block: RowBlock, scale: float) -> Iterator[tuple[RowBlock, Tensor]]:
    """Pieces with whole documents, and their softmax."""
    rows = max(1, SCORES // (q.shape[1] * (block.key_end - block.key)))
    for row in range(block.query, block.query_end, rows):
        piece = block._replace(query=row, query_end=min(row + rows, block.query_end))
        yield piece, scores_of(q, k, piece, scale).softmax(2)


def gradients_by_document(
    grad_output: Tensor, q: Tensor, k: Tensor, v: Tensor, blocks: list[RowBlock], scale: float, dropout: Dropout
) -> Gradients:
    """Through the same, `grad_output` being times the shares already."""
    result = no_gradients(q, k)
    for block in blocks:
        for piece, weights in _of_documents(q, k, block, scale):
            _add_gradients(result, grad_output, q, k, v, piece, weights, None, scale, dropout)
    return result
