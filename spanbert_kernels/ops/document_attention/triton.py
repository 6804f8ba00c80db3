"""Attention in Triton: which kernels a call launches, and how.

A static table chooses by the longest document, where that is known: short documents that see themselves alone keep a
whole row of scores on chip, everything else goes through its keys in a loop. Kernels of the loop serve any work, those
of cross_document_attention, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import triton
from torch import Tensor

from spanbert_kernels.ops import library, philox
from spanbert_kernels.ops.aot import AotConfiguration
from spanbert_kernels.ops.attention.operators import (
    document_attention_backward,
    document_attention_forward,
    new_lse,
)
from spanbert_kernels.ops.attention.work import TILE_ROWS, AttentionWork
from spanbert_kernels.ops.document_attention.triton_backward import query_backward
from spanbert_kernels.ops.document_attention.triton_forward import attention_forward
from spanbert_kernels.ops.document_attention.triton_kernels import key_backward, whole_backward

INTERPRETED = library.interpreted()
Options = dict[str, Any]

# By the columns of a program: rows of the longest document, of a block of queries, and warps.
WHOLE_FORWARD = {64: ((32, 32, 2), (64, 64, 4), (128, 64, 4)), 128: ((64, 64, 4), (128, 64, 8))}
WHOLE_BACKWARD = {64: ((32, 32, 2), (64, 32, 4), (128, 16, 8)), 128: ((64, 64, 8),)}
# Blocks of the loops, by the bits of an element, the columns of a program, and whether a head has more than these:
# queries, keys, warps and stages.
Loops = dict[tuple[int, int, bool], tuple[int, int, int, int]]
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
    (32, 64, False): (16, 64, 8, 1),
    (32, 32, True): (16, 32, 8, 1),
}
# Scores have to be rounded as in the other two: the same columns at once, too few rows for another kind of product.
QUERY_SUMS: Loops = {**QUERY_BACKWARD, (32, 32, True): (16, 16, 8, 1)}
KEY_BACKWARD: Loops = {
    (16, 64, False): (32, 32, 4, 2),
    (16, 128, False): (32, 32, 8, 1),
    (16, 128, True): (32, 32, 8, 1),
    (32, 64, False): (32, 16, 8, 1),
    (32, 32, True): (32, 16, 8, 1),
}
# Where slots are looked up as well, registers of four warps would spill.
KEY_BACKWARD_OF_PAIRS: Loops = {**KEY_BACKWARD, (16, 64, False): (32, 32, 8, 2)}
WIDEST = 128  # columns of a head that a program may hold
ANCHOR_ROWS = 16  # of a block whose one row is an anchor: the fewest that a product takes


def columns_of(q: Tensor, shapes: Iterable[tuple[int, bool]]) -> tuple[int, bool]:
    """The columns of a program, of these, and whether heads have more: the fewest that hold all, if any do."""
    if INTERPRETED:
        return min(WIDEST, max(16, triton.next_power_of_2(q.shape[2]))), q.shape[2] > WIDEST
    ordered = sorted(shapes, key=lambda shape: (shape[1], shape[0]))
    return next((columns, chunked) for columns, chunked in ordered if chunked or q.shape[2] <= columns)


def precision_of(dtype: torch.dtype) -> str:
    return "ieee" if INTERPRETED else "bf16x6" if dtype == torch.float32 else "tf32"


def loop_options(q: Tensor, loops: Loops, *, anchor_queries: bool = False, anchor_keys: bool = False) -> Options:
    """Constants and launch options of a kernel with a loop; the anchors are those of its tiles."""
    bits = 8 * q.element_size()
    columns, chunked = columns_of(q, ((width, chunked) for of_bits, width, chunked in loops if of_bits == bits))
    if INTERPRETED:  # where a step costs the same for any size of block
        queries, keys, launch = TILE_ROWS, TILE_ROWS, {}
    else:
        queries, keys, warps, stages = loops[bits, columns, chunked]
        launch = {"num_warps": warps, "num_stages": stages}
    short = bits == 16 and not chunked  # others have few rows in a block anyway
    return {
        "CHUNKED": chunked,
        "Q": ANCHOR_ROWS if anchor_queries and short else queries,
        "K": ANCHOR_ROWS if anchor_keys and short else keys,
        "C": columns,
        "PRECISION": precision_of(q.dtype),
        **launch,
    }


def whole_options(q: Tensor, work: AttentionWork, table: dict[int, tuple[tuple[int, int, int], ...]]) -> Options | None:
    """The same of a kernel that has the whole row of a document's scores on chip, or None for a loop."""
    columns, chunked = columns_of(q, [*((columns, False) for columns in table), (0, True)])
    if work.clustered or work.most_keys == 0 or chunked:
        return None
    if INTERPRETED:
        longest = max(16, triton.next_power_of_2(work.most_keys))
        block = min(longest, TILE_ROWS)
        return None if longest > 128 else {"Q": block, "K": longest, "C": columns, "PRECISION": "ieee"}
    if q.dtype == torch.float32:
        return None
    for longest, block, warps in table[columns]:
        if work.most_keys <= longest:
            launch = {"num_warps": warps, "num_stages": 1}
            return {"Q": block, "K": longest, "C": columns, "PRECISION": precision_of(q.dtype), **launch}
    return None


