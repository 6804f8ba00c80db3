"""The rows of span_pool's table, and the loop that they are compared with."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from op_checks import Case, Tensors, no_terms, unchanged
from torch import Tensor

from spanbert_kernels.ops import enumerate_spans, plan_spans, span_pool

ALL = ["width", "max", "start", "attention", "mean", "end", "sum"]
LINEAR = ["start", "end", "mean", "sum", "width"]


def first_maximal(tokens: Tensor) -> Tensor:
    """The maximum of each column: the first NaN, else the first of the largest (argmax names the first of equals)."""
    nan = tokens.isnan()
    position = torch.where(nan.any(0), nan.int().argmax(0), tokens.nan_to_num(nan=0.0).argmax(0))
    return tokens.gather(0, position[None])[0]


def pool_by_loop(
    hidden: Tensor,
    spans: Tensor,
    scores: Tensor | None = None,
    width_embedding: Tensor | None = None,
    *,
    parts: list[str],
    end_inclusive: bool = True,
    width_rows: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Span by span and part by part, from the definition."""
    heads = (
        hidden[:, :0] if scores is None else scores.view(len(hidden), -1 if len(hidden) else scores[..., None].shape[1])
    )
    table = hidden[:0] if width_embedding is None else width_embedding
    sizes = {"attention": hidden.shape[1] * heads.shape[1], "width": table.shape[1]}
    columns = sum(sizes.get(part, hidden.shape[1]) for part in parts)

    def row_of(width: int) -> int:
        return min(width, len(table)) - 1 if width_rows is None else int(width_rows(torch.tensor([width])))

    makers: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "start": lambda tokens, _: tokens[0],
        "end": lambda tokens, _: tokens[-1],
        "sum": lambda tokens, _: tokens.sum(0),
        "mean": lambda tokens, _: tokens.mean(0),
        "max": lambda tokens, _: first_maximal(tokens),
        "attention": lambda tokens, inside: (torch.softmax(inside, 0).T @ tokens).flatten(),
        "width": lambda tokens, _: table[row_of(len(tokens))],
    }
    # A list of rows has a cheap gradient; a slice's would be as large as hidden.
    tokens_of, heads_of = hidden.unbind(0), heads.unbind(0)
    rows = [hidden.new_zeros(0, columns) + 0 * hidden.sum()]
    for start, last in spans.tolist():
        end = last + 1 if end_inclusive else last
        if end <= start:
            rows.append(hidden.new_zeros(1, columns))
        else:
            tokens, inside = torch.stack(tokens_of[start:end]), torch.stack(heads_of[start:end])
            rows.append(torch.cat([makers[part](tokens, inside) for part in parts])[None])
    return torch.cat(rows)


def buckets(widths: Tensor) -> Tensor:
    """Rows 0, 1, 2, 2, 3, 3, ... for the widths 1, 2, 3, 4, 5, 6, ..."""
    return torch.bucketize(widths, torch.tensor([1, 2, 4], device=widths.device))


def random_spans(count: int, tokens: int, width: int, generator: torch.Generator) -> Tensor:
    start = torch.randint(0, tokens, (count,), generator=generator)
    length = torch.randint(0, width + 1, (count,), generator=generator)  # 0: an empty span
    return torch.stack([start, (start + length).clamp(max=tokens) - 1], 1)


def pool_inputs(
    size: int, *, tokens: int = 9, columns: int = 5, spans: int = 8, width: int = 5, heads: int = 0, table: int = 0
) -> Tensors:
    """Random inputs; `heads` 0 leaves the scores out, 1 gives them as `[T]`."""
    generator = torch.Generator().manual_seed(size)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    result = {"hidden": randn(tokens * size, columns)}
    result["spans"] = random_spans(spans * size, tokens * size, width, generator)
    if heads:
        result["scores"] = 2 * (randn(tokens * size) if heads == 1 else randn(tokens * size, heads))
    if table:
        result["width_embedding"] = randn(table, 3)
    return result


def without_spans(size: int) -> Tensors:
    return {**pool_inputs(size, heads=2, table=3), "spans": torch.zeros(0, 2, dtype=torch.int64)}


def without_tokens(size: int) -> Tensors:
    scores = torch.zeros(0, 2, dtype=torch.float64)
    spans = torch.tensor([[0, -1], [0, -1]] * size)
    return {
        **pool_inputs(size, table=3),
        "hidden": torch.zeros(0, 5, dtype=torch.float64),
        "spans": spans,
        "scores": scores,
    }


def documents(size: int) -> Tensors:
    cu_seqlens = torch.tensor([0, 4 * size, 4 * size, 4 * size + 1, 7 * size + 1])
    floating = pool_inputs(1, tokens=7 * size + 1, heads=2, table=2)
    return {**{n: t for n, t in floating.items() if n != "spans"}, "cu_seqlens": cu_seqlens}


def enumerated_by_loop(cu_seqlens: Tensor, max_width: int) -> Tensor:
    offsets = cu_seqlens.tolist()
    pairs = [
        (start, last)
        for begin, end in itertools.pairwise(offsets)
        for start in range(begin, end)
        for last in range(start, min(start + max_width, end))
    ]
    return torch.tensor(pairs, dtype=torch.int64).view(-1, 2)


