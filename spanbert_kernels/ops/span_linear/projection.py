"""Project, then pool: what span_linear and span_score share around their raw operators.

A linear layer over `[part; part; ...]` is the sum of one product a part, and pooling is linear in the tokens (all but
`max`): so the T tokens are multiplied by every block of the weight once, instead of once per span that holds them, and
the spans gather and add rows of the products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spanbert_kernels.ops import checks, philox, plans, products
from spanbert_kernels.ops.backends import Operation
from spanbert_kernels.ops.choices import ACTIVATIONS, PARTS, Activation, Backend, Part
from spanbert_kernels.ops.operators import REGISTERED, Gradient, gradients, save, saved
from spanbert_kernels.ops.plans import SpanPlan
from spanbert_kernels.ops.span_linear.operators import ProjectedInputs
from spanbert_kernels.ops.span_pool import check_parts, check_scores, check_table
from spanbert_kernels.ops.span_pool import reference as span_pool
from spanbert_kernels.ops.span_pool.operators import SpanPool


class Columns(NamedTuple):
    """Where the columns of each part stand in a weight `[O, D]`.

    Attributes:
        blocks: first column of every H-wide block that is projected, in the order of the parts, a head of `attention`
            after the other.
        maximum: first column of `max`, if it was asked for.
        width: first column of `width`, if it was asked for.
        total: D.
    """

    blocks: list[int]
    maximum: int | None
    width: int | None
    total: int


def columns_of(parts: Sequence[str], size: int, heads: int, table_columns: int) -> Columns:
    """The columns that `span_pool` gives to `parts`, for H = `size`.

    Example:
        >>> columns_of(["start", "width", "attention"], size=4, heads=2, table_columns=3)
        Columns(blocks=[0, 7, 11], maximum=None, width=4, total=15)
    """
    blocks: list[int] = []
    maximum: int | None = None
    width: int | None = None
    total = 0
    for part in parts:
        if part == "width":
            width, total = total, total + table_columns
        elif part == "max":
            maximum, total = total, total + size
        else:
            for _ in range(heads if part == "attention" else 1):
                blocks.append(total)
                total += size
    return Columns(blocks, maximum, width, total)


@dataclass(frozen=True)
class Call:
    """A call's inputs, checked, in float32 (float64 for a float64 hidden).

    Tokens in 16 bits have projections that 16 bits would round: an activation's kink would be on the wrong side for
    some, and its gradient off by all of it. So everything is widened once, and the result rounded once.
    """

    backend: Backend
    hidden: Tensor
    spans: SpanPlan | tuple[Tensor, Tensor]
    parts: tuple[Part, ...]
    codes: list[int]
    columns: Columns
    weight: Tensor
    bias: Tensor | None
    scores: Tensor | None
    table: Tensor | None
    width_rows: Callable[[Tensor], Tensor] | None
    activation: Activation

    def bounds(self) -> tuple[Tensor, Tensor]:
        """First token and token after the last of every span, int64 `[N]` each."""
        return self.spans.bounds() if isinstance(self.spans, SpanPlan) else self.spans

    def width_index(self, always: bool) -> Tensor | None:
        """The row of the width table of every span; kernels find the usual one for themselves, unless `always`."""
        if self.table is None or (self.width_rows is None and not always):
            return None
        start, end = self.bounds()
        return plans.width_index(end - start, len(self.table), self.width_rows)

    def num_spans(self) -> int:
        return self.spans.num_spans if isinstance(self.spans, SpanPlan) else len(self.spans[0])

    def work(self) -> plans.SpanWork:
        return plans.work_for(self.spans, self.backend, self.hidden.shape[0])

    def fewer_products_over_spans(self) -> bool:
        """Whether multiplying pooled spans costs less than multiplying tokens: N rows against T, equally long."""
        return self.num_spans() < self.hidden.shape[0]


def check_call(
    operation: Operation,
    hidden: Tensor,
    spans: Tensor | SpanPlan,
    parts: Sequence[Part],
    weight: Tensor,
    bias: Tensor | None,
    scores: Tensor | None,
    width_embedding: Tensor | None,
    activation: Activation,
    width_rows: Callable[[Tensor], Tensor] | None,
    end_inclusive: bool,
    validate: bool,
    backend: Backend | None,
) -> Call:
    """Everything that both operations check, and the backend of the call."""
    checks.check_floating("hidden", hidden, 2, "[T, H]")
    codes = check_parts(parts)
    checks.check_choice("activation", activation, ACTIVATIONS)
    plans.check_width_rows(width_rows)
    resolved = plans.resolve(spans, hidden, end_inclusive, validate)
    chosen = operation.choose(hidden, backend)
    scores = check_scores(scores, hidden, parts)
    table = check_table(width_embedding, hidden, parts)
    heads, table_columns = 1 if scores is None else scores.shape[1], 0 if table is None else table.shape[1]
    columns = columns_of(parts, hidden.shape[1], heads, table_columns)
    checks.check_floating("weight", weight, 2, "[O, D]")
    checks.check_device("weight", weight, "hidden", hidden)
    if weight.shape[1] != columns.total:
        raise ValueError(
            f"weight must have shape [O, D] with D = {columns.total}, the columns of {', '.join(parts)}, "
            f"got {list(weight.shape)}"
        )
    bias = check_vector("bias", bias, weight.shape[0], hidden)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    hidden, weight = hidden.to(wide), weight.to(wide)
    table = None if table is None else table.to(wide)
    return Call(
        chosen, hidden, resolved, tuple(parts), codes, columns, weight, bias, scores, table, width_rows, activation
    )


def check_vector(name: str, vector: Tensor | None, size: int, hidden: Tensor) -> Tensor | None:
    """A vector of `size` numbers, widened, or None."""
    if vector is None:
        return None
    checks.check_floating(name, vector, 1, f"[{size}]")
    checks.check_device(name, vector, "hidden", hidden)
    if len(vector) != size:
        raise ValueError(f"{name} must have shape [{size}], got {list(vector.shape)}")
    return vector.to(torch.promote_types(hidden.dtype, torch.float32))


def eager(call: Call, function: Callable[..., Tensor], *rest: Any, sources: Sequence[Tensor | None] = ()) -> Tensor:
    """`function(hidden, start, end, ..., activation, rows, *rest)` over all spans, by chunks without gradients."""
    start, end = call.bounds()
    index, rows = call.width_index(always=True), torch.arange(len(start), device=start.device)

    def over(part: slice) -> Tensor:
        return function(
            call.hidden, start[part], end[part], call.parts, call.scores, call.table,
            None if index is None else index[part], call.weight, call.bias, call.activation, rows[part], *rest,
        )  # fmt: skip

    tensors = (call.hidden, call.weight, call.bias, call.scores, call.table, *sources)
    differentiable = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    if torch.compiler.is_compiling() or differentiable or len(start) == 0:
        return over(slice(None))
    elements = max(1, int((end - start).max()) * call.hidden.shape[1], len(call.weight))
    step = max(1, span_pool.EAGER_CHUNK // elements)
    return torch.cat([over(slice(i, i + step)) for i in range(0, len(start), step)])


def project(hidden: Tensor, weight: Tensor, blocks: Sequence[int]) -> Tensor:
    """`hidden [T, H]` times every block of `weight [O, D]`: `[T, B * O]`. PyTorch's own product copies no block."""
    (tokens, size), outputs = hidden.shape, weight.shape[0]
    product = products.product_for(hidden, weight[:, :size]) if blocks else None
    if product is not None:
        return product(hidden, _stacked(weight, blocks, size), None)
    projected = hidden.new_empty(tokens, len(blocks) * outputs)
    for i, column in enumerate(blocks):
        projected[:, i * outputs : (i + 1) * outputs].addmm_(hidden, weight[:, column : column + size].T, beta=0)
    return projected


