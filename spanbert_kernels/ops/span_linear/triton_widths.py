"""How the kernels of all spans up to a width are launched, and when: for an enumeration that shares enough sums."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
from torch import Tensor

from spanbert_kernels.ops import library
from spanbert_kernels.ops.plans import SpanWork
from spanbert_kernels.ops.span_linear.triton_call import KernelCall
from spanbert_kernels.ops.span_linear.triton_enumerated import Enumeration, WidthTiling, shares_of_spans
from spanbert_kernels.ops.span_linear.triton_enumerated_gradient import (
    GradientSums,
    GradientTiling,
    enumerated_backward,
    weigh_deltas,
)
from spanbert_kernels.ops.span_linear.triton_forward import Blocks
from spanbert_kernels.ops.triton_arguments import Options, matrix

INTERPRETED = library.interpreted()
MOST_WEIGHED = 4  # blocks that are summed over spans, each of which takes registers
SPANS = 2  # first tokens of a group
NUMBERS = 80  # that a thread keeps: a span's scores, and in each of its columns weights, sums and rows
COLUMNS = 4  # of a thread, in a step that scores
STEP = 2  # widths in one block of instructions
WIDTHS = (2, 4, 8, 12, 16, 20, 24, 30, 32)  # of a program
SCORED_COLUMNS, WRITTEN_COLUMNS = 32 * COLUMNS, 256  # of a step; results of 16 bits are written 16 bytes a thread
SHARED_STARTS = 128  # first tokens of a program that finds shares
# A thread has a column, and a warp is a program: a token's products are summed without waiting for other warps.
GRADIENT_TOKENS, GRADIENT_COLUMNS = 64, 32
MOST_SUMS = 128  # that a thread keeps backward: for each width one of `end`, of each weighed block and of the table


def weighed_blocks(call: KernelCall) -> int:
    """The blocks of the projection that are summed over spans."""
    return (call.blocks.mean >= 0) + (call.blocks.sum >= 0) + call.heads


def applies(call: KernelCall, work: SpanWork) -> bool:
    """Whether the kernels of an enumeration take a call: spans in order, and not many blocks that are summed."""
    return (
        work.cu_seqlens is not None
        and work.rows is None
        and work.max_width > 0
        and weighed_blocks(call) <= MOST_WEIGHED
    )


def gradients_apply(call: KernelCall, work: SpanWork) -> bool:
    """Whether the backward kernel of an enumeration takes a call: few sums, and a width table by width."""
    table = call.projection.table is not None
    sums = (call.blocks.end >= 0) + weighed_blocks(call) + table
    return (
        applies(call, work)
        and max(call.blocks) >= 0
        and not (table and call.projection.entries is not None)
        and work.max_width <= WIDTHS[-1]
        and sums * rounded(work.max_width) <= MOST_SUMS
    )


def rounded(max_width: int) -> int:
    """Widths of a program that goes through all."""
    return next(widths for widths in WIDTHS if widths >= max_width)


def widths_of(max_width: int, scores: int, weighed: int) -> int:
    """Widths of a program that keeps some scores of each span, and some weighed sums.

    Example:
        >>> widths_of(30, 1, 1), widths_of(33, 1, 1), widths_of(13, 1, 4), widths_of(12, 8, 1)
        (30, 20, 8, 2)
    """
    numbers = NUMBERS - COLUMNS * (scores + 3 * weighed)
    most = max(widths for widths in WIDTHS if widths <= max(WIDTHS[0], numbers // (SPANS * scores)))
    each = triton.cdiv(max_width, triton.cdiv(max_width, most))
    return rounded(each)


@functools.cache
def options_of(
    widths: int, chunks: int, columns: int, projection: tuple[int, int, int], blocks: Blocks, heads: int
) -> Options:
    groups = 8
    if INTERPRETED:  # a step costs the interpreter the same for any size of block, so it gets large ones
        groups, columns = 64, min(256, triton.next_power_of_2(max(16, projection[0])))
    parts = parts_of(blocks, heads)
    return Options(WidthTiling(groups, SPANS, widths, STEP, chunks, columns, *projection, *parts), num_warps=8)


def parts_of(blocks: Blocks, heads: int) -> tuple[int, ...]:
    """The last fields of a tiling, from START on."""
    sums = (blocks.mean >= 0, blocks.sum >= 0)
    weighed = [block for block in (blocks.mean, blocks.sum) if block >= 0] + [
        blocks.attention + i for i in range(heads)
    ]
    return (blocks.start, blocks.end, sum(block << (8 * i) for i, block in enumerate(weighed)), *map(int, sums), heads)


@functools.cache
def gradient_options(
    widths: int, share_widths: int, projection: tuple[int, int], blocks: Blocks, heads: int
) -> Options:
    tokens, columns = GRADIENT_TOKENS, GRADIENT_COLUMNS
    if INTERPRETED:  # which gets few tokens: first tokens before the block are gone through in small cases, too
        tokens, columns = 4, min(256, triton.next_power_of_2(max(16, projection[0])))
    tiling = GradientTiling(tokens, widths, share_widths, columns, *projection, *parts_of(blocks, heads))
    return Options(tiling, num_warps=1)


class EnumeratedCall:
    """A call as the kernels of an enumeration take it.

    Args:
        call: as other kernels take it.
        work: its spans.
        scores: of each span, that a program keeps for all its widths; None for one that writes what it finds.
    """

    def __init__(self, call: KernelCall, work: SpanWork, scores: int | None = None) -> None:
        self.call, self.scores, self.max_width = call, scores, work.max_width
        widths = STEP if scores is None else widths_of(work.max_width, scores, weighed_blocks(call))
        chunks = triton.cdiv(work.max_width, widths)
        # What a program goes through in a loop is not known when it is compiled.
        self.chunks = max(2, chunks) if scores is None else chunks
        table = call.projection.table
        sizes = (call.outputs, call.projection.stride, 0 if table is None else len(table))
        columns = WRITTEN_COLUMNS if scores is None else SCORED_COLUMNS
        self.options = options_of(widths, self.chunks, columns, sizes, call.blocks, call.heads)
        self.groups = triton.cdiv(call.tokens, self.options.block.M * SPANS)

    def column_blocks(self) -> int:
        return triton.cdiv(self.call.outputs, self.options.block.D)

    def inputs(self) -> dict[str, Any]:
        """The arguments that all kernels share; finds the shares."""
        call, block, first = self.call, self.options.block, self.call.spans.first
        assert first is not None
        starts, shares = self.groups * block.M * SPANS, None
        if call.scores is not None:
            shares = call.scores.new_empty(starts, call.heads, self.chunks * block.WIDTHS)
            shares_of_spans[(triton.cdiv(starts, SHARED_STARTS), call.heads)](
                call.scores, shares, call.tokens, starts, call.heads, WIDTHS=shares.shape[2], M=SHARED_STARTS
            )
        return {
            "projection": call.projection,
            "enumeration": Enumeration(first, shares),
            "tokens": call.tokens,
            "widths": self.max_width,
            **self.options.arguments,
        }


class EnumeratedGradients:
    """The gradients of a call's projected tokens, scores, width table and bias.

    Args:
        call: as other kernels take it.
        enumeration: of it, with shares of all widths.
        max_width: of its spans.
        grad: `[N, O]`, before the activation.
        deltas: `[heads, N]`, its products with each head's share; None without attention.
    """

    def __init__(
        self, call: KernelCall, enumeration: Enumeration, max_width: int, grad: Tensor, deltas: Tensor | None
    ) -> None:
        projected, table, heads = call.projection.data, call.projection.table, call.heads
        shares, widths = enumeration.shares, rounded(max_width)
        share_widths = 0 if shares is None else shares.shape[2]
        sizes = (call.outputs, projected.shape[1])
        options = gradient_options(widths, share_widths, sizes, call.blocks, heads)
        token_blocks = triton.cdiv(call.tokens, options.block.M)
        column_blocks = triton.cdiv(call.outputs, options.block.D)
        weighed = None
        if deltas is not None:
            weighed = deltas.new_empty(call.tokens, heads, widths)
            weigh_deltas[(triton.cdiv(call.tokens, SHARED_STARTS), heads)](
                enumeration=enumeration,
                deltas=deltas,
                weighed=weighed,
                tokens=call.tokens,
                spans=len(call),
                STARTS=SHARED_STARTS,
                **options.arguments,
            )
        self.table = table
        self.sums = GradientSums(
            projected.new_empty(projected.shape),
            None if deltas is None else projected.new_empty(column_blocks, call.tokens, heads),
            None if table is None else projected.new_empty(token_blocks, widths, call.outputs),
            projected.new_empty(token_blocks, call.outputs),
        )
        enumerated_backward[(token_blocks * column_blocks,)](
            grad=grad,
            projected=matrix(projected),
            enumeration=enumeration,
            weighed=weighed,
            results=self.sums,
            tokens=call.tokens,
            **options.arguments,
        )

    def found(self) -> tuple[Tensor, Tensor, Tensor]:
        """As `KernelCall.gradients` has them."""
        absent = self.sums.projected.new_empty(0)
        scores = absent if self.sums.scores is None else self.sums.scores.sum(0)
        return self.sums.projected, scores, absent.clone() if self.table is None else self._of_table()

    def _of_table(self) -> Tensor:
        """Spans that are wider than the table has rows take its last."""
        assert self.table is not None
        assert self.sums.widths is not None
        by_width, last = self.sums.widths.sum(0), len(self.table) - 1
        of_table = torch.zeros_like(self.table)
        rows = min(last, len(by_width))
        of_table[:rows] = by_width[:rows]
        if len(by_width) > last >= 0:
            of_table[last] = by_width[last:].sum(0)
        return of_table

    def of_bias(self) -> Tensor:
        return self.sums.spans.sum(0)