def dense(tensor: Tensor) -> Tensor:
    """The tensor itself where its last dimension is dense (the other strides are free), else a copy."""
    return tensor if tensor.shape[-1] <= 1 or tensor.stride(-1) == 1 else tensor.contiguous()


def strided(**tensors: Tensor) -> Options:
    """Tensors `[rows, heads, head_dim]` with a dense last dimension, and their row and head strides, by name."""
    arguments: Options = {}
    for name, tensor in tensors.items():
        kept = dense(tensor)
        short = name.removesuffix("_output")
        arguments |= {name: kept, f"{short}_stride": kept.stride(0), f"{short}_head_stride": kept.stride(1)}
    return arguments


def new_rows(like: Tensor, anchors: bool) -> Tensor:
    """For results: of anchors zeros, as no kernel comes to the row of an empty document."""
    return like.new_zeros(like.shape) if anchors else like.new_empty(like.shape)


def shared_arguments(q: Tensor, work: AttentionWork, dropout_p: float, seed: Tensor | None) -> Options:
    return {
        "work": work.documents,
        "seed": seed,
        "query_rows": q.shape[0],
        "documents": work.documents.shape[1],
        "heads": q.shape[1],
        "head_dim": q.shape[2],
        "threshold": philox.threshold(dropout_p),
        "kept_share": 1.0 - dropout_p,
    }


def tiled(q: Tensor, tiles: Tensor | None, anchors: bool, block: int, columns: int) -> tuple[Options, tuple[int, int]]:
    """The tiles of one side, how many blocks each has, and the grid."""
    assert tiles is not None
    parts = 1 if anchors else triton.cdiv(TILE_ROWS, block)
    return {"tiles": tiles, "parts": parts}, (len(tiles) * parts * q.shape[1], triton.cdiv(q.shape[2], columns))


def towards_keys(work: AttentionWork) -> Options:
    """Where a query finds its keys."""
    return {
        "link_offsets": work.link_offsets,
        "links": work.links,
        "anchors": work.documents[2:] if work.anchor_keys else None,
        "include_self": int(work.include_self),
    }


def towards_queries(work: AttentionWork) -> Options:
    """Where a key finds the queries that see it."""
    return {
        "link_offsets": work.back_offsets,
        "links": work.back_links,
        "anchors": work.documents if work.anchor_queries else None,
        "include_self": int(work.include_self),
    }


@document_attention_forward.triton
def forward(
    q: Tensor, k: Tensor, v: Tensor, work: AttentionWork, scale: float, dropout: philox.Dropout
) -> tuple[Tensor, Tensor]:
    dropout_p, seed = dropout
    output, lse = new_rows(q, work.anchor_queries), new_lse(q)
    if work.anchor_queries:
        lse.fill_(-torch.inf)
    if output.numel() == 0:
        return output, lse
    whole = whole_options(q, work, WHOLE_FORWARD)
    if whole is None:
        loops = FORWARD if seed is None else FORWARD_WITH_DROPOUT
        options = {"WHOLE": False, **loop_options(q, loops, anchor_queries=work.anchor_queries)}
    else:
        options = {"WHOLE": True, "CHUNKED": False, **whole}
    one_block = work.anchor_queries or whole is not None
    tiles, grid = tiled(q, work.query_tiles, one_block, options["Q"], options["C"])
    with torch.cuda.device_of(q):
        attention_forward[grid](
            **strided(q=q, k=k, v=v),
            output=output,
            lse=lse,
            **shared_arguments(q, work, dropout_p, seed),
            **towards_keys(work),
            **tiles,
            scale=scale,
            **options,
        )
    return output, lse


@document_attention_backward.triton
def backward(
    grad_output: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    lse: Tensor,
    work: AttentionWork,
    scale: float,
    dropout: philox.Dropout,
) -> tuple[Tensor, Tensor, Tensor]:
    dropout_p, seed = dropout
    grad_q, grad_k, grad_v = (
        new_rows(tensor, anchors)
        for tensor, anchors in ((q, work.anchor_queries), (k, work.anchor_keys), (v, work.anchor_keys))
    )
    if q.numel() == 0 or k.numel() == 0:
        return grad_q.zero_(), grad_k.zero_(), grad_v.zero_()
    shared = {
        **strided(grad_output=grad_output, q=q, k=k, v=v),
        "lse": lse,
        **shared_arguments(q, work, dropout_p, seed),
        "scale": scale,
    }
    with torch.cuda.device_of(q):
        options = whole_options(q, work, WHOLE_BACKWARD)
        if options is not None:
            assert work.query_tiles is not None
            whole_backward[(len(work.query_tiles) * q.shape[1],)](
                **shared, grad_q=grad_q, grad_k=grad_k, grad_v=grad_v, tiles=work.query_tiles, **options
            )
            return grad_q, grad_k, grad_v
        delta, share = (torch.empty_like(lse) for _ in range(2))
        for sums, loops in ((True, QUERY_SUMS), (False, QUERY_BACKWARD)):
            options = loop_options(q, loops, anchor_queries=work.anchor_queries)
            tiles, (programs, parts) = tiled(q, work.query_tiles, work.anchor_queries, options["Q"], options["C"])
            query_backward[programs, 1 if sums else parts](
                **shared, delta=delta, share=share, grad_q=grad_q, **towards_keys(work), **tiles, **options, SUMS=sums
            )
        options = loop_options(q, KEY_BACKWARD, anchor_keys=work.anchor_keys)
        tiles, grid = tiled(q, work.key_tiles, work.anchor_keys, options["K"], options["C"])
        key_backward[grid](
            **shared,
            delta=delta,
            share=share,
            grad_k=grad_k,
            grad_v=grad_v,
            slots=None,
            size=q.shape[0],
            **towards_queries(work),
            **tiles,
            **options,
        )
    return grad_q, grad_k, grad_v


