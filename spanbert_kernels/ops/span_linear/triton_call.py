"""What span_linear and span_score launch in Triton: a call's inputs as the kernels want them, and its gradients."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import triton
from torch import Tensor

import spanbert_kernels.ops.span_pool.triton  # noqa: F401  (fewer spans than tokens are pooled first)
from spanbert_kernels.ops import library
from spanbert_kernels.ops.choices import PARTS
from spanbert_kernels.ops.plans import SpanWork
from spanbert_kernels.ops.span_linear.operators import ProjectedInputs
from spanbert_kernels.ops.span_linear.triton_backward import attention_deltas, product_backward
from spanbert_kernels.ops.span_linear.triton_forward import softmax_of_spans

INTERPRETED = library.interpreted()
TABLE_TILE = 32  # rows of the width table in a backward product
TABLE_SHARE = 2048  # spans, at least, whose gradients are summed for the width table before all are
TABLE_BYTES = 2**26  # which these sums may take
SOFTMAX_OPTIONS: dict[str, Any] = {"BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 1}
if INTERPRETED:  # where a step costs the same for any size of block
    SOFTMAX_OPTIONS |= {"BLOCK_N": 256, "BLOCK_K": 128}
KINDS = ("start", "end", "sum")  # two bits each in the kernel


def product_options(outputs: int, *, forward: bool) -> dict[str, Any]:
    """Constants and launch options of the matrix products: BLOCK_N spans by C columns forward, BLOCK_T tokens back.

    Of float32, which the projection is made in for hidden states of any dtype.
    """
    block = "BLOCK_N" if forward else "BLOCK_T"
    if INTERPRETED:
        columns = min(256, triton.next_power_of_2(max(16, outputs)))
        return {block: 128, "BLOCK_K": 128, "C": columns, "PRECISION": "ieee", "INTERPRETED": True}
    options: dict[str, Any] = {"BLOCK_K": 32, "C": 64, "PRECISION": "bf16x6", "INTERPRETED": False}
    return {block: 32 if forward else 64, **options, "num_warps": 8, "num_stages": 2}


def table_options(outputs: int) -> dict[str, Any]:
    """The same of the width table's backward product, whose tiles are small."""
    options = {**product_options(outputs, forward=False), "BLOCK_T": TABLE_TILE}
    return options if INTERPRETED else {**options, "num_warps": 4}


def with_dense_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(1) == 1 or tensor.shape[1] <= 1 else tensor.contiguous()


def contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def on(device: torch.device) -> Any:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@dataclass(frozen=True)
class Sums:
    """Where the gradients of a call are written, or added up over chunks of its spans (in float32).

    Attributes:
        projected: `[T, B * O]`.
        partial_scores: `[column blocks, T, heads]`, float32: their sum over the blocks is the gradient of the scores.
        table: `[R, O]`.
        accumulate: add to what is there.
    """

    projected: Tensor
    partial_scores: Tensor | None
    table: Tensor | None
    accumulate: bool


