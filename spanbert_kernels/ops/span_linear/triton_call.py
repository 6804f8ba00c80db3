"""What span_linear and span_score launch in Triton: a call's inputs as the kernels want them, and its gradients."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
from torch import Tensor

import spanbert_kernels.ops.span_linear.triton_parts
import spanbert_kernels.ops.span_pool.triton  # noqa: F401  (fewer spans than tokens are pooled first)
from spanbert_kernels.ops import library
from spanbert_kernels.ops.attention.triton_launch import SHORT_OF_REGISTERS
from spanbert_kernels.ops.choices import PARTS
from spanbert_kernels.ops.plans import SpanWork
from spanbert_kernels.ops.span_linear.operators import ProjectedInputs
from spanbert_kernels.ops.span_linear.triton_backward import attention_deltas, product_backward
from spanbert_kernels.ops.span_linear.triton_forward import Blocks, Projection, Weights, softmax_of_spans
from spanbert_kernels.ops.triton_arguments import Options, Spans, Tiling, contiguous, matrix, spans_of

INTERPRETED = library.interpreted()
REGISTERS = 255 if SHORT_OF_REGISTERS else None  # of a thread where few spans share them
TABLE_TILE = 32  # rows of the width table in a backward product
TABLE_SHARE = 2048  # spans, at least, whose gradients are summed for the width table before all are
TABLE_BYTES = 2**26  # which these sums may take
KINDS = ("start", "end", "sum")  # two bits each in the kernel


# A step costs the interpreter the same for any size of block, so it gets large ones.
@functools.cache
def softmax_options() -> Options:
    return Options(Tiling(M=256, K=128, D=1) if INTERPRETED else Tiling(M=64, K=64, D=1))


@functools.cache
def product_options(outputs: int, *, forward: bool) -> Options:
    """Of the matrix products, with M spans in a forward one and M tokens in a backward one.

    In float32, which the projection is made in for hidden states of any dtype.
    """
    if INTERPRETED:
        columns = min(256, triton.next_power_of_2(max(16, outputs)))
        return Options(Tiling(M=128, K=128, D=columns, PRECISION="ieee", INTERPRETED=True))
    if forward:
        # Spans that follow each other hold a few tokens together: short steps waste little of their window.
        return Options(Tiling(M=64, K=16, D=64, PRECISION="bf16x6"), num_warps=4, num_stages=1)
    return Options(Tiling(M=64, K=32, D=64, PRECISION="bf16x6"), num_warps=8, num_stages=2)


def table_options(outputs: int) -> Options:
    """The same of the width table's backward product, whose tiles are small."""
    options = product_options(outputs, forward=False)
    return replace(options, block=options.block._replace(M=TABLE_TILE), num_warps=4)


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
class KernelCall:
    """Inputs of a raw operator, as the kernels want them. Spans are sorted."""

    projection: Projection
    spans: Spans
    scores: Tensor | None
    outputs: int
    blocks: Blocks
    weights: Weights | None = None
    few: bool = False  # half as many spans a forward program, which needs the registers for more

    @property
    def tokens(self) -> int:
        return self.projection.data.shape[0]

    @property
    def heads(self) -> int:
        return 0 if self.scores is None else self.scores.shape[0]

    def __len__(self) -> int:
        return len(self.spans.starts)

    def options(self, *, forward: bool = True) -> Options:
        options = product_options(self.outputs, forward=forward)
        if forward and self.few and not INTERPRETED:
            return replace(options, block=options.block._replace(M=32), maxnreg=REGISTERS)
        return options

    def tile(self) -> int:
        """Spans of a forward program."""
        tile: int = self.options().block.M
        return tile

    def column_blocks(self, *, forward: bool = True) -> int:
        return triton.cdiv(self.outputs, self.options(forward=forward).block.D)

    def sizes(self) -> dict[str, int]:
        return {"tokens": self.tokens, "num_spans": len(self), "outputs": self.outputs, "heads": self.heads}

    def columns(self) -> dict[str, int]:
        """The blocks, each an argument of its own."""
        return {f"{name}_block": block for name, block in self.blocks._asdict().items()}

    def inputs(self) -> dict[str, Any]:
        """The arguments that all forward kernels share."""
        return {
            "projection": self.projection,
            "spans": self.spans,
            "weights": self.weights,
            **self.sizes(),
            "table_rows": 0 if self.projection.table is None else len(self.projection.table),
            **self.columns(),
            "BANDED": max(self.blocks.mean, self.blocks.sum, self.blocks.attention) >= 0,
            **self.options().arguments,
        }

    def chunk(self, low: int, high: int) -> KernelCall:
        """The sorted spans low : high as a call of their own."""
        starts, ends, rows, first, reach = self.spans
        assert first is not None
        assert reach is not None
        some = Spans(
            starts[low:high],
            ends[low:high],
            torch.arange(low, high, device=ends.device) if rows is None else rows[low:high],
            (first - low).clamp(0, high - low),
            (reach - low).clamp(0, high - low),
        )
        return replace(self, spans=some)

    def with_softmax(self) -> KernelCall:
        """With the largest score of every span and what its weights are multiplied by, if there is attention."""
        if self.scores is None:
            return self
        weights = Weights(self.scores, *self.scores.new_empty(2, self.heads, len(self)).unbind(0))
        softmax_of_spans[(triton.cdiv(len(self), softmax_options().block.M), self.heads)](
            spans=self.spans,
            weights=weights,
            tokens=self.tokens,
            num_spans=len(self),
            heads=self.heads,
            **softmax_options().arguments,
        )
        return replace(self, weights=weights)

    def table_entries(self) -> Tensor:
        """The row of the width table of each sorted span, -1 for one that has none; int64 `[N]`."""
        entries, rows = self.projection.entries, self.spans.rows
        assert self.projection.table is not None
        widths, table_rows = self.spans.ends - self.spans.starts, len(self.projection.table)
        if entries is None:
            entries = widths.clamp(max=table_rows) - 1
        elif rows is not None:
            entries = entries[rows]
        return entries.masked_fill((widths <= 0) | (entries < 0) | (entries >= table_rows), -1)

    def new_sums(self, accumulate: bool) -> Sums:
        """Room for the gradients: zeros in float32 to accumulate in, else what every kernel fills."""
        projected, table = self.projection.data, self.projection.table
        dtype = torch.float32 if accumulate else projected.dtype
        new = projected.new_zeros if accumulate else projected.new_empty
        scores = self.scores
        return Sums(
            new(projected.shape, dtype=dtype),
            None if scores is None else new(self.column_blocks(forward=False), *scores.T.shape, dtype=torch.float32),
            None if table is None else new(table.shape, dtype=dtype),
            accumulate,
        )

    def gradients(self, sums: Sums) -> tuple[Tensor, Tensor, Tensor]:
        """Of `projected`, `scores` and `width_projected`, from the sums over all spans."""
        dtype = self.projection.data.dtype
        absent = self.projection.data.new_empty(0)
        scores, table = sums.partial_scores, sums.table
        return (
            sums.projected.to(dtype),
            absent if scores is None else scores.sum(0),
            absent.clone() if table is None else table.to(dtype),
        )


