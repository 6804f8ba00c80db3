"""Softmax attention over any work in Triton: which kernels a call launches.

A static table chooses by the longest document, where that is known: short documents that see themselves alone keep a
whole row of scores on chip, everything else goes through its keys in a loop.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from spanbert_kernels.ops.attention import triton_launch
from spanbert_kernels.ops.attention.operators import (
    document_attention_backward,
    document_attention_forward,
    document_attention_qkv_backward,
    document_attention_words_backward,
    document_attention_words_forward,
    new_lse,
    new_words,
    parts_of,
)
from spanbert_kernels.ops.attention.triton_anchors import is_between_anchors, launch_anchors
from spanbert_kernels.ops.attention.triton_anchors_backward import launch_anchors_backward
from spanbert_kernels.ops.attention.triton_backward import key_backward, query_backward
from spanbert_kernels.ops.attention.triton_forward import attention_forward
from spanbert_kernels.ops.attention.triton_launch import (
    MOST_REGISTERS,
    SHORT_OF_REGISTERS,
    Loops,
    launch,
    launch_windowed,
    loop_options,
    options_over,
    options_with_words,
    rows_of,
)
from spanbert_kernels.ops.attention.triton_online import online_query_backward
from spanbert_kernels.ops.attention.triton_tiles import NO_TERMS, Statistics, Terms
from spanbert_kernels.ops.attention.triton_whole_backward import whole_backward
from spanbert_kernels.ops.attention.work import TILE_ROWS, AttentionWork
from spanbert_kernels.ops.philox import Dropout
from spanbert_kernels.ops.triton_arguments import Options, Philox, philox_of, with_registers


class BackwardLoops(NamedTuple):
    """Blocks of the backward's kernels: `query_backward` with SUMS and without, and `key_backward`."""

    sums: Loops
    queries: Loops
    keys: Loops


class OnlineLoops(NamedTuple):
    """Blocks of `online_query_backward`, and of `key_backward` behind it."""

    queries: Loops
    keys: Loops


WARP_GROUPS = ContextVar("whether what is no GPU stands for one that has products of warp groups", default=True)
FEW_PROGRAMS = 256  # that are not worth a launch
# By the columns of a program: rows of the longest document, of a block of queries, and warps.
Wholes = dict[int, tuple[tuple[int, int, int], ...]]
WHOLE_FORWARD: Wholes = {64: ((32, 32, 2), (64, 64, 4), (128, 64, 4)), 128: ((64, 64, 4), (128, 64, 8))}
# Where others are longer: the loop of those takes documents of up to 128 as well.
WHOLE_FORWARD_OF_FEW: Wholes = {64: ((64, 64, 4),), 128: ((64, 64, 4),)}
WHOLE_BACKWARD: Wholes = {64: ((32, 32, 2), (64, 64, 4), (128, 128, 8)), 128: ((64, 64, 8),)}
# With dropout, or before the products of warp groups, there are no registers for all rows of a long document at once.
WHOLE_BACKWARD_IN_PARTS: Wholes = {**WHOLE_BACKWARD, 64: ((32, 32, 2), (64, 64, 4), (128, 32, 8))}
FORWARD: Loops = {
    (16, 64, False): (64, 64, 4, 2),
    (16, 128, False): (32, 32, 8, 1),
    (16, 128, True): (64, 32, 8, 1),
    (32, 64, False): (16, 32, 8, 1),
    (32, 32, True): (16, 32, 8, 1),
}
FORWARD_WITH_DROPOUT: Loops = {**FORWARD, (16, 64, False): (64, 32, 8, 1)}
QUERY_BACKWARD: Loops = {
    (16, 64, False): (32, 32, 4, 2),
    (16, 128, False): (32, 64, 8, 1),
    (16, 128, True): (32, 64, 8, 1),
    (32, 64, False): (16, 32 if SHORT_OF_REGISTERS else 64, 8, 1),
    (32, 32, True): (16, 32, 8, 1),
}
# Scores have to be rounded as in the other two: the same columns at once, too few rows for another kind of product.
QUERY_SUMS: Loops = {
    **QUERY_BACKWARD,
    (16, 128, False): (32, 32 if SHORT_OF_REGISTERS else 64, 8, 1),
    (32, 32, True): (16, 16, 8, 1),
}
KEY_BACKWARD: Loops = {
    (16, 64, False): (32, 32, 4, 2),
    (16, 128, False): (32, 32, 8, 1),
    (16, 128, True): (32, 32, 8, 1),
    (32, 64, False): (32, 16, 8, 1),
    (32, 32, True): (32, 16, 8, 1),
}
BACKWARD = BackwardLoops(QUERY_SUMS, QUERY_BACKWARD, KEY_BACKWARD)
# With links there are fewer registers: in float32 blocks have fewer queries, or programs a part of a head's columns.
LINKED = BackwardLoops(*({k: v for k, v in loops.items() if k != (32, 64, False)} for loops in BACKWARD))
FEWER_QUERIES: Loops = {**KEY_BACKWARD, (32, 64, False): (16, 16, 8, 1)}
LINKED_BACKWARD = LINKED if SHORT_OF_REGISTERS else BACKWARD._replace(keys=FEWER_QUERIES)
# Between the tokens of clusters: with anchors or links the registers are too few for as many rows.
SMALL = (16, 64, False)
FORWARD_OF_TOKENS: Loops = {**FORWARD, SMALL: (128, 64, 4, 2)}
FORWARD_OF_TOKENS_WITH_DROPOUT: Loops = {**FORWARD, SMALL: (64, 64, 4, 1)}
ONLINE = OnlineLoops({SMALL: (64, 64, 4, 2)}, {SMALL: (64, 64, 4, 2)})
ONLINE_IN_PAIRS = OnlineLoops({SMALL: (128, 64, 8, 2)}, {SMALL: (64, 128, 8, 1)})
ONLINE_WITHOUT_WARP_GROUPS = OnlineLoops({SMALL: (128, 32, 8, 2)}, {SMALL: (32, 128, 8, 1)})
ONLINE_WITH_DROPOUT = OnlineLoops({SMALL: (64, 32, 4, 2)}, {SMALL: (32, 64, 4, 1)})
# With words of the forward, for 64 keys in a block.
ONLINE_WITH_WORDS = OnlineLoops({SMALL: (64, 64, 4, 2)}, {SMALL: (64, 64, 4, 2)})
ONLINE_WITH_WORDS_WITHOUT_WARP_GROUPS = ONLINE_WITH_WORDS._replace(keys={SMALL: (32, 64, 4, 1)})