def project_backward(
    grad_projected: Tensor, grad_width_projected: Tensor, hidden: Tensor, weight: Tensor, table: Tensor | None,
    columns: Columns, wanted: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """The gradients of `hidden`, `weight` and `table`, those that are wanted."""
    size, outputs = hidden.shape[1], weight.shape[0]
    grad_weight = torch.empty_like(weight) if wanted[1] else None
    product = products.product_for(hidden, weight[:, :size]) if columns.blocks else None
    if product is not None:
        grad_hidden, grad_blocks = products.gradients(
            product,
            grad_projected,
            hidden if wanted[1] else None,
            _stacked(weight, columns.blocks, size) if wanted[0] else None,
        )
    else:
        grad_hidden, grad_blocks = torch.zeros_like(hidden) if wanted[0] else None, None
    if grad_weight is not None and columns.maximum is not None:  # which has a product of its own
        grad_weight[:, columns.maximum : columns.maximum + size] = 0
    for i, column in enumerate(columns.blocks):
        block, own = slice(i * outputs, (i + 1) * outputs), slice(column, column + size)
        if grad_hidden is not None and product is None:
            grad_hidden.addmm_(grad_projected[:, block], weight[:, own])
        if grad_weight is not None:
            if grad_blocks is None:
                grad_weight[:, own].addmm_(grad_projected[:, block].T, hidden, beta=0)
            else:
                grad_weight[:, own] = grad_blocks[block]
    grad_table = None
    if columns.width is not None and table is not None:
        own = slice(columns.width, columns.width + table.shape[1])
        if grad_weight is not None:
            grad_weight[:, own].addmm_(grad_width_projected.T, table, beta=0)
        if wanted[2]:
            grad_table = grad_width_projected @ weight[:, own]
    return grad_hidden, grad_weight, grad_table


def _stacked(weight: Tensor, blocks: Sequence[int], size: int) -> Tensor:
    """The blocks of `weight [O, D]` below each other: `[B * O, H]`."""
    return torch.cat([weight[:, column : column + size] for column in blocks])


def raw_parts(call: Call) -> list[int]:
    """The parts that the raw operators pool: all but `max`."""
    return [code for code in call.codes if PARTS[code] != "max"]


class ProjectThenPool(torch.autograd.Function):
    """The products and the compiled kernels under autograd, for either operation.

    `second` is the tensor that the raw operators take after the inputs, `addend` or `out_weight`; `dropout` what
    span_score's take behind it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scores: Tensor | None,
        table: Tensor | None,
        second: Tensor | None,
        index: Tensor | None,
        operation: str,
        backend: str,
        columns: Columns,
        parts: list[int],
        activation: int,
        dropout: philox.Dropout | None,
        work: plans.SpanWork,
    ) -> Tensor:
        projected = project(hidden, weight, columns.blocks)
        width_projected = None
        if table is not None and columns.width is not None:
            width_projected = table @ weight[:, columns.width : columns.width + table.shape[1]].T
        inputs = ProjectedInputs(scores, width_projected, index, bias, parts, activation)
        more = () if dropout is None else (dropout,)
        output: Tensor = REGISTERED[f"{operation}_forward"](backend, projected, work, inputs, second, *more)
        save(
            ctx, hidden, weight, bias, scores, table, second, index, projected, width_projected, operation, backend,
            columns, parts, activation, dropout, work,
        )  # fmt: skip
        ctx.text = f'{operation} has no second derivative on its compiled kernels; backend="eager" has it'
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[:6]
        return gradients(ctx, *Gradient.apply(ctx.text, _gradients, grad_output, *saved(ctx), wanted))


def _gradients(
    grad_output: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scores: Tensor | None,
    table: Tensor | None,
    second: Tensor | None,
    index: Tensor | None,
    projected: Tensor,
    width_projected: Tensor | None,
    operation: str,
    backend: str,
    columns: Columns,
    parts: list[int],
    activation: int,
    dropout: philox.Dropout | None,
    work: plans.SpanWork,
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    inputs = ProjectedInputs(scores, width_projected, index, bias, parts, activation)
    more = () if dropout is None else (dropout,)
    grad_projected, grad_scores, grad_width_projected, grad_bias, grad_second = REGISTERED[f"{operation}_backward"](
        backend, grad_output, projected, work, inputs, second, *more
    )
    with torch.autocast(hidden.device.type, enabled=False):
        grad_hidden, grad_weight, grad_table = project_backward(
            grad_projected, grad_width_projected, hidden, weight, table, columns, (*wanted[:2], wanted[4])
        )
    small = (grad_bias, grad_scores, grad_table, grad_second)
    kept = [grad if need else None for grad, need in zip(small, wanted[2:], strict=True)]
    return (grad_hidden, grad_weight, *kept)


def pool_projected(call: Call, operation: str, second: Tensor | None, dropout: philox.Dropout | None = None) -> Tensor:
    """The kernels' way over all parts but `max`."""
    output: Tensor = ProjectThenPool.apply(
        call.hidden, call.weight, call.bias, call.scores, call.table, second, call.width_index(always=False), operation,
        call.backend, call.columns, raw_parts(call), ACTIVATIONS.index(call.activation), dropout, call.work(),
    )  # fmt: skip
    return output


def pool(call: Call, parts: Sequence[str]) -> Tensor:
    """`span_pool` of some of the parts, by the call's own backend."""
    index = call.width_index(always=False)
    codes = [PARTS.index(part) for part in parts]
    output: Tensor = SpanPool.apply(call.hidden, call.scores, call.table, index, codes, call.backend, call.work())
    return output


def over_pooled_spans(call: Call) -> Call:
    """The same call with every span's pooled vector as a token of its own, which is all that the span holds."""
    pooled = pool(call, call.parts)
    rows = torch.arange(len(pooled), device=pooled.device)
    columns = Columns([0], None, None, call.columns.total)
    return replace(
        call, hidden=pooled, spans=(rows, rows + 1), parts=("start",), codes=[PARTS.index("start")], columns=columns,
        scores=None, table=None, width_rows=None,
    )  # fmt: skip
