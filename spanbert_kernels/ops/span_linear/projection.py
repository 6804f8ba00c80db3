"""Project, then pool: what span_linear and span_score share around their raw operators.

A linear layer over `[part; part; ...]` is the sum of one product a part, and pooling is linear in the tokens (all but
`max`): so the T tokens are multiplied by every block of the weight once, instead of once per span that holds them, and
the spans gather and add rows of the products. A bias that differs by document stands in every token's row for `start`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels.ops import large, products
from spanbert_kernels.ops.choices import ACTIVATIONS, PARTS
from spanbert_kernels.ops.operators import Gradient, save, saved
from spanbert_kernels.ops.plans import SpanWork, work_for
from spanbert_kernels.ops.span_linear.call import Call, Columns
from spanbert_kernels.ops.span_linear.operators import ProjectedInputs
from spanbert_kernels.ops.span_pool.operators import SpanPool
from spanbert_kernels.ops.tokens import Tokens

# What the columns of a block of the projection are a multiple of, by the type of the device: kernels there read 16
# bytes of a row at once, which rows of any other length do not allow.
COLUMN_STEPS = {"cuda": 16}


class ProjectedSpans(NamedTuple):
    """What the raw operators take: the projected tokens, the work list, and the other inputs.

    Of O columns there may be a few more, all zero, up to a multiple of COLUMN_STEPS: `padded` adds them to others.
    """

    projected: Tensor
    work: SpanWork
    inputs: ProjectedInputs
    zeros: int

    def padded(self, tensor: Tensor) -> Tensor:
        """`[..., O]`, with the columns of zeros."""
        return F.pad(tensor, (0, self.zeros)) if self.zeros else tensor


def project(call: Call, text: str, *, exactly: bool = False) -> ProjectedSpans:
    """The tokens times the weight's blocks, for all parts but `max`; `text` says that there is one derivative.

    `exactly`: no columns of zeros, for what counts its columns.
    """
    bias, by_token, columns = call.bias, call.bias_by_token(), call.columns
    zeros = 0 if exactly else -len(call.weight) % COLUMN_STEPS.get(call.like.device.type, 1)
    if by_token is not None:
        bias = None
        if columns.start < 0:
            columns = columns._replace(parts=[*columns.parts, PARTS.index("start")])
    tokens = call.tokens.tensors
    projected, table = ProjectTokens.apply(call.weight, call.table, by_token, columns, zeros, text, *tokens)
    bias = F.pad(bias, (0, zeros)) if bias is not None and zeros else bias
    inputs = ProjectedInputs(
        call.scores, table if "width" in call.parts else None, call.width_index(always=False), bias, columns.parts,
        ACTIVATIONS.index(call.activation),
    )  # fmt: skip
    return ProjectedSpans(projected, call.work(), inputs, zeros)


class ProjectTokens(torch.autograd.Function):
    """The products under autograd: `[T, B * (O + zeros)]` and, for `width`, `[R, O + zeros]`.

    `by_token [T, O]` is added to the block of `start`, or is one of its own behind the others.
    """

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        table: Tensor | None,
        by_token: Tensor | None,
        columns: Columns,
        zeros: int,
        text: str,
        *tokens: Tensor,
    ) -> tuple[Tensor, Tensor]:
        behind = by_token is not None and columns.start < 0
        wide = torch.promote_types(weight.dtype, torch.float32)
        if len(tokens) == 1 and not behind:
            projected = _multiplied(tokens[0], weight, columns.blocks[0], zeros)
        else:
            size = len(weight) + zeros
            sizes = [len(blocks) * size for blocks in columns.blocks] + [size] * behind
            projected = large.new_rows(weight, len(tokens[0]), sum(sizes), wide)
            for target, hidden, blocks in zip(projected.split(sizes, 1), tokens, columns.blocks, strict=False):
                _multiplied(hidden, weight, blocks, zeros, target)
        if by_token is not None:
            own = _start_of(projected, columns, len(weight), zeros)
            own.copy_(by_token if behind else own + by_token)
            if behind and zeros:
                projected[:, -zeros:] = 0
        width_projected = weight.new_empty(0, dtype=wide)
        if table is not None and columns.width is not None:
            block = weight[:, columns.width : columns.width + table.shape[1]].to(wide)
            width_projected = F.pad(table @ block.T, (0, zeros)) if zeros else table @ block.T
        save(ctx, weight, table, columns, zeros, *tokens)
        ctx.text = text
        return projected, width_projected

    @staticmethod
    def backward(ctx: Any, grad_projected: Tensor, grad_width_projected: Tensor) -> tuple[Tensor | None, ...]:
        values = (grad_projected, grad_width_projected, ctx.needs_input_grad, *saved(ctx))
        of_weight, of_table, of_bias, *of_tokens = Gradient.apply(ctx.text, _gradients, *values)
        return (of_weight, of_table, of_bias, None, None, None, *of_tokens)


def _start_of(projected: Tensor, columns: Columns, outputs: int, zeros: int) -> Tensor:
    """The block of `start`, which is behind the others where nothing else asks for it."""
    place = columns.start if columns.start >= 0 else sum(map(len, columns.blocks))
    return projected[:, _block(place, outputs, zeros)]


def _block(number: int, outputs: int, zeros: int) -> slice:
    """The columns of a block, without its zeros."""
    first = number * (outputs + zeros)
    return slice(first, first + outputs)


def _multiplied(
    hidden: Tensor, weight: Tensor, blocks: Sequence[int], zeros: int, target: Tensor | None = None
) -> Tensor:
    """`hidden [T, H]` times some blocks of `weight [O, D]`: `[T, B * (O + zeros)]`.

    PyTorch's own product in float32 copies no block.
    """
    (count, size), outputs = hidden.shape, len(weight)
    if blocks and hidden.dtype.itemsize == 2:
        result = products.OF_16_BITS[hidden.device.type](hidden, _stacked(weight, blocks, size, zeros))
        return result if target is None else target.copy_(result)
    product = products.product_for(hidden, weight[:, :size]) if blocks else None
    if product is not None:
        result = product(hidden, _stacked(weight, blocks, size, zeros), None)
        return result if target is None else target.copy_(result)
    wide = torch.promote_types(weight.dtype, torch.float32)
    projected = large.new_rows(weight, count, len(blocks) * (outputs + zeros), wide) if target is None else target
    for i, column in enumerate(blocks):
        projected[:, _block(i, outputs, zeros)].addmm_(hidden, weight[:, column : column + size].T, beta=0)
    if blocks and zeros:
        projected.unflatten(1, (len(blocks), -1))[:, :, outputs:] = 0
    return projected


def _gradients(
    grad_projected: Tensor, grad_width_projected: Tensor, wanted: Sequence[bool], weight: Tensor, table: Tensor | None,
    columns: Columns, zeros: int, *tokens: Tensor,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The gradients of `weight`, `table`, `by_token` and the tokens, those that are wanted."""
    narrow, weight, outputs = weight.dtype, weight.to(grad_projected.dtype), len(weight)
    grad_weight = large.new_empty(weight, *weight.shape) if wanted[0] else None
    if grad_weight is not None and columns.maximum is not None:  # which has a product of its own
        grad_weight.zero_()
    grad_table, grad_tokens = None, []
    with torch.autocast(weight.device.type, enabled=False):
        first = 0
        for hidden, blocks, wants in zip(tokens, columns.blocks, wanted[6:], strict=True):
            own = grad_projected[:, first : first + len(blocks) * (outputs + zeros)]
            multiplied = narrow == hidden.dtype and narrow.itemsize == 2  # as they are
            wide = hidden if multiplied else hidden.to(weight.dtype)
            grad_tokens.append(_gradients_of_blocks(own, wide, weight, blocks, zeros, grad_weight, wants))
            first += own.shape[1]
        if columns.width is not None and table is not None:
            place = slice(columns.width, columns.width + table.shape[1])
            of_widths = grad_width_projected[:, :outputs]
            if grad_weight is not None:
                grad_weight[:, place].addmm_(of_widths.T, table, beta=0)
            if wanted[1]:
                grad_table = of_widths @ weight[:, place]
    of_bias = _start_of(grad_projected, columns, outputs, zeros).clone() if wanted[2] else None
    of_weight, *of_tokens = (None if grad is None else grad.to(narrow) for grad in (grad_weight, *grad_tokens))
    return (of_weight, grad_table, of_bias, *of_tokens)