# Triton's types of the arguments.
POINTERS = {
    "work": "i64",
    "link_offsets": "i64",
    "links": "i64",
    "anchors": "i64",
    "slots": "i64",
    "seed": "i64",
    "tiles": "i32",
}
POINTERS |= dict.fromkeys(("lse", "delta", "share", "weights"), "fp32")
NUMBERS = {"scale": "fp32", "kept_share": "fp32", "threshold": "i64"}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
ROWS = ("q", "k", "v", "output", "grad_output", "grad_q", "grad_k", "grad_v")


def aot(name: str, kernel: Any, dtype: str, options: Options) -> AotConfiguration:
    """With every tensor that a call may have, and rows that are multiples of 16."""
    constants = dict(options)
    launch = {key: constants.pop(key) for key in ("num_warps", "num_stages")}
    whole = constants.get("WHOLE", False)
    if whole:
        constants |= dict.fromkeys(("link_offsets", "links", "anchors"))

    def kind(argument: str) -> str:
        if argument in constants:
            return "constexpr"
        if argument in POINTERS:
            return f"*{POINTERS[argument]}"
        return f"*{dtype}" if argument in ROWS else NUMBERS.get(argument, "i32")

    signature = {argument: kind(argument) for argument in kernel.arg_names}
    divisible = tuple(name for name in signature if name.endswith("stride") or name == "head_dim")
    blocks = " x ".join(str(constants[letter]) for letter in "QKC")
    kinds = "".join(f" {kind.lower()}" for kind in ("WHOLE", "CHUNKED") if constants.get(kind))
    return AotConfiguration(
        f"{name} {dtype} {blocks}{kinds}", kernel, signature, constants, **launch, divisible=divisible
    )


def aot_loops(
    name: str, kernel: Any, loops: Loops, side: str = "", *, linked: Iterable[str] = (" of links",), **constants: Any
) -> list[AotConfiguration]:
    """A kernel with a loop in all shapes that `loop_options` chooses, `side` naming the anchors of its tiles.

    With links it has another loop than without, so there are both, and with a softmax for each pair slots, too.
    """
    pointers = [name for name in ("link_offsets", "links", "slots") if name in kernel.arg_names]
    absent = {"": pointers, " of links": [name for name in pointers if name == "slots"], " of linked pairs": []}
    found = {}
    for bits, columns, chunked in loops:
        dtype = {16: "bf16", 32: "fp32"}[bits]
        q = torch.empty(1, 1, WIDEST + 1 if chunked else columns, dtype=DTYPES[dtype], device="meta")
        for anchors in ({}, {side: True}) if side else ({},):
            for links in ("", *linked):
                options = {**constants, **dict.fromkeys(absent[links]), **loop_options(q, loops, **anchors)}
                one = aot(f"{name}{links}", kernel, dtype, options)
                found[one.name] = one
    return [*found.values()]


def aot_whole(name: str, kernel: Any, table: Any, constants: Options) -> list[AotConfiguration]:
    constants = {**constants, "PRECISION": "tf32", "num_stages": 1}
    return [
        aot(name, kernel, "bf16", {**constants, "Q": block, "K": longest, "C": columns, "num_warps": warps})
        for columns, rows in table.items()
        for longest, block, warps in rows
    ]


def aot_configurations() -> list[AotConfiguration]:
    """Every class of configuration that a launch can choose, with all that its kernel may be given."""
    own = {shape: options for shape, options in FORWARD.items() if options != FORWARD_WITH_DROPOUT[shape]}
    return [
        *aot_whole("forward", attention_forward, WHOLE_FORWARD, {"WHOLE": True, "CHUNKED": False}),
        *aot_loops("forward", attention_forward, FORWARD_WITH_DROPOUT, "anchor_queries", WHOLE=False),
        *aot_loops("forward without dropout", attention_forward, own, "anchor_queries", WHOLE=False, seed=None),
        *aot_whole("whole backward", whole_backward, WHOLE_BACKWARD, {}),
        *aot_loops("query sums", query_backward, QUERY_SUMS, "anchor_queries", SUMS=True),
        *aot_loops("query backward", query_backward, QUERY_BACKWARD, "anchor_queries", SUMS=False),
        *aot_loops("key backward", key_backward, KEY_BACKWARD, "anchor_keys"),
    ]
