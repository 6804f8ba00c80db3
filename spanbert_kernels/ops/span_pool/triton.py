"""Span pooling in Triton: which kernels a call launches, and how."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

from spanbert_kernels.ops import library
from spanbert_kernels.ops.aot import AotConfiguration
from spanbert_kernels.ops.choices import PARTS
from spanbert_kernels.ops.plans import SpanWork
from spanbert_kernels.ops.span_pool.operators import (
    PoolInputs,
    kept_tensors,
    output_size,
    span_pool_backward,
    span_pool_forward,
)
from spanbert_kernels.ops.span_pool.triton_backward import (
    attention_backward,
    attention_delta,
    linear_backward,
    max_backward,
    table_backward,
)
from spanbert_kernels.ops.span_pool.triton_forward import banded_forward, walk_forward

INTERPRETED = library.interpreted()
PROGRAMS = 132 * 64  # enough to fill a large GPU a few times over
TABLE_SHARE = 4096  # spans whose gradients one program sums for one row of the width table


# A step costs the interpreter the same for any size of block, so it gets large ones.
def product_options(dtype: torch.dtype) -> dict[str, Any]:
    """Constants and launch options of the matrix products; BLOCK: spans of a forward one, tokens of a backward one."""
    if INTERPRETED:
        return {"BLOCK": 128, "BLOCK_K": 128, "C": 128, "PRECISION": "ieee", "INTERPRETED": True}
    if dtype == torch.float32:
        options = {"BLOCK_K": 32, "C": 32, "PRECISION": "bf16x6", "num_warps": 8, "num_stages": 2}
    else:
        options = {"BLOCK_K": 32, "C": 64, "PRECISION": "tf32", "num_warps": 4, "num_stages": 3}
    return {**options, "BLOCK": 64, "INTERPRETED": False}


def backward_options(dtype: torch.dtype, part: str) -> dict[str, Any]:
    """The backward keeps a block of sums beside the products, that of attention two."""
    if INTERPRETED:
        return product_options(dtype)
    return {**product_options(dtype), "num_warps": 4 if part == "linear" and dtype == torch.float32 else 8}


def walk_options(enumerated: bool) -> dict[str, Any]:
    if INTERPRETED:
        return {"LANES": 64, "UNROLL": 1, "C": 256}
    return {"LANES": 1, "UNROLL": 1 if enumerated else 4, "C": 256, "num_warps": 1, "num_stages": 1}


def max_options() -> dict[str, Any]:
    if INTERPRETED:
        return {"BLOCK_T": 64, "BLOCK_N": 64, "C": 128}
    return {"BLOCK_T": 16, "BLOCK_N": 1, "C": 128, "num_warps": 1, "num_stages": 1}


def table_options() -> dict[str, Any]:
    return {"BLOCK_N": 1024 if INTERPRETED else 64, "C": 32, "num_warps": 4, "num_stages": 1}


def part_columns(parts: Sequence[int], sizes: dict[str, int]) -> dict[str, int | None]:
    """The first output column of each part, None for one not asked for; `sizes` are columns of a part."""
    columns: dict[str, int | None] = dict.fromkeys(f"{name}_column" for name in PARTS)
    total = 0
    for part in parts:
        columns[f"{PARTS[part]}_column"] = total
        total += sizes[PARTS[part]]
    return columns


def part_sizes(hidden: Tensor, scores: Tensor | None, width_embedding: Tensor | None) -> dict[str, int]:
    sizes: dict[str, int] = dict.fromkeys(PARTS, hidden.shape[1])
    sizes["attention"] *= 1 if scores is None else scores.shape[1]
    sizes["width"] = 0 if width_embedding is None else width_embedding.shape[1]
    return sizes


def with_dense_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(1) == 1 or tensor.shape[1] <= 1 else tensor.contiguous()


def contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def on(device: torch.device) -> Any:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def banded(num_spans: int, num_tokens: int, max_width: int) -> bool:
    """Whether a tile of sorted spans shares enough of its window for a product to beat following every span."""
    return 8 * num_spans >= num_tokens and not 0 < max_width <= 4


@span_pool_forward.triton
def forward(hidden: Tensor, work: SpanWork, inputs: PoolInputs, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    starts, ends, rows, cu_seqlens, first, _, num_spans, max_width = work
    scores, width_embedding, width_index, parts = inputs
    tokens, columns = hidden.shape
    argmax, lse = kept_tensors(hidden, work, inputs, keep)
    output = hidden.new_empty(num_spans, output_size(hidden, inputs))
    if tokens == 0:
        return output.zero_(), argmax.zero_(), lse.zero_()
    if output.numel() == 0:
        return output, argmax, lse.zero_()

    hidden = with_dense_rows(hidden)
    offsets = part_columns(parts, part_sizes(hidden, scores, width_embedding))
    heads = 1 if scores is None else scores.shape[1]
    table_size = (0, 0) if width_embedding is None else width_embedding.shape
    tensors = {
        "hidden": hidden,
        "starts": contiguous(starts),
        "ends": contiguous(ends),
        "rows": contiguous(rows),
        "scores": contiguous(scores),
        "table": contiguous(width_embedding),
        "table_index": contiguous(width_index),
        "output": output,
        "lse": lse if lse.numel() else None,
        "tokens": tokens,
        "spans": num_spans,
        "columns": columns,
        "table_rows": table_size[0],
        "table_columns": table_size[1],
        "hidden_stride": hidden.stride(0),
        "output_stride": output.shape[1],
    }
    with on(hidden.device):
        enumerated = cu_seqlens is not None
        if not enumerated and offsets["max_column"] is None and banded(num_spans, tokens, max_width):
            _banded_forward(tensors, offsets, heads)
            return output, argmax, lse
        options = walk_options(enumerated)
        blocks = max(1, triton.cdiv(columns, options["C"])) * heads
        items, most = (tokens, 8) if enumerated else (num_spans, 16)
        share = 4 if INTERPRETED else min(most, max(1, items * blocks // PROGRAMS))
        walk_forward[(triton.cdiv(items, share * options["LANES"]) * blocks,)](
            **tensors,
            **offsets,
            first=contiguous(first) if enumerated else None,
            argmax=argmax if argmax.numel() else None,
            heads=heads,
            share=share,
            **options,
        )
    return output, argmax, lse


def _banded_forward(tensors: dict[str, Any], offsets: dict[str, int | None], heads: int) -> None:
    """One product for the mean and the sum, one for the attention; the other parts go with the first."""
    options = product_options(tensors["hidden"].dtype)
    programs = triton.cdiv(tensors["spans"], options["BLOCK"]) * max(1, triton.cdiv(tensors["columns"], options["C"]))
    offsets = {name: column for name, column in offsets.items() if name != "max_column"}
    attention = {**dict.fromkeys(offsets), "attention_column": offsets["attention_column"]}
    rest = {**offsets, "attention_column": None}
    if offsets["mean_column"] is None and offsets["sum_column"] is None and attention["attention_column"] is not None:
        attention, rest = offsets, dict.fromkeys(offsets)
    if any(column is not None for column in rest.values()):
        banded_forward[(programs,)](**tensors, **rest, heads=1, **options)
    if attention["attention_column"] is not None:
        banded_forward[(programs * heads,)](**tensors, **attention, heads=heads, **options)


@span_pool_backward.triton
def backward(
    grad_output: Tensor, hidden: Tensor, argmax: Tensor, lse: Tensor, work: SpanWork, inputs: PoolInputs
) -> tuple[Tensor, Tensor, Tensor]:
    starts, ends, rows, _, first, reach, num_spans, _ = work
    scores, width_embedding, width_index, parts = inputs
    assert starts is not None
    assert ends is not None
    assert first is not None
    assert reach is not None
    tokens, columns = hidden.shape
    grad_hidden = hidden.new_empty(hidden.shape)
    grad_scores = hidden.new_zeros(0) if scores is None else scores.new_zeros(scores.shape)
    grad_table = hidden.new_zeros(0) if width_embedding is None else width_embedding.new_zeros(width_embedding.shape)
    if num_spans == 0 or tokens == 0:
        return grad_hidden.zero_(), grad_scores, grad_table

    hidden, grad_output = with_dense_rows(hidden), with_dense_rows(grad_output)
    offsets = part_columns(parts, part_sizes(hidden, scores, width_embedding))
    spans = {"starts": starts.contiguous(), "ends": ends.contiguous(), "rows": contiguous(rows)}
    lists = {**spans, "first": first.contiguous(), "reach": reach.contiguous()}
    sizes = {"tokens": tokens, "spans": num_spans, "grad_stride": grad_output.stride(0)}
    with on(hidden.device):
        if width_embedding is not None and offsets["width_column"] is not None and grad_table.numel():
            grad_table = _table_backward(grad_output, spans, sizes, width_embedding, width_index, offsets)
        linear = {f"{name}_column": offsets[f"{name}_column"] for name in ("start", "end", "mean", "sum")}
        stages = {
            "max": offsets["max_column"] is not None,
            "linear": any(column is not None for column in linear.values()),
            "attention": offsets["attention_column"] is not None,
        }
        wanted = [name for name, there in stages.items() if there]
        if columns == 0 or not wanted:
            return grad_hidden.zero_(), grad_scores, grad_table

        # Each kind of part adds what came before it, in float32; the last one rounds.
        sums = hidden.new_empty(hidden.shape, dtype=torch.float32) if len(wanted) > 1 else None
        for name in wanted:
            shared = {
                "grad_output": grad_output,
                **lists,
                **sizes,
                "columns": columns,
                "grad_hidden": grad_hidden if name == wanted[-1] else sums,
            }
            if name == "max":
                options = max_options()
                grid = triton.cdiv(tokens, options["BLOCK_T"]) * triton.cdiv(columns, options["C"])
                max_backward[(grid,)](**shared, argmax=argmax, max_column=offsets["max_column"], **options)
                continue
            others = None if name == wanted[0] else sums
            options = backward_options(hidden.dtype, name)
            blocks = triton.cdiv(columns, options["C"])
            grid = triton.cdiv(tokens, options["BLOCK"]) * blocks
            if name == "linear":
                linear_backward[(grid,)](**shared, others=others, **linear, **options)
                continue
            assert scores is not None
            partial_scores = grad_scores.new_empty(blocks, *scores.shape)
            attention_backward[(grid,)](
                **shared,
                hidden=hidden,
                scores=scores.contiguous(),
                lse=lse,
                delta=_attention_delta(grad_output, hidden, scores, spans, offsets["attention_column"]),
                others=others,
                partial_scores=partial_scores,
                heads=scores.shape[1],
                hidden_stride=hidden.stride(0),
                attention_column=offsets["attention_column"],
                **options,
            )
            grad_scores = partial_scores.sum(0)
    return grad_hidden, grad_scores, grad_table


def _attention_delta(
    grad_output: Tensor, hidden: Tensor, scores: Tensor, spans: dict[str, Any], column: int | None
) -> Tensor:
    """The dot product of every span's gradient with what it pooled, not yet rounded, `[N, heads]`."""
    (tokens, columns), heads, count = hidden.shape, scores.shape[1], len(spans["starts"])
    options = product_options(hidden.dtype)
    blocks = triton.cdiv(columns, options["C"])
    partial = scores.new_empty(blocks, count, heads)
    attention_delta[(triton.cdiv(count, options["BLOCK"]) * blocks * heads,)](
        grad_output=grad_output,
        hidden=hidden,
        **spans,
        scores=scores.contiguous(),
        partial_delta=partial,
        tokens=tokens,
        spans=count,
        columns=columns,
        heads=heads,
        grad_stride=grad_output.stride(0),
        hidden_stride=hidden.stride(0),
        attention_column=column,
        **options,
    )
    return partial.sum(0)


