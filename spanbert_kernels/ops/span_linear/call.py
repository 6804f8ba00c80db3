"""The checked inputs of a call of span_linear or span_score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spanbert_kernels.ops import checks, documents, plans, products
from spanbert_kernels.ops.backends import Operation
from spanbert_kernels.ops.choices import ACTIVATIONS, PARTS, Activation, Backend, Part
from spanbert_kernels.ops.plans import SpanPlan
from spanbert_kernels.ops.span_pool import check_parts, check_scores, check_table
from spanbert_kernels.ops.span_pool import reference as span_pool
from spanbert_kernels.ops.tokens import Tokens, check_tokens


class Columns(NamedTuple):
    """Where the columns of each part stand in a weight `[O, D]`, and its block in what is projected.

    Attributes:
        parts: indices of PARTS, all but `max`, those that read the same tokens side by side.
        blocks: of each tensor of tokens, the first columns of the H-wide blocks that it is multiplied by, in the order
            of `parts`, a head of `attention` after the other.
        start: the number of the block of `start`, -1 for a part not asked for.
        maximum: first column of `max`, if it was asked for.
        width: first column of `width`, if it was asked for.
        total: D.
    """

    parts: list[int]
    blocks: list[list[int]]
    start: int
    maximum: int | None
    width: int | None
    total: int


def columns_of(parts: Sequence[str], tokens: Tokens, heads: int, table_columns: int) -> Columns:
    """The columns that `span_pool` gives to `parts`.

    Example:
        >>> parts = ["start", "width", "attention"]
        >>> columns_of(parts, check_tokens(torch.zeros(9, 4), parts), heads=2, table_columns=3)
        Columns(parts=[0, 6, 5], blocks=[[0, 7, 11]], start=0, maximum=None, width=4, total=15)
    """
    first: dict[str, int] = {}
    total: Any = 0
    for part in parts:
        size = table_columns if part == "width" else tokens.columns(part) * (heads if part == "attention" else 1)
        first[part], total = total, total + size
    ordered = sorted((part for part in parts if part != "max"), key=lambda part: tokens.places.get(part, 0))
    blocks: list[list[int]] = [[] for _ in tokens.tensors]
    start = -1
    for part in ordered:
        if part == "start":
            start = sum(map(len, blocks))
        if part != "width":
            size = tokens.columns(part)
            blocks[tokens.places[part]] += [first[part] + size * i for i in range(heads if part == "attention" else 1)]
    codes = [PARTS.index(part) for part in ordered]
    return Columns(codes, blocks, start, first.get("max"), first.get("width"), total)


@dataclass(frozen=True)
class Call:
    """A call's inputs, checked, in float32 (float64 for a float64 hidden).

    Tokens in 16 bits have projections that 16 bits would round: an activation's kink would be on the wrong side for
    some, and its gradient off by all of it. So everything is widened once, and the result rounded once. The tokens and
    the weight alone may stay in 16 bits, where their product is one of 16 bits that is summed and kept in float32.

    Attributes:
        dtype: of the tokens that were given, and of the result.
        bias: `[O]`, or `[D, O]`, a row a document.
        cu_seqlens: offsets of the documents, where something differs by document.
    """

    backend: Backend
    dtype: torch.dtype
    tokens: Tokens
    spans: SpanPlan | tuple[Tensor, Tensor]
    parts: tuple[Part, ...]
    columns: Columns
    weight: Tensor
    bias: Tensor | None
    scores: Tensor | None
    table: Tensor | None
    width_rows: Callable[[Tensor], Tensor] | None
    activation: Activation
    cu_seqlens: Tensor | None

    @property
    def like(self) -> Tensor:
        """A tensor on the call's device, with a row a token."""
        return self.tokens.tensors[0]

    @property
    def wide(self) -> torch.dtype:
        """What everything is computed in."""
        return torch.promote_types(self.dtype, torch.float32)

    def widened(self) -> Call:
        return replace(self, tokens=self.tokens.to(self.wide), weight=self.weight.to(self.wide))

    def multiplies_16_bits(self) -> bool:
        """Whether the product of the tokens and the weight is one of 16 bits, summed in float32."""
        return (
            self.backend != "eager"
            and self.like.device.type in products.OF_16_BITS
            and self.dtype.itemsize == 2
            and self.weight.dtype == self.dtype
            and "max" not in self.parts
            and not self.fewer_products_over_spans()
        )

    def bounds(self) -> tuple[Tensor, Tensor]:
        """First token and token after the last of every span, int64 `[N]` each."""
        return self.spans.bounds() if isinstance(self.spans, SpanPlan) else self.spans

    def width_index(self, always: bool) -> Tensor | None:
        """The row of the width table of every span; kernels find the usual one for themselves, unless `always`."""
        if self.table is None or (self.width_rows is None and not always):
            return None
        start, end = self.bounds()
        return plans.width_index(end - start, len(self.table), self.width_rows)

    def document(self) -> Tensor | None:
        """The document of every span, int64 `[N]`, where something differs by document."""
        return None if self.cu_seqlens is None else documents.document_of_spans(self.cu_seqlens, *self.bounds())

    def bias_by_token(self) -> Tensor | None:
        """`[T, O]`, the bias of every token's document, where it differs."""
        if self.bias is None or self.bias.dim() == 1 or self.cu_seqlens is None:
            return None
        return documents.rows_of_documents(self.bias, documents.document_of(self.cu_seqlens, len(self.like)))

    def num_spans(self) -> int:
        return self.spans.num_spans if isinstance(self.spans, SpanPlan) else len(self.spans[0])

    def work(self) -> plans.SpanWork:
        return plans.work_for(self.spans, self.backend, len(self.like))

    def fewer_products_over_spans(self) -> bool:
        """Whether multiplying pooled spans costs less than multiplying tokens: N rows against T, equally long."""
        return self.num_spans() < len(self.like)