def _gradients_of_blocks(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    blocks: Sequence[int],
    zeros: int,
    grad_weight: Tensor | None,
    wanted: bool,
) -> Tensor | None:
    """The gradient of one tensor of tokens, if it is wanted; that of its blocks is written to `grad_weight`, if any."""
    size, outputs = hidden.shape[1], len(weight)
    narrow = hidden.dtype.itemsize == 2 and bool(blocks)
    product = products.product_for(hidden, weight[:, :size]) if blocks else None
    of_all = product is not None or narrow  # all blocks by one product
    grad_hidden, grad_blocks = grad.new_zeros(hidden.shape) if wanted and not of_all else None, None
    if narrow:
        stacked = _stacked(weight.to(hidden.dtype), blocks, size, zeros) if wanted else None
        if wanted or grad_weight is not None:
            own_hidden = None if grad_weight is None else hidden
            grad_hidden, grad_blocks = products.gradients_of_16_bits(grad, own_hidden, stacked)
    elif product is not None:
        stacked = _stacked(weight, blocks, size, zeros) if wanted else None
        grad_hidden, grad_blocks = products.gradients(product, grad, None if grad_weight is None else hidden, stacked)
    for i, column in enumerate(blocks):
        block, own = _block(i, outputs, zeros), slice(column, column + size)
        if grad_hidden is not None and not of_all:
            grad_hidden.addmm_(grad[:, block], weight[:, own])
        if grad_weight is not None:
            if grad_blocks is None:
                grad_weight[:, own].addmm_(grad[:, block].T, hidden, beta=0)
            else:
                grad_weight[:, own] = grad_blocks[block]
    return grad_hidden


