"""How attention's kernels in Triton are launched: blocks and options from static tables, arguments from the work."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
import triton
from torch import Tensor

from spanbert_kernels.ops import library, philox
from spanbert_kernels.ops.aot import DTYPES, meta
from spanbert_kernels.ops.attention.triton_tiles import AttentionTiling, Mask, Rows, Terms
from spanbert_kernels.ops.attention.work import TILE_ROWS, UNCOUNTED, AttentionWork
from spanbert_kernels.ops.repeats import start
from spanbert_kernels.ops.triton_arguments import Options, dense_rows, on

INTERPRETED = library.interpreted()
# From 3.9 on Triton has the assembler give out registers in an older way (--regAllocOptLevel=2): where a kernel takes
# all, some are spilled, so blocks are smaller.
SHORT_OF_REGISTERS = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 9)
# Blocks of a loop, by the bits of an element, the columns of a program, and whether a head has more than these:
# queries, keys, warps and stages.
Loops = dict[tuple[int, int, bool], tuple[int, int, int, int]]
WIDEST = 128  # columns of a head that a program may hold
EXACT_WARPS = 8
MOST_REGISTERS = 255  # of a thread, where the compilers of some GPUs take fewer by themselves, and spill
FARTHEST = 2**24  # elements from a row to the next
RESULTS = ("output", "grad_q", "grad_k", "grad_v")  # `[rows, heads, head_dim]`
ANCHOR_ROWS = 16  # of a block whose one row is an anchor: the fewest that a product takes


def columns_of(q: Tensor, shapes: Iterable[tuple[int, bool]]) -> tuple[int, bool]:
    """The columns of a program, of these, and whether heads have more: the fewest that hold all, if any do."""
    if INTERPRETED:
        return min(WIDEST, max(16, triton.next_power_of_2(q.shape[2]))), q.shape[2] > WIDEST
    ordered = sorted(shapes, key=lambda shape: (shape[1], shape[0]))
    return next((columns, chunked) for columns, chunked in ordered if chunked or q.shape[2] <= columns)


@functools.cache
def options_of(
    dtype: torch.dtype, sizes: tuple[int, int, int], warps: int, stages: int, chunked: bool, whole: bool
) -> Options:
    """Options made once, for launches to be short: rows of queries and of keys, columns, and the rest of a tiling."""
    precision = "ieee" if INTERPRETED else "bf16x6" if dtype == torch.float32 else "tf32"
    return Options(AttentionTiling(*sizes, precision, chunked, whole, INTERPRETED), warps, stages)


def loop_options(q: Tensor, loops: Loops, *, anchor_queries: bool = False, anchor_keys: bool = False) -> Options:
    """Block and launch options of a kernel with a loop; the anchors are those of its tiles."""
    bits = 8 * q.element_size()
    columns, chunked = columns_of(q, ((width, chunked) for of_bits, width, chunked in loops if of_bits == bits))
    # A step costs the interpreter the same for any size of block.
    sizes = (TILE_ROWS, TILE_ROWS, 4, 1) if INTERPRETED else loops[bits, columns, chunked]
    queries, keys, warps, stages = sizes
    short = bits == 16 and not chunked  # others have few rows in a block anyway
    queries = ANCHOR_ROWS if anchor_queries and short else queries
    keys = ANCHOR_ROWS if anchor_keys and short else keys
    return options_of(q.dtype, (queries, keys, columns), warps, stages, chunked, whole=False)


def rows_of(**tensors: Tensor) -> dict[str, Any]:
    """Tensors `[rows, heads, head_dim]` for a kernel, by name; rows so far apart that those of a block do not fit into
    32 bits are copied.
    """
    near = {name: tensor if tensor.stride(0) < FARTHEST else tensor.contiguous() for name, tensor in tensors.items()}
    dense = {name: dense_rows(tensor) for name, tensor in near.items()}
    return {name: Rows(tensor, tensor.stride(0), tensor.stride(1)) for name, tensor in dense.items()}


def new_rows(like: Tensor, anchors: bool) -> Tensor:
    """For results: of anchors zeros, as no kernel comes to the row of an empty document."""
    return like.new_zeros(like.shape) if anchors else like.new_empty(like.shape)


def new_gradients(q: Tensor, k: Tensor, v: Tensor, work: AttentionWork) -> tuple[Tensor, Tensor, Tensor]:
    """For those of q, k and v; zeros where one side is empty."""
    sides = ((q, work.anchor_queries), (k, work.anchor_keys), (v, work.anchor_keys))
    empty = q.numel() == 0 or k.numel() == 0
    grad_q, grad_k, grad_v = (new_rows(tensor, anchors or empty) for tensor, anchors in sides)
    return grad_q, grad_k, grad_v


def mask_of(work: AttentionWork, *, keys: bool, slots: Tensor | None) -> Mask:
    """Where queries find the keys that they see, or keys the queries that see them."""
    if keys:
        tiles, links, anchors = work.key_tiles, (work.back_offsets, work.back_links), work.anchor_queries
    else:
        tiles, links, anchors = work.query_tiles, (work.link_offsets, work.links), work.anchor_keys
    assert tiles is not None
    bounds = work.documents if keys else work.documents[2:]
    return Mask(work.documents, tiles, *links, slots, bounds if anchors else None)


def parts_of(work: AttentionWork, options: Options, keys: bool) -> int:
    """The blocks of a tile; of a block of several tiles each has one, all but the first without rows."""
    anchors, rows = (work.anchor_keys, options.block.N) if keys else (work.anchor_queries, options.block.M)
    return 1 if anchors or options.block.WHOLE else triton.cdiv(TILE_ROWS, rows)


def programs_of(q: Tensor, work: AttentionWork, options: Options, keys: bool) -> int:
    """One for each block of queries, or of keys, and each head."""
    tiles = work.key_tiles if keys else work.query_tiles
    assert tiles is not None
    return len(tiles) * parts_of(work, options, keys) * q.shape[1]


def launch(
    kernel: Any,
    q: Tensor,
    work: AttentionWork,
    options: Options,
    /,
    *,
    keys: bool = False,
    slots: Tensor | None = None,
    by_document: bool = False,
    all_columns: bool = True,
    **arguments: Any,
) -> None:
    """Launch a kernel for the tiles of the queries, or of the keys, and all heads.

    `by_document`: it finds no row of an empty document, as it takes one document after the other; `all_columns`: it has
    a result for each column of a head.
    """
    mask, block = mask_of(work, keys=keys, slots=slots), options.block
    if by_document:
        mask = mask._replace(anchors=None)
    parts = parts_of(work, options, keys)
    results = [(name, arguments[name]) for name in RESULTS if name in arguments]
    arguments |= {name: Rows(tensor, tensor.stride(0), tensor.stride(1)) for name, tensor in results}
    with on(q.device):
        start(kernel, programs_of(q, work, options, keys), triton.cdiv(q.shape[2], block.D) if all_columns else 1)(
            **arguments,
            mask=mask,
            query_rows=q.shape[0],
            num_documents=work.documents.shape[1],
            heads=q.shape[1],
            head_dim=q.shape[2],
            parts=parts,
            include_self=int(work.include_self),
            **options.arguments,
        )


@functools.cache
def options_with_words(options: Options) -> Options:
    """The same, for the forward to leave the backward what dropout keeps."""
    assert options.block.N == TILE_ROWS, options
    return replace(options, block=options.block._replace(WORDS=True))


@functools.cache
def options_over(options: Options, rows: int) -> Options:
    """The same for documents of more than so many rows."""
    return replace(options, block=options.block._replace(OVER=rows))


@functools.cache
def exact_options(options: Options, keys: bool) -> Options:
    """Of the same rows to a program, and few of the other side; what is added row by row wants registers."""
    block = options.block
    registers: int | None = MOST_REGISTERS
    if block.PRECISION == "bf16x6":
        block = block._replace(N=min(block.N, 32)) if SHORT_OF_REGISTERS and not keys else block
    else:
        registers = None if keys else MOST_REGISTERS  # for keys GPUs of 8.0 spill with all of them
        if block.D < WIDEST or block.CHUNKED:
            block = block._replace(M=min(block.M, 16)) if keys else block._replace(N=min(block.N, 16))
    return Options(block, EXACT_WARPS, maxnreg=registers)


def launch_windowed(
    kernel: Any,
    q: Tensor,
    work: AttentionWork,
    options: Options,
    /,
    *,
    terms: Terms,
    keys: bool = False,
    **arguments: Any,
) -> None:
    """Launch a kernel and, with a window, once more: EXACT, for the programs that found something not finite."""
    if terms.window is None:
        launch(kernel, q, work, options, **arguments, terms=terms, keys=keys, again=None, EXACT=False)
        return
    columns = triton.cdiv(q.shape[2], options.block.D)
    rows = options.block.N if keys else options.block.M
    again = q.new_empty(programs_of(q, work, options, keys) * columns, rows, dtype=torch.int8)
    for each, is_exact in ((options, False), (exact_options(options, keys), True)):
        launch(kernel, q, work, each, **arguments, terms=terms, keys=keys, again=again, EXACT=is_exact)


def meta_work(queries: str, keys: str, *, links: bool = False, max_seqlen: int = 0) -> AttentionWork:
    """Work without values, of documents alone where the longest is known, for `configurations_of`."""
    lists: list[Any] = [meta(count, dtype=torch.int64) if links else None for count in (1001, 5000, 1001, 5000)]
    tiles: list[Any] = [meta(2000, 2, dtype=torch.int32) for _ in range(2)]
    rest: tuple[Any, ...] = (max_seqlen, *UNCOUNTED, False, queries == "anchors", keys == "anchors", max_seqlen == 0)
    return AttentionWork._make((meta(6, 1000, dtype=torch.int64), *lists, *tiles, *rest))


def meta_queries(dtype: str, columns: int) -> Tensor:
    return meta(2000, 12, columns, dtype=DTYPES[dtype])


def meta_calls() -> Iterator[tuple[str, Tensor, AttentionWork]]:
    """Queries of every width that blocks differ for, with each pair of roles, with and without links.

    What pairs compile alike is named after the first, so `tests/aot` leaves the last two to its slow tests.
    """
    pairs = (("tokens", "anchors"), ("anchors", "tokens"), ("tokens", "tokens"), ("anchors", "anchors"))
    for dtype, widths in (("bf16", (64, 128, 256)), ("fp32", (64, 256))):
        for columns, (queries, keys), links in itertools.product(widths, pairs, (False, True)):
            name = f"{dtype} {columns}, {queries} to {keys}{', links' * links}"
            yield name, meta_queries(dtype, columns), meta_work(queries, keys, links=links)


def meta_dropout(dropout_p: float = 0.1) -> philox.Dropout:
    return philox.Dropout(dropout_p, meta(1, dtype=torch.int64))