def check_call(
    operation: Operation,
    hidden: Tensor | Mapping[Part, Tensor],
    spans: Tensor | SpanPlan,
    parts: Sequence[Part],
    weight: Tensor,
    bias: Tensor | None,
    scores: Tensor | None,
    width_embedding: Tensor | None,
    activation: Activation,
    cu_seqlens: Tensor | None,
    width_rows: Callable[[Tensor], Tensor] | None,
    end_inclusive: bool,
    validate: bool,
    backend: Backend | None,
) -> Call:
    """Everything that both operations check, and the backend of the call."""
    check_parts(parts)
    tokens = check_tokens(hidden, parts)
    like = tokens.tensors[0]
    checks.check_choice("activation", activation, ACTIVATIONS)
    plans.check_width_rows(width_rows)
    resolved = plans.resolve(spans, like, end_inclusive, validate)
    chosen = operation.choose(like, backend)
    scores = check_scores(scores, like, parts)
    table = check_table(width_embedding, like, parts)
    heads, table_columns = 1 if scores is None else scores.shape[1], 0 if table is None else table.shape[1]
    columns = columns_of(parts, tokens, heads, table_columns)
    checks.check_floating("weight", weight, 2, "[O, D]")
    checks.check_device("weight", weight, "hidden", like)
    if weight.shape[1] != columns.total:
        raise ValueError(
            f"weight must have shape [O, D] with D = {columns.total}, the columns of {', '.join(parts)}, "
            f"got {list(weight.shape)}"
        )
    if cu_seqlens is not None:
        checks.check_offsets("cu_seqlens", cu_seqlens, len(like), "tokens")
        checks.check_device("cu_seqlens", cu_seqlens, "hidden", like)
        cu_seqlens = cu_seqlens.long().contiguous()
    bias = check_vector("bias", bias, weight.shape[0], like, cu_seqlens)
    table = None if table is None else table.to(torch.promote_types(like.dtype, torch.float32))
    call = Call(
        chosen, like.dtype, tokens, resolved, tuple(parts), columns, weight, bias, scores, table, width_rows,
        activation, cu_seqlens,
    )  # fmt: skip
    return call if call.multiplies_16_bits() else call.widened()


def check_vector(
    name: str, vector: Tensor | None, size: int, like: Tensor, cu_seqlens: Tensor | None = None
) -> Tensor | None:
    """A vector of `size` numbers, or with offsets one a document, widened; or None."""
    if vector is None:
        return None
    by_document = cu_seqlens is not None and isinstance(vector, Tensor) and vector.dim() == 2
    shape = [len(cu_seqlens) - 1, size] if cu_seqlens is not None and by_document else [size]
    checks.check_floating(name, vector, len(shape), f"[{size}]")
    checks.check_device(name, vector, "hidden", like)
    if list(vector.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {list(vector.shape)}")
    return vector.to(torch.promote_types(like.dtype, torch.float32))


def eager(
    call: Call,
    function: Callable[..., Tensor],
    *rest: Any,
    sources: Sequence[Tensor | None] = (),
) -> Tensor:
    """`function(tokens, start, end, ..., document, rows, *rest)` over all spans, by chunks without gradients."""
    start, end = call.bounds()
    index, rows = call.width_index(always=True), torch.arange(len(start), device=start.device)
    document = call.document()

    def over(part: slice) -> Tensor:
        return function(
            call.tokens, start[part], end[part], call.parts, call.scores, call.table,
            None if index is None else index[part], call.weight, call.bias, call.activation,
            None if document is None else document[part], rows[part], *rest,
        )  # fmt: skip

    tensors = (*call.tokens.tensors, call.weight, call.bias, call.scores, call.table, *sources)
    differentiable = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
    if torch.compiler.is_compiling() or differentiable or len(start) == 0:
        return over(slice(None))
    columns = max(tensor.shape[1] for tensor in call.tokens.tensors)
    elements = max(1, int((end - start).max()) * columns, len(call.weight))
    step = max(1, span_pool.EAGER_CHUNK // elements)
    return torch.cat([over(slice(i, i + step)) for i in range(0, len(start), step)])
