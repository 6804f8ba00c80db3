"""Span pooling in Triton: which kernels a call launches, and how."""

from __future__ import annotations

import functools
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from spanbert_kernels.ops import library
from spanbert_kernels.ops.aot import DTYPES, AotConfiguration, configurations_of, meta, meta_spans
from spanbert_kernels.ops.choices import PARTS
from spanbert_kernels.ops.plans import SpanWork
from spanbert_kernels.ops.repeats import start
from spanbert_kernels.ops.span_pool.operators import (
    PoolInputs,
    kept_tensors,
    output_size,
    span_pool_backward,
    span_pool_forward,
)
from spanbert_kernels.ops.span_pool.triton_backward import (
    Softmax,
    attention_backward,
    attention_delta,
    linear_backward,
    max_backward,
    table_backward,
)
from spanbert_kernels.ops.span_pool.triton_forward import Outputs, PartColumns, Table, banded_forward, walk_forward
from spanbert_kernels.ops.triton_arguments import Options, Spans, Tiling, contiguous, matrix, on, spans_of

INTERPRETED = library.interpreted()
PROGRAMS = 132 * 64  # enough to fill a large GPU a few times over
REGISTERS = 168  # of a thread with all parts' gradients: GPUs of 12.0 get 128 for it otherwise, which do not hold it
TABLE_SHARE = 4096  # spans whose gradients one program sums for one row of the width table


class Lanes(NamedTuple):
    """How a program of `walk_forward` goes: LANES spans at a time, UNROLL tokens of each, D columns."""

    LANES: int
    UNROLL: int
    D: int


# A step costs the interpreter the same for any size of block, so it gets large ones.
@functools.cache
def product_options(dtype: torch.dtype, part: str) -> Options:
    """Of the matrix products forward, with M spans: of the `linear` parts, or of `attention`.

    A block of more columns finds the bounds of its spans for more of them; the attention's weights take its registers.
    """
    if INTERPRETED:
        return Options(Tiling(M=128, K=128, D=128, PRECISION="ieee", INTERPRETED=True))
    if dtype == torch.float32:
        return Options(Tiling(M=64, K=32, D=32, PRECISION="bf16x6"), num_warps=8, num_stages=2)
    if part == "linear":
        return Options(Tiling(M=64, K=32, D=128, PRECISION="tf32"), num_warps=8, num_stages=3)
    return Options(Tiling(M=64, K=32, D=64, PRECISION="tf32"), num_warps=4, num_stages=3)


@functools.cache
def backward_options(dtype: torch.dtype, part: str, alone: bool = False) -> Options:
    """The same backward, with M tokens: it keeps a block of sums beside the products, that of attention two.

    `alone`: of the linear parts there is one, which leaves registers for more columns.
    """
    options = product_options(dtype, "attention")
    if part == "linear" and dtype == torch.float32:
        return replace(options, num_warps=4)
    if part == "linear" and alone and not INTERPRETED:
        return replace(options, block=options.block._replace(D=128), num_warps=4)
    return replace(options, num_warps=8, maxnreg=REGISTERS if part == "linear" else None)


@functools.cache
def walk_options(enumerated: bool) -> Options:
    if INTERPRETED:
        return Options(Lanes(LANES=64, UNROLL=1, D=256))
    return Options(Lanes(LANES=1, UNROLL=1 if enumerated else 4, D=256), num_warps=1)


@functools.cache
def max_options() -> Options:
    return Options(Tiling(M=64, K=64, D=128) if INTERPRETED else Tiling(M=16, K=1, D=128), num_warps=1)


@functools.cache
def table_options() -> Options:
    return Options(Tiling(M=1, K=1024 if INTERPRETED else 64, D=32), num_warps=4)


def columns_of(hidden: Tensor, inputs: PoolInputs) -> PartColumns:
    """The first output column of each part."""
    columns: dict[str, int | None] = dict.fromkeys(PartColumns._fields)
    total, size = 0, hidden.shape[1]
    for name in (PARTS[part] for part in inputs.parts):
        columns[name] = total
        if name == "width":
            total += 0 if inputs.width_embedding is None else inputs.width_embedding.shape[1]
        else:
            total += size * (inputs.scores.shape[1] if name == "attention" and inputs.scores is not None else 1)
    return PartColumns(**columns)


def banded(num_spans: int, num_tokens: int, max_width: int) -> bool:
    """Whether a tile of sorted spans shares enough of its window for a product to beat following every span."""
    return 8 * num_spans >= num_tokens and not 0 < max_width <= 4


