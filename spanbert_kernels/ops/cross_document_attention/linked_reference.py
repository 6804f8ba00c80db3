"""What cross_document_attention means between few linked documents: pair by pair, nothing of size rows x rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from spanbert_kernels.ops import philox
from spanbert_kernels.ops.documents import document_of
from spanbert_kernels.ops.span_gather.reference import rows


class LinkedRows(NamedTuple):
    """Pairs of a query row and a key row, those of a query row together, and of these those of a document.

    Attributes:
        slots: `[rows]`, how many documents each query row sees.
        keys_of_slot: `[slots]`, how many key rows each of them has.
        slot: `[pairs]`, which of the slots a pair is of.
        query, key: `[pairs]`, rows.
        place: `[pairs]`, the place of the key's document in its cluster.
    """

    slots: Tensor
    keys_of_slot: Tensor
    slot: Tensor
    query: Tensor
    key: Tensor
    place: Tensor


def runs(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Of the elements of runs side by side, the run and the place in it.

    Example:
        >>> [part.tolist() for part in runs(torch.tensor([2, 0, 1]))]
        [[0, 0, 2], [0, 1, 0]]
    """
    run = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    return run, torch.arange(len(run), device=lengths.device) - (lengths.cumsum(0) - lengths)[run]


def documents_seen(
    links: tuple[Tensor, Tensor], cu_seqlens: Tensor, cu_clusters: Tensor, include_self: bool
) -> tuple[Tensor, Tensor]:
    """Links that count, each once, as query documents, ascending, and the documents that they see."""
    documents = len(cu_seqlens) - 1
    indptr, target = links[0].long(), links[1].long()
    query = torch.repeat_interleave(torch.arange(documents, device=target.device), indptr.diff())
    both = torch.unique(query * documents + target)
    query, target = both // documents, both % documents
    cluster = document_of(cu_clusters, documents)
    filled = cu_seqlens.diff() > 0
    counts = (cluster[query] == cluster[target]) & filled[query] & filled[target] & (include_self | (query != target))
    return query[counts], target[counts]


def linked_rows(
    links: tuple[Tensor, Tensor],
    cu_seqlens: Tensor,
    cu_clusters: Tensor,
    queries: str,
    keys: str,
    include_self: bool,
    count: int,
    most: int,
) -> LinkedRows | None:
    """The pairs of rows that the links of `count` query rows make; None where these are more than `most`."""
    documents = len(cu_seqlens) - 1
    seeing, seen = documents_seen(links, cu_seqlens, cu_clusters, include_self)
    index = torch.arange(documents, device=seen.device)
    lengths = cu_seqlens.diff().long()
    ones = torch.ones_like(lengths)
    query_rows, key_rows = (lengths if side == "tokens" else ones for side in (queries, keys))
    if int((query_rows[seeing] * key_rows[seen]).sum()) > most:
        return None
    links_of = torch.bincount(seeing, minlength=documents)
    owner = document_of(cu_seqlens, count) if queries == "tokens" else index
    slots = links_of[owner]
    row_of_slot, place = runs(slots)
    target = seen[(links_of.cumsum(0) - links_of)[owner][row_of_slot] + place]
    slot, offset = runs(key_rows[target])
    first_key = cu_seqlens[:-1].long() if keys == "tokens" else index
    first_document = cu_clusters[:-1].long()[document_of(cu_clusters, documents)]
    key = first_key[target][slot] + offset
    return LinkedRows(slots, key_rows[target], slot, row_of_slot[slot], key, (target - first_document[target])[slot])


def rows_of(heads: Tensor, row: Tensor) -> Tensor:
    """`heads[row]` of `[R, heads, d]`, with a gradient whose sums have one order."""
    return rows(heads.flatten(1), row).unflatten(1, heads.shape[1:])


def summed(values: Tensor, lengths: Tensor) -> Tensor:
    """Sums of runs of rows, `[rows, ...]` -> `[runs, ...]`, in order: without atomics on a GPU too."""
    if not len(values):
        return values.sum(0, keepdim=True).expand(len(lengths), *values.shape[1:])
    return torch.segment_reduce(values, "sum", lengths=lengths, axis=0, initial=0, unsafe=True)


def linked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pairs: LinkedRows,
    normalize: str,
    scale: float,
    dropout_p: float,
    seed: Tensor | None,
    largest: int | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """-> output like q, lse `[heads, rows]` (-inf where each pair of documents has a softmax of its own), and where
    `largest`, the documents of the largest cluster, is given, document weights `[rows, heads, largest]`.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    slots, keys_of_slot, slot, query, key, place = pairs
    scores = (rows_of(q.to(dtype), query) * rows_of(k.to(dtype), key)).sum(2) * scale  # [pairs, heads]
    lengths = torch.bincount(query, minlength=q.shape[0]) if normalize == "joint" else keys_of_slot
    group = query if normalize == "joint" else slot
    peak = scores.new_full((len(lengths), q.shape[1]), -torch.inf)
    peak = peak.scatter_reduce(0, group[:, None].expand_as(scores), scores.detach(), "amax")
    powers = (scores - peak[group]).exp()
    mass = summed(powers, lengths)  # [groups, heads]
    weights = powers / rows(mass, group)
    if normalize == "joint":
        lse = (peak + mass.log()).detach().T
    else:
        weights = weights / slots[query][:, None]
        lse = scores.new_full((q.shape[1], q.shape[0]), -torch.inf)
    share = None
    if largest is not None:
        share = torch.zeros(q.shape[0], largest, q.shape[1], dtype=dtype, device=q.device)
        share = share.index_put((query, place), weights.detach(), accumulate=True).transpose(1, 2).float()
    if dropout_p > 0.0:
        assert seed is not None
        heads = torch.arange(q.shape[1], device=q.device)
        keep = philox.keep(seed, dropout_p, heads, query[:, None], key[:, None])
        weights = weights * (keep.to(dtype) / (1.0 - dropout_p))
    terms = weights[:, :, None] * rows_of(v.to(dtype), key)
    return summed(terms, torch.bincount(query, minlength=q.shape[0])).to(q.dtype), lse, share