@dataclass(frozen=True)
class Call:
    """Inputs of a raw operator, as the kernels want them. Spans are sorted."""

    projected: Tensor
    starts: Tensor
    ends: Tensor
    rows: Tensor | None
    first: Tensor
    reach: Tensor
    scores: Tensor | None
    width_projected: Tensor | None
    width_index: Tensor | None
    bias: Tensor | None
    outputs: int
    blocks: dict[str, int]
    peaks: Tensor | None = field(default=None)
    scales: Tensor | None = field(default=None)

    @property
    def heads(self) -> int:
        return 0 if self.scores is None else self.scores.shape[0]

    @property
    def banded(self) -> bool:
        return max(self.blocks[name] for name in ("mean_block", "sum_block", "attention_block")) >= 0

    def __len__(self) -> int:
        return len(self.starts)

    def options(self, *, forward: bool) -> dict[str, Any]:
        return product_options(self.outputs, forward=forward)

    def tile(self) -> int:
        """Spans of a forward program."""
        tile: int = self.options(forward=True)["BLOCK_N"]
        return tile

    def column_blocks(self, *, forward: bool = True) -> int:
        return triton.cdiv(self.outputs, self.options(forward=forward)["C"])

    def tensors(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names}

    def inputs(self) -> dict[str, Any]:
        """The arguments that all forward kernels share."""
        return {
            **self.tensors("projected", "starts", "ends", "rows", "scores", "peaks", "scales"),
            **self.tensors("width_projected", "width_index", "bias"),
            "tokens": self.projected.shape[0],
            "spans": len(self),
            "outputs": self.outputs,
            "heads": self.heads,
            "table_rows": 0 if self.width_projected is None else len(self.width_projected),
            "projected_stride": self.projected.stride(0),
            **self.blocks,
            "BANDED": self.banded,
            "ATTENTION": self.heads > 0,
            **self.options(forward=True),
        }

    def chunk(self, low: int, high: int) -> Call:
        """The sorted spans low : high as a call of their own."""
        return replace(
            self,
            starts=self.starts[low:high],
            ends=self.ends[low:high],
            rows=torch.arange(low, high, device=self.starts.device) if self.rows is None else self.rows[low:high],
            first=(self.first - low).clamp(0, high - low),
            reach=(self.reach - low).clamp(0, high - low),
        )

    def with_softmax(self) -> Call:
        """With the largest score of every span and what its weights are multiplied by, if there is attention."""
        if self.scores is None:
            return self
        peaks, scales = self.scores.new_empty(2, self.heads, len(self)).unbind(0)
        softmax_of_spans[(triton.cdiv(len(self), SOFTMAX_OPTIONS["BLOCK_N"]), self.heads)](
            **self.tensors("starts", "ends", "scores"),
            peaks=peaks,
            scales=scales,
            tokens=self.projected.shape[0],
            spans=len(self),
            heads=self.heads,
            **SOFTMAX_OPTIONS,
        )
        return replace(self, peaks=peaks, scales=scales)

    def table_index(self) -> Tensor:
        """The row of the width table of each sorted span, -1 for one that has none; int64 `[N]`."""
        assert self.width_projected is not None
        widths, table_rows = self.ends - self.starts, len(self.width_projected)
        if self.width_index is None:
            index = widths.clamp(max=table_rows) - 1
        else:
            index = self.width_index if self.rows is None else self.width_index[self.rows]
        return index.masked_fill((widths <= 0) | (index < 0) | (index >= table_rows), -1)

    def new_sums(self, accumulate: bool) -> Sums:
        """Room for the gradients: zeros in float32 to accumulate in, else what every kernel fills."""
        dtype = torch.float32 if accumulate else self.projected.dtype
        new = self.projected.new_zeros if accumulate else self.projected.new_empty
        scores = self.scores
        return Sums(
            new(self.projected.shape, dtype=dtype),
            None if scores is None else new(self.column_blocks(forward=False), *scores.T.shape, dtype=torch.float32),
            None if self.width_projected is None else new(self.width_projected.shape, dtype=dtype),
            accumulate,
        )

    def gradients(self, sums: Sums) -> tuple[Tensor, Tensor, Tensor]:
        """Of `projected`, `scores` and `width_projected`, from the sums over all spans."""
        absent = self.projected.new_empty(0)
        scores, table = sums.partial_scores, sums.table
        return (
            sums.projected.to(self.projected.dtype),
            absent if scores is None else scores.sum(0),
            absent.clone() if table is None else table.to(self.projected.dtype),
        )


def new_call(projected: Tensor, work: SpanWork, inputs: ProjectedInputs, outputs: int) -> Call:
    starts, ends, rows, _, first, reach, *_ = work
    scores, width_projected, width_index, bias, parts, _ = inputs
    assert starts is not None
    assert ends is not None
    assert first is not None
    assert reach is not None
    names = [PARTS[part] for part in parts if PARTS[part] != "width"]
    blocks, block = {f"{name}_block": -1 for name in ("start", "end", "mean", "sum", "attention")}, 0
    for name in names:
        blocks[f"{name}_block"] = block
        block += scores.shape[1] if name == "attention" and scores is not None else 1
    return Call(
        with_dense_rows(projected),
        starts.contiguous(),
        ends.contiguous(),
        contiguous(rows),
        first.contiguous(),
        reach.contiguous(),
        scores.T.contiguous() if scores is not None and "attention" in names else None,
        contiguous(width_projected),
        contiguous(width_index),
        contiguous(bias),
        outputs,
        blocks,
    )