def enumerated_oracle(cu_seqlens: Tensor, **tensors: Tensor) -> Tensor:
    return pool_by_loop(spans=enumerated_by_loop(cu_seqlens, 3), parts=ALL, **tensors)


def with_plan(tensors: Tensors, **options: Any) -> dict[str, Any]:
    tokens = next(tensor for name, tensor in tensors.items() if name.startswith("hidden"))
    return {**tensors, "spans": plan_spans(tensors["spans"], num_tokens=len(tokens), **options)}


def with_half_open_plan(tensors: Tensors) -> dict[str, Any]:
    """The plan of the same spans, given by the token after their last."""
    step = torch.tensor([0, 1], device=tensors["spans"].device)
    return with_plan({**tensors, "spans": tensors["spans"] + step}, end_inclusive=False)


def with_enumeration(tensors: Tensors, widest: int = 3) -> dict[str, Any]:
    rest = {name: t for name, t in tensors.items() if name != "cu_seqlens"}
    return {**rest, "spans": enumerate_spans(tensors["cu_seqlens"], widest)}


def score_terms(tensors: Tensors, gradients: Tensors, incoming: list[Tensor]) -> dict[str, float]:
    """A score's gradient is what its token gives less what its spans give: both are as large as hidden x gradient."""
    products = (tensors["hidden"] * gradients["hidden"]).abs().sum(1)
    return {"scores": float(products.max())} if len(products) else {}


def largest_score(tensors: Tensors) -> float:
    scores = tensors.get("scores")
    return float(scores.abs().max()) if scores is not None and scores.numel() else 0.0


def inputs_by_part(size: int) -> Tensors:
    """`start` and `width` of one tensor, the others of a wider one."""
    tensors = pool_inputs(size, table=3)
    other = torch.randn(len(tensors["hidden"]), 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return {**tensors, "other": other}


def call_by_part(hidden: Tensor, other: Tensor, **rest: Any) -> Tensor:
    return span_pool({"sum": other, "start": hidden, "end": other}, parts=["sum", "width", "start", "end"], **rest)


def loop_by_part(hidden: Tensor, other: Tensor, spans: Tensor, width_embedding: Tensor) -> Tensor:
    sources: dict[str, Tensor] = {"sum": other, "width": hidden, "start": hidden, "end": other}
    return torch.cat(
        [
            pool_by_loop(source, spans, None, width_embedding if part == "width" else None, parts=[part])
            for part, source in sources.items()
        ],
        1,
    )


def row(
    name: str,
    parts: list[str],
    inputs: Callable[[int], Tensors],
    *,
    large: bool = False,
    planned: bool = False,
    **options: Any,
) -> Case:
    """A case over a span tensor, or over the plan of it."""
    twice = ("cuda", "triton", "cpu", "eager") if set(parts) <= set(LINEAR) else ("eager",)
    call, oracle = partial(span_pool, parts=parts, **options), partial(pool_by_loop, parts=parts, **options)
    arguments = with_plan if planned else unchanged
    terms = score_terms if "attention" in parts else no_terms
    compiled = ("cpu",) if name in ("all parts", "plan, linear", "max") else ()
    return Case(
        name, inputs, call, oracle, arguments=arguments, twice=twice, terms=terms, compiled=compiled, large=large,
        exponents=("scores",), logits=largest_score,
    )  # fmt: skip


CASES = (
    row("all parts", ALL, partial(pool_inputs, heads=2, table=3)),
    row("linear parts", LINEAR, partial(pool_inputs, table=3)),
    row("max", ["max"], pool_inputs),
    row("attention, one head", ["attention"], partial(pool_inputs, heads=1)),
    row("width buckets", ["mean", "width"], partial(pool_inputs, table=4), width_rows=buckets),
    row("half-open", ["start", "end", "max"], pool_inputs, end_inclusive=False),
    row("plan", ALL, partial(pool_inputs, heads=2, table=3), planned=True),
    row("plan, linear", LINEAR, partial(pool_inputs, table=3), planned=True),
    row("plan, width buckets", ["width", "sum"], partial(pool_inputs, table=4), planned=True, width_rows=buckets),
    Case(
        "enumerated",
        documents,
        partial(span_pool, parts=ALL),
        enumerated_oracle,
        arguments=with_enumeration,
        twice=("eager",),
        terms=score_terms,
        exponents=("scores",),
        logits=largest_score,
    ),
    Case(
        "a tensor per part",
        inputs_by_part,
        call_by_part,
        loop_by_part,
        twice=("cuda", "triton", "cpu", "eager"),
        operators=("span_pool_forward",) * 2 + ("span_pool_backward",) * 2,
        compiled=(),
    ),
    row("no spans", ALL, without_spans),
    row("no tokens", ALL, without_tokens),
    # Two tiles of columns with a rest, several chunks of spans, several independent ranges of the backward.
    row("large", ALL, partial(pool_inputs, tokens=500, columns=131, spans=600, width=5, heads=2, table=5), large=True),
    row(
        "large plan",
        ALL,
        partial(pool_inputs, tokens=120, columns=139, spans=150, heads=3, table=5),
        large=True,
        planned=True,
    ),
)