def _table_backward(
    grad_output: Tensor,
    spans: dict[str, Any],
    sizes: dict[str, int],
    table: Tensor,
    table_index: Tensor | None,
    offsets: dict[str, int | None],
) -> Tensor:
    """In two stages of a fixed order: shares of the spans, then the sum of the shares."""
    table_rows, table_columns = table.shape
    shares = triton.cdiv(sizes["spans"], TABLE_SHARE)
    options = table_options()
    partial = table.new_empty(shares, table_rows, table_columns, dtype=torch.float32)
    table_backward[(shares * table_rows * triton.cdiv(table_columns, options["C"]),)](
        grad_output=grad_output,
        **spans,
        table_index=contiguous(table_index),
        partial_table=partial,
        **sizes,
        share=TABLE_SHARE,
        table_rows=table_rows,
        table_columns=table_columns,
        width_column=offsets["width_column"],
        **options,
    )
    return partial.sum(0).to(table.dtype)


# Triton's types of the arguments.
_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_INDICES = ("starts", "ends", "rows", "first", "reach", "table_index")
_WIDE = ("scores", "lse", "delta", "others", "partial_scores", "partial_table", "partial_delta")


def _configuration(
    name: str, kernel: Any, dtype: torch.dtype, options: dict[str, Any], absent: Sequence[str] = (), **types: str
) -> AotConfiguration:
    """As a call compiles it whose rows are multiples of 16 columns; `absent` arguments are None."""
    constants = dict(options)
    launch = {key: constants.pop(key) for key in ("num_warps", "num_stages")}
    constants.update(dict.fromkeys(absent))

    def kind(argument: str) -> str:
        if argument in constants:
            return "constexpr"
        if argument in types:
            return types[argument]
        if argument in _INDICES:
            return "*i64"
        if argument in _WIDE:
            return "*fp32"
        pointer = argument in ("hidden", "table", "output", "grad_output", "grad_hidden")
        return f"*{_TYPES[dtype]}" if pointer else "i32"

    signature = {argument: kind(argument) for argument in kernel.arg_names}
    divisible = tuple(argument for argument in signature if argument.endswith(("columns", "stride", "_column")))
    return AotConfiguration(
        f"{name} {_TYPES[dtype]}",
        kernel,
        signature,
        constants,
        **launch,
        divisible=tuple(each for each in divisible if signature[each] == "i32" and each != "table_columns"),
    )