@span_pool_forward.triton
def forward(hidden: Tensor, work: SpanWork, inputs: PoolInputs, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    (tokens, columns), num_spans = hidden.shape, work.num_spans
    scores, table = inputs.scores, inputs.width_embedding
    output = hidden.new_empty(num_spans, output_size(hidden, inputs))
    argmax, lse = kept_tensors(hidden, work, inputs, keep)
    if tokens == 0:
        return output.zero_(), argmax.zero_(), lse.zero_()
    if output.numel() == 0:
        return output, argmax, lse.zero_()

    at, heads = columns_of(hidden, inputs), 1 if scores is None else scores.shape[1]
    enumerated, spans = work.cu_seqlens is not None, spans_of(work)
    arguments = {
        "hidden": matrix(hidden),
        "spans": spans if enumerated else Spans(*spans[:3], None, None),
        "scores": contiguous(scores),
        "table": None if table is None else Table(table.contiguous(), contiguous(inputs.width_index)),
        "results": Outputs(output, output.shape[1], argmax if argmax.numel() else None, lse if lse.numel() else None),
        "tokens": tokens,
        "num_spans": num_spans,
        "columns": columns,
        "table_rows": 0 if table is None else table.shape[0],
        "table_columns": 0 if table is None else table.shape[1],
    }
    with on(hidden.device):
        if not enumerated and at.max is None and banded(num_spans, tokens, work.max_width):
            _banded_forward(arguments, at, heads)
            return output, argmax, lse
        options = walk_options(enumerated)
        blocks = max(1, triton.cdiv(columns, options.block.D)) * heads
        items, most = (tokens, 8) if enumerated else (num_spans, 16)
        share = 4 if INTERPRETED else min(most, max(1, items * blocks // PROGRAMS))
        start(walk_forward, triton.cdiv(items, share * options.block.LANES) * blocks)(
            **arguments, at=at, heads=heads, share=share, **options.arguments
        )
    return output, argmax, lse


def _banded_forward(arguments: dict[str, Any], at: PartColumns, heads: int) -> None:
    """One product for the mean and the sum, one for the attention; the other parts go with the first."""
    nothing = PartColumns(*[None] * len(at))
    attention, rest = nothing._replace(attention=at.attention), at._replace(attention=None)
    if at.mean is None and at.sum is None and at.attention is not None:
        attention, rest = at, nothing
    for part, own, times in (("linear", rest, 1), ("attention", attention, heads)):
        if own == nothing:
            continue
        options = product_options(arguments["hidden"].data.dtype, part)
        programs = triton.cdiv(arguments["num_spans"], options.block.M)
        programs *= max(1, triton.cdiv(arguments["columns"], options.block.D)) * times
        start(banded_forward, programs)(**arguments, at=own, heads=times, **options.arguments)


@span_pool_backward.triton
def backward(
    grad_output: Tensor, hidden: Tensor, argmax: Tensor, lse: Tensor, work: SpanWork, inputs: PoolInputs
) -> tuple[Tensor, Tensor, Tensor]:
    (tokens, columns), scores, table = hidden.shape, inputs.scores, inputs.width_embedding
    grad_hidden = hidden.new_empty(hidden.shape)
    grad_scores = hidden.new_empty(0) if scores is None else scores.new_zeros(scores.shape)
    grad_table = hidden.new_empty(0) if table is None else table.new_zeros(table.shape)
    if work.num_spans == 0 or tokens == 0:
        return grad_hidden.zero_(), grad_scores, grad_table

    at = columns_of(hidden, inputs)
    linear = at._replace(max=None, attention=None, width=None)
    arguments = {
        "grad_output": matrix(grad_output),
        "spans": spans_of(work),
        "tokens": tokens,
        "num_spans": work.num_spans,
    }
    with on(hidden.device):
        if table is not None and at.width is not None and grad_table.numel():
            grad_table = _table_backward(arguments, table, inputs.width_index, at.width)
        stages = {
            "max": at.max is not None,
            "linear": any(column is not None for column in linear),
            "attention": at.attention is not None,
        }
        wanted = [name for name, there in stages.items() if there]
        if columns == 0 or not wanted:
            return grad_hidden.zero_(), grad_scores, grad_table

        # Each kind of part adds what came before it, in float32; the last one rounds.
        sums = hidden.new_empty(hidden.shape, dtype=torch.float32) if len(wanted) > 1 else None
        arguments["columns"] = columns
        for name in wanted:
            alone = sum(column is not None for column in linear) == 1
            options = max_options() if name == "max" else backward_options(hidden.dtype, name, alone)
            programs = triton.cdiv(tokens, options.block.M) * triton.cdiv(columns, options.block.D)
            target = {"grad_hidden": grad_hidden if name == wanted[-1] else sums, **options.arguments}
            others = None if name == wanted[0] else sums
            if name == "max":
                start(max_backward, programs)(**arguments, **target, argmax=argmax, max_column=at.max)
            elif name == "linear":
                start(linear_backward, programs)(**arguments, **target, others=others, at=linear)
            else:
                assert scores is not None
                dense, heads = scores.contiguous(), scores.shape[1]
                attention = {"hidden": matrix(hidden), "heads": heads, "attention_column": at.attention}
                delta = _attention_delta({**arguments, **attention}, dense, product_options(hidden.dtype, "attention"))
                partial_scores = dense.new_empty(triton.cdiv(columns, options.block.D), *dense.shape)
                start(attention_backward, programs)(
                    **arguments,
                    **attention,
                    **target,
                    softmax=Softmax(dense, lse, delta),
                    others=others,
                    partial_scores=partial_scores,
                )
                grad_scores = partial_scores.sum(0)
    return grad_hidden, grad_scores, grad_table


def _attention_delta(arguments: dict[str, Any], scores: Tensor, options: Options) -> Tensor:
    """The dot product of every span's gradient with what it pooled, not yet rounded, `[N, heads]`."""
    heads, num_spans = scores.shape[1], arguments["num_spans"]
    blocks = triton.cdiv(arguments["columns"], options.block.D)
    partial_delta = scores.new_empty(blocks, num_spans, heads)
    start(attention_delta, triton.cdiv(num_spans, options.block.M) * blocks * heads)(
        **arguments, scores=scores, partial_delta=partial_delta, **options.arguments
    )
    return partial_delta.sum(0)


def _table_backward(arguments: dict[str, Any], table: Tensor, index: Tensor | None, width_column: int) -> Tensor:
    """In two stages of a fixed order: shares of the spans, then the sum of the shares."""
    table_rows, table_columns = table.shape
    shares = triton.cdiv(arguments["num_spans"], TABLE_SHARE)
    partial_table = table.new_empty(shares, table_rows, table_columns, dtype=torch.float32)
    start(table_backward, shares * table_rows * triton.cdiv(table_columns, table_options().block.D))(
        **arguments,
        table_index=contiguous(index),
        partial_table=partial_table,
        share=TABLE_SHARE,
        table_rows=table_rows,
        table_columns=table_columns,
        width_column=width_column,
        **table_options().arguments,
    )
    return partial_table.sum(0).to(table.dtype)


def aot_configurations() -> list[AotConfiguration]:
    """What calls compile whose rows are multiples of 16 columns, each kernel with the parts that need the most."""
    spans, few, enumeration = meta_spans(1000, 2000), meta_spans(100, 2000), meta_spans(1000, 2000, enumerated=True)

    def inputs_of(dtype: torch.dtype, *parts: str) -> PoolInputs:
        table, rows = meta(8, 32, dtype=dtype), meta(1000, dtype=torch.int64)
        return PoolInputs(meta(2000, 3), table, rows, [PARTS.index(part) for part in parts])

    calls: dict[str, Any] = {}
    for name, dtype in list(DTYPES.items())[:2]:
        hidden, all_parts = meta(2000, 1024, dtype=dtype), inputs_of(dtype, *PARTS)
        sums = inputs_of(dtype, "start", "end", "mean", "sum", "width")
        attention = inputs_of(dtype, "start", "end", "attention", "width")
        output = hidden.new_empty(1000, output_size(hidden, all_parts))
        calls[f"sums of {name}"] = partial(forward, hidden, spans, sums, True)
        calls[f"attention of {name}"] = partial(forward, hidden, spans, attention, True)
        calls[f"enumeration of {name}"] = partial(forward, hidden, enumeration, all_parts, True)
        calls[f"few spans of {name}"] = partial(forward, hidden, few, all_parts, True)
        argmax, lse = kept_tensors(hidden, enumeration, all_parts, True)
        calls[f"gradient of {name}"] = partial(backward, output, hidden, argmax, lse, spans, all_parts)
        mean, nothing = inputs_of(dtype, "mean"), meta(0)
        gradient = hidden.new_empty(1000, 1024)
        calls[f"gradient of a mean of {name}"] = partial(backward, gradient, hidden, nothing, nothing, spans, mean)
    return configurations_of(calls)