def add_gradients(call: Call, grad: Tensor, rows: Tensor | None, sums: Sums) -> None:
    """The gradients of the call's spans, from those before the activation `grad [N, O]`; `rows` says which is whose."""
    tokens, outputs, heads = call.projected.shape[0], call.outputs, call.heads
    options = product_options(outputs, forward=False)
    column_blocks = call.column_blocks(forward=False)
    arguments = {
        **call.tensors("projected", "starts", "ends", "first", "reach", "scores", "peaks", "scales"),
        "grad": grad,
        "rows": rows,
        "deltas": None,
        "target": sums.projected,
        "partial_scores": sums.partial_scores,
        "tokens": tokens,
        "spans": len(call),
        "outputs": outputs,
        "heads": heads,
        "share": 0,
        "grad_stride": grad.stride(0),
        "projected_stride": call.projected.stride(0),
        "target_stride": sums.projected.stride(0),
        "kinds": 0,
        **call.blocks,
        "ACCUMULATE": sums.accumulate,
        **options,
    }
    if heads:
        arguments["deltas"] = _deltas(call, grad, rows)
    if tokens:
        programs = triton.cdiv(tokens, options["BLOCK_T"]) * column_blocks
        exact = [i for i, name in enumerate(KINDS) if call.blocks[f"{name}_block"] >= 0]
        if exact:
            kinds = sum(kind << (2 * i) for i, kind in enumerate(exact))
            product_backward[(programs, len(exact))](**{**arguments, "kinds": kinds}, WEIGHED=False, ATTENTION=False)
        weighed = heads + (call.blocks["mean_block"] >= 0)
        if weighed:
            product_backward[(programs, weighed)](**arguments, WEIGHED=True, ATTENTION=heads > 0)
    if sums.table is not None and len(call):
        # A span as the one row of the table that it takes.
        index = call.table_index()
        table_rows = len(sums.table)
        most = max(1, TABLE_BYTES // max(1, 4 * sums.table.numel()))
        share = max(TABLE_SHARE, triton.cdiv(len(call), most))
        shares = triton.cdiv(len(call), share)
        partial = sums.table.new_empty(shares, table_rows, outputs, dtype=torch.float32)
        table_arguments = {
            **dict.fromkeys(("first", "reach", "scores", "peaks", "scales", "deltas", "partial_scores")),
            "starts": index,
            "ends": index + 1,
            "target": partial,
            "tokens": table_rows,
            "share": share,
            "target_stride": outputs,
            "ACCUMULATE": False,
            **table_options(outputs),
        }
        product_backward[(triton.cdiv(table_rows, TABLE_TILE) * column_blocks, shares)](
            **{**arguments, **table_arguments}, WEIGHED=False, ATTENTION=False
        )
        total = partial.sum(0)
        sums.table.copy_(total + sums.table if sums.accumulate else total)
    elif sums.table is not None and not sums.accumulate:
        sums.table.zero_()


def _deltas(call: Call, grad: Tensor, rows: Tensor | None) -> Tensor:
    """The dot product of every span's gradient with each head's share of it, `[heads, N]`."""
    assert call.scores is not None
    deltas = call.scores.new_empty(call.column_blocks(), call.heads, len(call))
    attention_deltas[(triton.cdiv(len(call), call.tile()) * call.column_blocks(), call.heads)](
        **call.tensors("projected", "starts", "ends", "scores", "peaks", "scales"),
        grad=grad,
        rows=rows,
        deltas=deltas,
        tokens=call.projected.shape[0],
        spans=len(call),
        outputs=call.outputs,
        heads=call.heads,
        grad_stride=grad.stride(0),
        projected_stride=call.projected.stride(0),
        attention_block=call.blocks["attention_block"],
        **call.options(forward=True),
    )
    return deltas.sum(0)