def new_call(projected: Tensor, work: SpanWork, inputs: ProjectedInputs, outputs: int) -> KernelCall:
    scores, block = inputs.scores, 0
    blocks = Blocks(-1, -1, -1, -1, -1)
    for name in (PARTS[part] for part in inputs.parts if PARTS[part] != "width"):
        blocks = blocks._replace(**{name: block})
        block += scores.shape[1] if name == "attention" and scores is not None else 1
    rest = map(contiguous, (inputs.width_projected, inputs.width_index, inputs.bias))
    return KernelCall(
        Projection(*matrix(projected), *rest),
        spans_of(work),
        scores.T.contiguous() if scores is not None and blocks.attention >= 0 else None,
        outputs,
        blocks,
    )


def add_gradients(call: KernelCall, grad: Tensor, rows: Tensor | None, sums: Sums) -> None:
    """The gradients of the call's spans, from those before the activation `grad [N, O]`; `rows` says which is whose."""
    options = call.options(forward=False)
    column_blocks = call.column_blocks(forward=False)
    arguments = {
        "grad": matrix(grad),
        "projected": matrix(call.projection.data),
        "spans": call.spans._replace(rows=rows),
        **call.sizes(),
    }
    attention = {"weights": call.weights, "deltas": _deltas(call, arguments)}
    arguments |= call.columns()
    nothing = dict.fromkeys(attention)
    shared = {**arguments, "target": matrix(sums.projected), "partial_scores": sums.partial_scores, "share": 0}
    shared |= {"ACCUMULATE": sums.accumulate, **options.arguments}
    if call.tokens:
        programs = triton.cdiv(call.tokens, options.block.M) * column_blocks
        exact = [i for i, name in enumerate(KINDS) if getattr(call.blocks, name) >= 0]
        if exact:
            kinds = sum(kind << (2 * i) for i, kind in enumerate(exact))
            product_backward[(programs, len(exact))](**shared, **nothing, kinds=kinds, WEIGHED=False)
        weighed = call.heads + (call.blocks.mean >= 0)
        if weighed:
            product_backward[(programs, weighed)](**shared, **attention, kinds=0, WEIGHED=True)
    if sums.table is not None and len(call):
        # A span as the one row of the table that it takes.
        entries, table_rows = call.table_entries(), len(sums.table)
        most = max(1, TABLE_BYTES // max(1, 4 * sums.table.numel()))
        share = max(TABLE_SHARE, triton.cdiv(len(call), most))
        shares = triton.cdiv(len(call), share)
        partial = sums.table.new_empty(shares, table_rows, call.outputs, dtype=torch.float32)
        table = {
            "spans": Spans(entries, entries + 1, rows, None, None),
            "target": matrix(partial[0]),
            "partial_scores": None,
            "tokens": table_rows,
            "share": share,
            "ACCUMULATE": False,
            **table_options(call.outputs).arguments,
        }
        product_backward[(triton.cdiv(table_rows, TABLE_TILE) * column_blocks, shares)](
            **{**shared, **table}, **nothing, kinds=0, WEIGHED=False
        )
        total = partial.sum(0)
        sums.table.copy_(total + sums.table if sums.accumulate else total)
    elif sums.table is not None and not sums.accumulate:
        sums.table.zero_()


def _deltas(call: KernelCall, arguments: dict[str, Any]) -> Tensor | None:
    """The dot product of every span's gradient with each head's share of it, `[heads, N]`."""
    weights = call.weights
    if weights is None:
        return None
    call = replace(call, few=False)
    partial_deltas = weights.scores.new_empty(call.column_blocks(), call.heads, len(call))
    attention_deltas[(triton.cdiv(len(call), call.tile()) * call.column_blocks(), call.heads)](
        **arguments,
        weights=weights,
        partial_deltas=partial_deltas,
        attention_block=call.blocks.attention,
        **call.options().arguments,
    )
    return partial_deltas.sum(0)
