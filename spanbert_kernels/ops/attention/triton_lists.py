"""The lists of attention's kernels on a GPU, made by one kernel: bounds of documents, and their tiles longest first.

Each program has M documents and compares them with all, N at a time: the tiles of those that are longer, or as long
and earlier, come before its own. So a tile's place needs no sorting, and no program waits for another.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from spanbert_kernels.ops.aot import meta
from spanbert_kernels.ops.attention import work
from spanbert_kernels.ops.repeats import start
from spanbert_kernels.ops.triton_arguments import Options, on

TILE_ROWS = tl.constexpr(work.TILE_ROWS)
UNSPECIALIZED = ("num_documents", "num_clusters", "num_tokens", "num_tiles", "anchor_queries", "anchor_keys")
# More tiles than there can be: sums of lengths that are none, as nobody checks them, stop there.
ENDLESS = tl.constexpr(2**30)


class ListBlock(NamedTuple):
    """Documents of a program, and how many it compares them with at a time."""

    M: int
    N: int


OPTIONS = Options(ListBlock(16, 128))


class TileList(NamedTuple):
    """Tiles of one kind of side: int32 `[size, 2]`."""

    data: Tensor
    size: int


@triton.jit
def bounds_of(offsets, stride, document, there, num_tokens, CLAMPED: tl.constexpr):
    """The first token of documents and the one after the last."""
    begin = tl.load(offsets + document * stride, mask=there, other=0).to(tl.int64)
    end = tl.load(offsets + (document + 1) * stride, mask=there, other=0).to(tl.int64)
    if CLAMPED:
        begin = tl.minimum(tl.maximum(begin, 0), num_tokens)
        end = tl.minimum(tl.maximum(end, 0), num_tokens)
    return begin, tl.maximum(begin, end)


@triton.jit
def pieces_of(length):
    return length // TILE_ROWS + (length % TILE_ROWS > 0).to(tl.int32)


@triton.jit
def cluster_of(document, clusters, stride, num_documents, num_clusters, N: tl.constexpr):
    """The first document of each one's cluster, and the one after the last."""
    found = tl.zeros([document.shape[0], N], tl.int32)
    done = 0
    while done < num_clusters:
        number = done + tl.arange(0, N)
        end = tl.load(clusters + (number + 1) * stride, mask=number < num_clusters, other=num_documents)
        found += (end[None, :] <= document[:, None]).to(tl.int32)
        done += N
    cluster = tl.minimum(tl.sum(found, 1), tl.maximum(num_clusters - 1, 0))
    first = tl.load(clusters + cluster * stride).to(tl.int64)
    last = tl.load(clusters + (cluster + 1) * stride, mask=cluster < num_clusters, other=0).to(tl.int64)
    return tl.minimum(tl.maximum(first, 0), num_documents), tl.minimum(tl.maximum(last, 0), num_documents)


@triton.jit
def store_tile(tiles, place, document, row, there):
    there = there & (place < tiles.size)
    tl.store(tiles.data + 2 * place, document, mask=there)
    tl.store(tiles.data + 2 * place + 1, row, mask=there)


@triton.jit
def store_rest(tiles, done, M: tl.constexpr):
    """Behind the `done` tiles that there are: no piece. Each program writes a part."""
    begin = done + tl.program_id(0) * M
    while begin < tiles.size:
        place = begin + tl.arange(0, M)
        store_tile(tiles, place, place * 0 - 1, place * 0, place >= 0)
        begin += tl.num_programs(0) * M