def _stacked(weight: Tensor, blocks: Sequence[int], size: int, zeros: int) -> Tensor:
    """The blocks of `weight [O, D]` below each other, each with its rows of zeros: `[B * (O + zeros), H]`."""
    below = [weight.new_zeros(zeros, size)] if zeros else []
    return torch.cat([rows for column in blocks for rows in (weight[:, column : column + size], *below)])


def pool(call: Call, parts: Sequence[str], order: Tensor | None = None) -> Tensor:
    """`span_pool` of some of the parts, by the call's own backend; of the spans `order`, if not of all in theirs."""
    index, spans = call.width_index(always=False), call.spans
    if order is not None:
        start, end = call.bounds()
        index, spans = None if index is None else index[order], (start[order], end[order])
    work = work_for(spans, call.backend, len(call.like))
    runs: list[list[str]] = []
    for part in parts:
        if not runs or call.tokens.of(part) is not call.tokens.of(runs[-1][0]):
            runs.append([])
        runs[-1].append(part)
    pieces = [
        SpanPool.apply(
            call.tokens.of(run[0]), call.scores, call.table, index, list(map(PARTS.index, run)), call.backend, work
        )
        for run in runs
    ]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, 1)


def over_pooled_spans(call: Call) -> Call:
    """The same call with every span's pooled vector as a token of its own, which is all that the span holds.

    Where something differs by document they are sorted by that: those without tokens come last, behind the documents.
    """
    document = call.document()
    order = None if document is None else torch.argsort(document, stable=True)
    pooled = pool(call, call.parts, order)
    token, offsets = torch.arange(len(pooled), device=pooled.device), call.cu_seqlens
    if order is not None and document is not None and offsets is not None:
        offsets = torch.searchsorted(document[order], torch.arange(len(offsets), device=pooled.device))
        token = torch.empty_like(order).scatter_(0, order, token)
    start, end = call.bounds()
    columns = Columns([PARTS.index("start")], [[0]], 0, None, None, call.columns.total)
    return replace(
        call, tokens=Tokens((pooled,), {"start": 0}), spans=(token, token + (end > start)), parts=("start",),
        columns=columns, scores=None, table=None, width_rows=None, cu_seqlens=offsets,
    )  # fmt: skip