def aot_configurations() -> list[AotConfiguration]:
    """What launches compile, each kernel with the parts that need the most registers."""
    columns = {part: f"{part}_column" for part in PARTS}
    unused = {"table", "table_index", columns["width"]}
    pooled = {columns["mean"], columns["sum"]}
    rounded, single = torch.bfloat16, torch.float32
    found = [
        _configuration(
            "forward of an enumeration", walk_forward, dtype, walk_options(True), ("rows", "table_index"), argmax="*u8"
        )
        for dtype in (rounded, single)
    ]
    found += [
        _configuration("forward along spans", walk_forward, rounded, walk_options(False), ("first", "argmax", "lse")),
    ]
    for dtype in (rounded, single):
        options = product_options(dtype)
        found += [
            _configuration("forward of sums", banded_forward, dtype, options, ("lse", columns["attention"])),
            _configuration("forward of attention", banded_forward, dtype, options, sorted(pooled | unused)),
            _configuration("backward of linear parts", linear_backward, dtype, backward_options(dtype, "linear")),
            _configuration("backward of attention", attention_backward, dtype, backward_options(dtype, "attention")),
            _configuration("attention's output for its backward", attention_delta, dtype, options),
        ]
    found += [
        _configuration("backward of the maximum", max_backward, rounded, max_options(), argmax="*u8"),
        _configuration("backward of the width table", table_backward, rounded, table_options()),
    ]
    return found