@triton.jit
def store_bounds(target, document, num_documents, there, anchors, index, anchor_end, begin, end):
    """A side's, of anchors or of tokens."""
    tl.store(target + document, tl.where(anchors > 0, index, begin), mask=there)
    tl.store(target + num_documents + document, tl.where(anchors > 0, anchor_end, end), mask=there)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def document_lists(
    offsets,  # [documents + 1]
    offset_stride,
    clusters,  # [clusters + 1] or None
    cluster_stride,
    documents,  # [6, documents], as AttentionWork has them
    tiles,  # [num_tiles, 2], of a side of tokens, or None
    anchor_tiles,  # [documents, 2], of a side of anchors, or None
    num_documents,
    num_clusters,
    num_tokens,
    num_tiles,
    anchor_queries,
    anchor_keys,
    BLOCK,
):
    CLAMPED: tl.constexpr = tiles is not None
    document = tl.program_id(0) * BLOCK.M + tl.arange(0, BLOCK.M)
    there = document < num_documents
    begin, end = bounds_of(offsets, offset_stride, document, there, num_tokens, CLAMPED)
    length = (end - begin).to(tl.int32)

    index = document.to(tl.int64)
    anchor_end = index + (end > begin).to(tl.int64)
    store_bounds(documents, document, num_documents, there, anchor_queries, index, anchor_end, begin, end)
    keys = documents + 2 * num_documents
    store_bounds(keys, document, num_documents, there, anchor_keys, index, anchor_end, begin, end)
    first = index
    last = index + 1
    if clusters is not None:
        first, last = cluster_of(document, clusters, cluster_stride, num_documents, num_clusters, BLOCK.N)
    target = documents + 4 * num_documents + document
    tl.store(target, first, mask=there)
    tl.store(target + num_documents, last, mask=there)

    before = tl.zeros([BLOCK.M, BLOCK.N], tl.int32)
    total = tl.zeros([BLOCK.N], tl.int32)
    anchors_before = tl.zeros([BLOCK.M, BLOCK.N], tl.int32)
    anchors = tl.zeros([BLOCK.N], tl.int32)
    done = 0
    while done < num_documents:
        other = done + tl.arange(0, BLOCK.N)
        its_begin, its_end = bounds_of(offsets, offset_stride, other, other < num_documents, num_tokens, CLAMPED)
        earlier = other[None, :] < document[:, None]
        if tiles is not None:
            its_length = (its_end - its_begin).to(tl.int32)
            pieces = pieces_of(its_length)
            ahead = (its_length[None, :] > length[:, None]) | ((its_length[None, :] == length[:, None]) & earlier)
            before = tl.minimum(before + tl.where(ahead, pieces[None, :], 0), ENDLESS)
            total = tl.minimum(total + pieces, ENDLESS)
        if anchor_tiles is not None:
            anchor = (its_end > its_begin).to(tl.int32)
            anchors_before += tl.where(earlier, anchor[None, :], 0)
            anchors += anchor
        done += BLOCK.N

    if tiles is not None:
        own = TileList(tiles, num_tiles)
        place = tl.sum(before.to(tl.int64), 1)
        pieces = tl.where(there, pieces_of(length), 0)
        most = tl.max(pieces, 0)
        done = 0
        while done < most:
            piece = done + tl.arange(0, BLOCK.N)[None, :]
            row = place[:, None] * 0 + piece * TILE_ROWS
            store_tile(own, place[:, None] + piece, row * 0 + document[:, None], row, piece < pieces[:, None])
            done += BLOCK.N
        store_rest(own, tl.sum(total.to(tl.int64), 0), BLOCK.M)
    if anchor_tiles is not None:
        own = TileList(anchor_tiles, num_documents)
        store_tile(own, tl.sum(anchors_before, 1), document, document * 0, there & (end > begin))
        store_rest(own, tl.sum(anchors, 0), BLOCK.M)


@work.attention_lists.triton
def make_lists(
    cu_seqlens: Tensor, cu_clusters: Tensor | None, num_tokens: int, anchor_queries: bool, anchor_keys: bool
) -> tuple[Tensor, Tensor, Tensor]:
    documents, query_tiles, key_tiles = lists = work.new_lists(cu_seqlens, num_tokens, anchor_queries, anchor_keys)
    count = documents.shape[1]
    tiles = None if anchor_queries and anchor_keys else key_tiles if anchor_queries else query_tiles
    anchor_tiles = query_tiles if anchor_queries else key_tiles if anchor_keys else None
    with on(cu_seqlens.device):
        start(document_lists, max(1, triton.cdiv(count, OPTIONS.block.M)))(
            offsets=cu_seqlens,
            offset_stride=cu_seqlens.stride(0),
            clusters=cu_clusters,
            cluster_stride=0 if cu_clusters is None else cu_clusters.stride(0),
            documents=documents,
            tiles=tiles,
            anchor_tiles=anchor_tiles,
            num_documents=count,
            num_clusters=0 if cu_clusters is None else cu_clusters.shape[0] - 1,
            num_tokens=num_tokens,
            num_tiles=0 if tiles is None else tiles.shape[0],
            anchor_queries=int(anchor_queries),
            anchor_keys=int(anchor_keys),
            **OPTIONS.arguments,
        )
    return lists


def aot_calls() -> dict[str, Any]:
    """With everything, and for documents alone."""
    offsets, clusters = (meta(count, dtype=torch.int32) for count in (1001, 101))
    return {
        "lists": partial(make_lists, offsets, clusters, 2000, False, True),
        "lists, tokens to tokens": partial(make_lists, offsets, None, 2000, False, False),
    }