def whole_options(q: Tensor, work: AttentionWork, table: Wholes) -> tuple[Options, ...]:
    """Of kernels that have the whole row of a document's scores on chip, shortest first; none for a loop."""
    columns, chunked = triton_launch.columns_of(q, [*((columns, False) for columns in table), (0, True)])
    if work.clustered or chunked:
        return ()
    if triton_launch.INTERPRETED:
        longest = max(16, triton.next_power_of_2(work.max_seqlen))
        rows: tuple[tuple[int, int, int], ...] = ((longest, min(longest, TILE_ROWS), 4),) if longest <= 128 else ()
    else:
        rows = () if q.dtype == torch.float32 else table[columns]
    return tuple(
        triton_launch.options_of(q.dtype, (queries, longest, columns), warps, 1, chunked=False, whole=True)
        for longest, queries, warps in rows
    )


class Shares(NamedTuple):
    """Which kernel takes which tiles.

    Attributes:
        wholes: kernels with whole rows of scores and their work.
        loops: the work of kernels with a loop, if any is left.
    """

    wholes: tuple[tuple[Options, AttentionWork], ...]
    loops: AttentionWork | None


def shares_of(q: Tensor, work: AttentionWork, table: Wholes) -> Shares:
    """By the longest document, where all are short; else by how many tiles there are of documents how long.

    Tiles are longest documents first. A run of them begins at an even place, as compilers make kernels for that alone;
    a kernel with whole rows passes over a document that is longer.
    """
    options = () if work.max_seqlen <= 0 else whole_options(q, work, table)
    if not options:
        return Shares((), work)
    fitting = next((each for each in options if work.max_seqlen <= each.block.N), None)
    if triton_launch.INTERPRETED or work.tiles < 0 or (fitting is not None and fitting is not options[-1]):
        return Shares((), work) if fitting is None else Shares(((fitting, work),), None)
    longer = {64: work.tiles_over_64, 128: work.tiles_over_128}
    wholes, end = [], work.tiles
    for each in options:
        begin = longer.get(each.block.N, end)
        if (end - begin) * q.shape[1] > FEW_PROGRAMS or begin == 0:
            wholes.append((each, work.of_tiles(slice(begin // 2 * 2, end))))
            end = begin
    return Shares(tuple(wholes), work.of_tiles(slice(0, end)) if end else None)


def rows_said(q: Tensor, work: AttentionWork, dropout: Dropout) -> int:
    """The most rows of a kernel with whole rows of scores that a caller says all documents fit into, where nobody could
    look: it is launched beside loops for those that are longer all the same. Else 0.
    """
    longest = -work.max_seqlen
    if longest <= 0 or triton_launch.INTERPRETED or dropout.seed is not None or not is_online(q, work):
        return 0
    if not has_warp_groups(q.device):
        return 0
    return next((each.block.N for each in whole_options(q, work, WHOLE_BACKWARD) if longest <= each.block.N), 0)


def is_uneven(work: AttentionWork) -> bool:
    """Whether a tenth of blocks of two tiles would be empty, or might be, of documents of more than two."""
    return work.tiles < 0 or 20 * work.pairs_over_128 > 11 * work.tiles_over_128


class PhiloxWithWords(NamedTuple):
    """Philox, and the words that the forward leaves the backward."""

    seed: Tensor
    threshold: int
    keep_prob: float
    words: Tensor


def philox_with(dropout: Dropout, words: Tensor | None) -> Philox | PhiloxWithWords | None:
    """Dropout for a kernel, None without a seed."""
    philox = philox_of(dropout)
    return philox if philox is None or words is None else PhiloxWithWords(*philox, words)


def has_warp_groups(device: torch.device) -> bool:
    """Whether the GPU has products of warp groups; what is no GPU stands for one that has, by default."""
    if device.type != "cuda":
        return WARP_GROUPS.get()
    return (9, 0) <= torch.cuda.get_device_capability(device) < (12, 0)


def launch_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    work: AttentionWork,
    terms: Terms,
    scale: float,
    dropout: Dropout,
    shares: Iterable[tuple[Options, AttentionWork]],
    words: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of queries that are not empty, by kernels for shares of the work."""
    output, lse = triton_launch.new_rows(q, work.anchor_queries), new_lse(q)
    if work.anchor_queries:
        lse.fill_(-torch.inf)
    results: dict[str, Any] = {"output": output, "lse": lse, "dropout": philox_with(dropout, words), "scale": scale}
    results |= rows_of(q=q, k=k, v=v)
    for options, share in shares:
        launch_windowed(attention_forward, q, share, options, **results, terms=terms)
    return output, lse


def launch_backward(
    grads: tuple[Tensor, Tensor, Tensor],
    like: Tensor,
    work: AttentionWork,
    loops: BackwardLoops,
    statistics: Statistics,
    **arguments: Any,
) -> None:
    """Fill the gradients of q, which is `like` that, k and v, and the statistics; the rest is the kernels'."""
    grad_q, grad_k, grad_v = grads
    arguments["statistics"] = statistics
    options = loop_options(like, loops.sums, anchor_queries=work.anchor_queries)
    launch(
        query_backward, like, work, options, **arguments, grad_q=grad_q, again=None, SUMS=True, EXACT=False,
        all_columns=False,
    )  # fmt: skip
    options = loop_options(like, loops.queries, anchor_queries=work.anchor_queries)
    launch_windowed(query_backward, like, work, options, **arguments, grad_q=grad_q, SUMS=False)
    options = loop_options(like, loops.keys, anchor_keys=work.anchor_keys)
    if arguments["terms"].index is not None:
        options = with_registers(options, MOST_REGISTERS)
    arguments |= {"grad_k": grad_k, "grad_v": grad_v, "size": like.shape[0]}
    launch_windowed(key_backward, like, work, options, **arguments, keys=True)


def is_between_tokens(work: AttentionWork) -> bool:
    """Of whole clusters."""
    return not (work.anchor_queries or work.anchor_keys or work.links is not None)


def is_online(q: Tensor, work: AttentionWork) -> bool:
    """Whether there are blocks for the queries' gradient to be made in one way through the keys."""
    bits, widest, _ = SMALL
    return is_between_tokens(work) and 8 * q.element_size() == bits and q.shape[2] <= widest


def online_options(q: Tensor, work: AttentionWork, dropout: Philox | PhiloxWithWords | None) -> tuple[Options, Options]:
    """Of `online_query_backward` and of `key_backward` behind it."""
    loops = ONLINE_WITH_DROPOUT
    if isinstance(dropout, PhiloxWithWords):
        loops = ONLINE_WITH_WORDS if has_warp_groups(q.device) else ONLINE_WITH_WORDS_WITHOUT_WARP_GROUPS
    elif dropout is None:
        loops = ONLINE_IN_PAIRS if work.clustered or not is_uneven(work) else ONLINE
        loops = loops if has_warp_groups(q.device) else ONLINE_WITHOUT_WARP_GROUPS
    options = (loop_options(q, each) for each in loops)
    of_queries, of_keys = map(options_with_words, options) if isinstance(dropout, PhiloxWithWords) else options
    return of_queries, of_keys


def launch_online(
    grads: tuple[Tensor, Tensor, Tensor],
    like: Tensor,
    work: AttentionWork,
    lse: Tensor,
    over: int = 0,
    **arguments: Any,
) -> None:
    """Fill the gradients of q, which is `like` that, k and v, of documents of more than so many rows; the rest is the
    kernels'.
    """
    grad_q, grad_k, grad_v = grads
    of_queries, of_keys = online_options(like, work, arguments["dropout"])
    if over:
        of_queries, of_keys = options_over(of_queries, over), options_over(of_keys, over)
    pairs = lse.new_empty(*lse.shape, 2)
    launch(online_query_backward, like, work, of_queries, **arguments, lse=lse, statistics=pairs, grad_q=grad_q)
    arguments |= {"grad_k": grad_k, "grad_v": grad_v, "terms": NO_TERMS, "again": None, "EXACT": False}
    arguments["statistics"] = Statistics(pairs, None, None)
    launch(key_backward, like, work, of_keys, **arguments, keys=True, size=like.shape[0])


@document_attention_forward.triton
def forward(
    q: Tensor, k: Tensor, v: Tensor, work: AttentionWork, scale: float, dropout: Dropout
) -> tuple[Tensor, Tensor]:
    if q.numel() == 0:
        return triton_launch.new_rows(q, work.anchor_queries), new_lse(q).fill_(-torch.inf)
    if is_between_anchors(work):
        return launch_anchors(q, k, v, work, scale, dropout)
    if is_between_tokens(work):
        loops = FORWARD_OF_TOKENS if dropout.seed is None else FORWARD_OF_TOKENS_WITH_DROPOUT
    else:
        loops = FORWARD if dropout.seed is None else FORWARD_WITH_DROPOUT
    shares = shares_of(q, work, WHOLE_FORWARD if work.max_seqlen <= 128 else WHOLE_FORWARD_OF_FEW)
    launches = list(shares.wholes)
    if shares.loops is not None:
        launches.append((loop_options(q, loops, anchor_queries=work.anchor_queries), shares.loops))
    return launch_forward(q, k, v, work, NO_TERMS, scale, dropout, launches)


@document_attention_words_forward.triton
def words_forward(
    q: Tensor, k: Tensor, v: Tensor, work: AttentionWork, scale: float, dropout: Dropout
) -> tuple[Tensor, Tensor, Tensor]:
    words = new_words(q, work)
    shares = [(options_with_words(loop_options(q, FORWARD_OF_TOKENS_WITH_DROPOUT)), work)]
    return *launch_forward(q, k, v, work, NO_TERMS, scale, dropout, shares, words), words


@document_attention_backward.triton
def backward(
    grad_output: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    work: AttentionWork,
    scale: float,
    dropout: Dropout,
) -> tuple[Tensor, Tensor, Tensor]:
    if is_between_anchors(work) and q.numel():
        return launch_anchors_backward(grad_output, q, k, v, lse, work, scale, philox_of(dropout))
    grads = triton_launch.new_gradients(q, k, v, work)
    if q.numel() and k.numel():
        fill_gradients(grads, grad_output, q, k, v, lse, work, scale, dropout)
    return grads


@document_attention_qkv_backward.triton
def qkv_backward(
    grad_output: Tensor,
    qkv: Tensor,
    lse: Tensor,
    words: Tensor | None,
    work: AttentionWork,
    scale: float,
    dropout: Dropout,
) -> Tensor:
    gradient = qkv.new_empty(qkv.shape)
    if qkv.numel():
        fill_gradients(parts_of(gradient), grad_output, *parts_of(qkv), lse, work, scale, dropout, words)
    return gradient


@document_attention_words_backward.triton
def words_backward(
    grad_output: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    words: Tensor,
    work: AttentionWork,
    scale: float,
    dropout: Dropout,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = triton_launch.new_gradients(q, k, v, work)
    fill_gradients(grads, grad_output, q, k, v, lse, work, scale, dropout, words)
    return grads


def fill_gradients(
    grads: tuple[Tensor, Tensor, Tensor],
    grad_output: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    work: AttentionWork,
    scale: float,
    dropout: Dropout,
    words: Tensor | None = None,
) -> None:
    """Of q, k and v, where neither side is empty; with the words that the forward left, if it did."""
    grad_q, grad_k, grad_v = grads
    shared: dict[str, Any] = {"dropout": philox_with(dropout, words), "scale": scale}
    shared |= rows_of(grad_output=grad_output, q=q, k=k, v=v)
    if words is not None:
        launch_online(grads, q, work, lse, **shared)
        return
    at_once = dropout.seed is None and has_warp_groups(q.device)
    over = rows_said(q, work, dropout)
    known = work._replace(max_seqlen=over) if over else work
    wholes, loops = shares_of(q, known, WHOLE_BACKWARD if at_once else WHOLE_BACKWARD_IN_PARTS)
    loops = work if over else loops
    for options, share in wholes:
        launch(whole_backward, q, share, options, **shared, lse=lse, grad_q=grad_q, grad_k=grad_k, grad_v=grad_v)
    if loops is None:
        return
    work = loops
    if is_online(q, work):
        launch_online(grads, q, work, lse, over, **shared)
        return
    statistics = Statistics(lse, torch.empty_like(lse), torch.empty_like(lse))
    launch_backward(
        grads, q, work, BACKWARD if work.links is None else LINKED_BACKWARD, statistics, **shared, terms=NO_TERMS
    )
