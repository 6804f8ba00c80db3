"""Who attends to whom, as the raw operators of attention take it: bounds, links, tiles for a GPU."""

from __future__ import annotations

import importlib
from typing import NamedTuple

import torch
from torch import Tensor

from spanbert_kernels.ops.backends import refusal
from spanbert_kernels.ops.checks import constant_in_graphs
from spanbert_kernels.ops.operators import raw

TILE_ROWS = 64
MOST_DOCUMENTS = 2**13  # whose lists one kernel makes: it compares each document with each
Links = tuple[Tensor | None, Tensor | None]


class TileCounts(NamedTuple):
    """How many tiles there are, where the host knows how long documents are, else -1: lists have room for more.

    Attributes:
        tiles: all.
        tiles_over_64, tiles_over_128: those of documents of more than so many rows, which are the first ones.
        pairs_over_128: of these documents the pieces of up to two tiles.
    """

    tiles: int = -1
    tiles_over_64: int = -1
    tiles_over_128: int = -1
    pairs_over_128: int = -1

    @classmethod
    def of(cls, lengths: Tensor) -> TileCounts:
        """Of documents so long, `[D]` on a CPU.

        Example:
            >>> TileCounts.of(torch.tensor([0, 64, 65, 129, 300]))
            TileCounts(tiles=11, tiles_over_64=10, tiles_over_128=8, pairs_over_128=5)
        """
        tiles = (lengths.clamp(min=0) + TILE_ROWS - 1) // TILE_ROWS
        longer = tiles[tiles > 2]
        found = (tiles, tiles[tiles > 1], longer, (longer + 1) // 2)
        return cls(*(int(each.sum()) for each in found))


UNCOUNTED = TileCounts()


class AttentionWork(NamedTuple):
    """Who attends to whom, in the form that raw operators take.

    Attributes:
        documents: int64 `[6, D]`: first query row of each document and the one after its last, the same of the key
            rows, first document of its cluster and the one after the last. A side of anchors has row d for document d,
            and no row (first = last = d) where the document is empty: such rows lie between those of the cluster and
            are passed over. The query rows that see a document are those of its cluster, or linked to it, too.
        link_offsets, links: int64 `[D + 1]` and `[links]`, the documents that each one sees, ascending; -1 stands for
            a link to be passed over. Absent: the whole cluster, its own document only with `include_self`.
        back_offsets, back_links: the same the other way round, the documents that see each one.
        query_tiles, key_tiles: int32 `[tiles, 2]`, for kernels on a GPU: pieces of up to TILE_ROWS rows of one document
            as (document, first row counted from the document's), longest documents first; (-1, 0) is no piece.
        max_seqlen: tokens of the longest document, 0 where that is not known, negative where a caller says so and
            nobody could look.
        tiles, tiles_over_64, tiles_over_128, pairs_over_128: `TileCounts`, those of a side of tokens.
        include_self: a document sees itself as well; links have that in them already.
        anchor_queries, anchor_keys: the side is one of anchors.
        clustered: there are clusters; else each document sees itself alone.
    """

    documents: Tensor
    link_offsets: Tensor | None
    links: Tensor | None
    back_offsets: Tensor | None
    back_links: Tensor | None
    query_tiles: Tensor | None
    key_tiles: Tensor | None
    max_seqlen: int
    tiles: int
    tiles_over_64: int
    tiles_over_128: int
    pairs_over_128: int
    include_self: bool
    anchor_queries: bool
    anchor_keys: bool
    clustered: bool

    def of_tiles(self, some: slice) -> AttentionWork:
        """The same of some of the tiles, where both sides have the same ones."""
        if some == slice(None):
            return self
        assert self.query_tiles is not None
        tiles = self.query_tiles[some]
        return self._replace(query_tiles=tiles, key_tiles=tiles)


def make_work(
    cu_seqlens: Tensor,
    cu_clusters: Tensor | None,
    queries: str,
    keys: str,
    include_self: bool,
    links: tuple[Tensor, Tensor] | None,
    num_tokens: int,
    max_seqlen: int,
    tiled: bool,
    counts: TileCounts = UNCOUNTED,
) -> AttentionWork:
    """Nothing here waits for a GPU. `max_seqlen` is 0 where it is not known."""
    anchors = (queries == "anchors", keys == "anchors")
    arguments = (cu_seqlens, cu_clusters, num_tokens, *anchors)
    query_tiles: Tensor | None
    key_tiles: Tensor | None
    if tiled and in_one_launch(cu_seqlens):
        documents, query_tiles, key_tiles = attention_lists("triton", *arguments)
        key_tiles = query_tiles if anchors[0] == anchors[1] else key_tiles
    else:
        documents = bounds_of_documents(*arguments)
        query_tiles, key_tiles = tiles_of_documents(documents, num_tokens, *anchors) if tiled else (None, None)
    return work_of_documents(
        documents,
        (query_tiles, key_tiles),
        anchors,
        include_self,
        links,
        max_seqlen,
        counts,
        clustered=cu_clusters is not None,
    )


def work_of_documents(
    documents: Tensor,
    tiles: tuple[Tensor | None, Tensor | None],
    anchors: tuple[bool, bool],
    include_self: bool,
    links: tuple[Tensor, Tensor] | None,
    max_seqlen: int = 0,
    counts: TileCounts = UNCOUNTED,
    *,
    clustered: bool = True,
) -> AttentionWork:
    """The work of AttentionWork's documents and tiles, of queries and of keys, that somebody has made."""
    forth: Links = (None, None)
    back: Links = (None, None)
    if links is not None:
        forth, back = _sorted_links(links, documents[4], documents[5], include_self)
    return AttentionWork(documents, *forth, *back, *tiles, max_seqlen, *counts, include_self, *anchors, clustered)


def in_one_launch(cu_seqlens: Tensor) -> bool:
    """Whether one kernel makes the lists."""
    return cu_seqlens.device.type == "cuda" and cu_seqlens.shape[0] <= MOST_DOCUMENTS and _has_kernel()


@constant_in_graphs
def _has_kernel() -> bool:
    if refusal("triton", "cuda", torch.float32) is not None:
        return False
    importlib.import_module("spanbert_kernels.ops.attention.triton_lists")
    return True


@raw(("triton",))
def attention_lists(
    cu_seqlens: Tensor, cu_clusters: Tensor | None, num_tokens: int, anchor_queries: bool, anchor_keys: bool
) -> tuple[Tensor, Tensor, Tensor]:
    # AttentionWork's documents, query_tiles and key_tiles, by `bounds_of_documents` and `tiles_of_documents`; the last
    # are empty where both sides are of one kind, whose tiles are the same.
    return new_lists(cu_seqlens, num_tokens, anchor_queries, anchor_keys)


def new_lists(
    cu_seqlens: Tensor, num_tokens: int, anchor_queries: bool, anchor_keys: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for what `attention_lists` makes."""
    count = cu_seqlens.shape[0] - 1
    queries, keys = (most_tiles(count, 0 if anchors else num_tokens) for anchors in (anchor_queries, anchor_keys))
    keys = 0 if anchor_queries == anchor_keys else keys
    query_tiles, key_tiles = (cu_seqlens.new_empty(size, 2, dtype=torch.int32) for size in (queries, keys))
    return cu_seqlens.new_empty(6, count, dtype=torch.int64), query_tiles, key_tiles


def most_tiles(documents: int, rows: int) -> int:
    """As many as there can be, whatever the lengths."""
    return documents + rows // TILE_ROWS


def bounds_of_documents(
    cu_seqlens: Tensor, cu_clusters: Tensor | None, num_tokens: int, anchor_queries: bool, anchor_keys: bool
) -> Tensor:
    """AttentionWork's documents."""
    count = cu_seqlens.shape[0] - 1
    offsets = cu_seqlens.long()
    if not (anchor_queries and anchor_keys):
        # Offsets on a GPU are not checked: whatever they are, no row beyond T is read.
        offsets = offsets.clamp(0, num_tokens)
    begin, end = offsets[:-1], torch.maximum(offsets[:-1], offsets[1:])
    index = torch.arange(count, device=offsets.device)
    tokens, anchors = (begin, end), (index, index + (end > begin))
    first, last = index, index + 1
    if cu_clusters is not None:
        clusters = cu_clusters.long().clamp(0, count)
        cluster = torch.searchsorted(clusters[1:].contiguous(), index, right=True)
        cluster = cluster.clamp(max=max(len(clusters) - 2, 0))
        first, last = clusters[cluster], clusters[cluster + 1]
    sides = (anchors if is_anchors else tokens for is_anchors in (anchor_queries, anchor_keys))
    return torch.stack([*next(sides), *next(sides), first, last])


def tiles_between(documents: Tensor, query_rows: int, key_rows: int) -> tuple[Tensor, Tensor]:
    """AttentionWork's query_tiles and key_tiles where the sides have rows of their own; 0 rows for one of anchors."""
    return _tiles(documents[0], documents[1], query_rows), _tiles(documents[2], documents[3], key_rows)


def tiles_of_documents(
    documents: Tensor, num_tokens: int, anchor_queries: bool, anchor_keys: bool
) -> tuple[Tensor, Tensor]:
    """AttentionWork's query_tiles and key_tiles: the same tensor where both sides are of one kind."""
    query_tiles = _tiles(documents[0], documents[1], 0 if anchor_queries else num_tokens)
    if anchor_queries == anchor_keys:
        return query_tiles, query_tiles
    return query_tiles, _tiles(documents[2], documents[3], 0 if anchor_keys else num_tokens)


def _sorted_links(links: tuple[Tensor, Tensor], first: Tensor, last: Tensor, include_self: bool) -> tuple[Links, Links]:
    """Offsets and targets by query document and by key document; -1 for what is twice there or must not be seen."""
    count, (offsets, indices) = first.shape[0], (part.long() for part in links)
    # A link's query document; on a GPU nothing is known about the offsets, so they are looked up, not repeated.
    place = torch.arange(indices.shape[0], device=first.device)
    query = torch.searchsorted(offsets[1:].contiguous(), place, right=True).clamp(max=max(count - 1, 0))
    inside = (indices >= first[query]) & (indices < last[query])
    if not include_self:
        inside = inside & (indices != query)
    query, target = torch.where(inside, query, count), torch.where(inside, indices, count)

    def ordered(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        key = (rows * (count + 1) + columns).sort().values
        repeated = torch.cat([key.new_zeros(1, dtype=torch.bool), key[1:] == key[:-1]])[: key.shape[0]]
        row_offsets = torch.searchsorted(key, torch.arange(count + 1, device=key.device) * (count + 1))
        return row_offsets, torch.where(repeated, -1, key % (count + 1))

    return ordered(query, target), ordered(target, query)


class PairStatistics(NamedTuple):
    """Where a softmax for each pair of documents keeps its statistics, `[heads, size]`.

    Those of query row r and the document at place p of its cluster lie at `p * query rows + r`; with links those of
    link l at `slots[l] + r`, so that they are as many as linked rows.

    Attributes:
        slots, back_slots: int64 `[links]`, by the places in AttentionWork's links and back_links.
        size: statistics of a head.
    """

    slots: Tensor | None
    back_slots: Tensor | None
    size: int


def pair_statistics(work: AttentionWork, query_rows: int, places: int) -> PairStatistics:
    """`places`: documents of the largest cluster. Waits for a GPU where queries are tokens and there are links."""
    if work.links is None or work.link_offsets is None or work.back_links is None or work.back_offsets is None:
        return PairStatistics(None, None, places * query_rows)
    first, last = work.documents[:2]
    documents, count = first.shape[0], work.links.shape[0]
    link = torch.arange(count, device=first.device)
    if documents == 0:
        return PairStatistics(link, link, 0)

    def owner(offsets: Tensor) -> Tensor:
        return torch.searchsorted(offsets[1:].contiguous(), link, right=True).clamp(max=documents - 1)

    query = owner(work.link_offsets)
    if work.anchor_queries:
        slots, size = link - query, count
    else:
        rows = (last - first)[query]
        end = rows.cumsum(0)
        slots, size = end - rows - first[query], int(end[-1]) if count else 0
    # A link's number from its documents: what is twice there counts as its first, and the lists ascend.
    forth = (query * (documents + 1) + work.links).cummax(0).values if count else link
    pair = work.back_links * (documents + 1) + owner(work.back_offsets)
    return PairStatistics(slots, slots[torch.searchsorted(forth, pair).clamp(max=max(count - 1, 0))], size)


def _tiles(begin: Tensor, end: Tensor, rows: int) -> Tensor:
    """Pieces of TILE_ROWS rows, int32 `[tiles, 2]`."""
    most = most_tiles(begin.shape[0], rows)
    order = (end - begin).argsort(descending=True, stable=True)
    pieces = ((end - begin)[order] + TILE_ROWS - 1) // TILE_ROWS
    after = pieces.cumsum(0)  # [D]: tiles of this document and all before it
    tile = torch.arange(most, device=begin.device)
    place = torch.searchsorted(after, tile, right=True)
    real = place < begin.shape[0]
    place = torch.where(real, place, 0)
    piece = tile - (after - pieces)[place] if begin.shape[0] else tile
    document = order[place] if begin.shape[0] else tile
    return torch.stack([torch.where(real, document, -1), torch.where(real, piece * TILE_ROWS, 0)], 1).int()
