"""The rows of pair_pool's and pair_linear's tables, and the loops that they are compared with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from op_checks import Case, Tensors
from torch import Tensor

from spanbert_kernels.ops import pair_linear, pair_pool

LINEAR = ["y", "feature", "x-y", "x", "x+y"]
EVERY = ["x*y", "y", "|x-y|", "feature", "y-x", "x/y", "x", "y*y", "x+y", "y"]
FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "x": lambda x, y: x,
    "y": lambda x, y: y,
    "x*y": torch.mul,
    "x+y": torch.add,
    "x-y": torch.sub,
    "y-x": lambda x, y: y - x,
    "x/y": torch.div,
    "y/x": lambda x, y: y / x,
    "y*y": lambda x, y: y * y,
    "y+x": torch.add,
    "|x-y|": lambda x, y: torch.where(x > y, x - y, torch.where(x < y, y - x, 0 * x)),
}


def pairs_by_loop(
    first: Tensor,
    pairs: Tensor,
    second: Tensor | None = None,
    features: Tensor | None = None,
    feature_rows: Tensor | None = None,
    first_sentinel: Tensor | None = None,
    second_sentinel: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    parts: list[str],
) -> Tensor:
    """Pair by pair and part by part, from the definition."""
    second = first if second is None else second
    table = first[:0] if features is None else features
    sizes = {"x": first.shape[1], "y": second.shape[1], "feature": table.shape[1]}
    columns = sum(sizes.get(part, first.shape[1]) for part in parts)
    used = [tensor for tensor in (first, second, features, first_sentinel, second_sentinel) if tensor is not None]
    rows = [first.new_zeros(0, columns) + sum(0 * tensor.sum() for tensor in used)]
    for n, (i, j) in enumerate(pairs.tolist()):
        if mask is not None and not mask[n]:
            rows.append(first.new_zeros(1, columns))
            continue
        x = first[i] if i >= 0 or first_sentinel is None else first_sentinel
        y = second[j] if j >= 0 or second_sentinel is None else second_sentinel
        blocks = [
            table[int(feature_rows[n])] if part == "feature" and feature_rows is not None else FORMULAS[part](x, y)
            for part in parts
        ]
        rows.append(torch.cat(blocks)[None])
    return torch.cat(rows)


def linear_by_loop(weight: Tensor, bias: Tensor | None = None, **pooling: Any) -> Tensor:
    """The pooled pairs, and the layer over them."""
    values = pairs_by_loop(**pooling) @ weight.T
    return values if bias is None else values + bias


def pair_inputs(
    size: int,
    *,
    rows: int = 6,
    columns: int = 5,
    pairs: int = 9,
    other: bool = False,
    table: int = 0,
    sentinels: bool = False,
    masked: bool = False,
) -> Tensors:
    """Random inputs; `other` gives a second tensor. Rows are at least 0.5 from 0, to be divided by."""
    generator = torch.Generator().manual_seed(size)

    def randn(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return values + torch.where(values < 0, -0.5, 0.5)

    count, first_rows, second_rows = pairs * size, rows * size, rows * size + (3 if other else 0)
    tensors = {"first": randn(first_rows, columns)}
    if other:
        tensors["second"] = randn(second_rows, columns)
    lowest = -1 if sentinels else 0
    indices = [torch.randint(lowest, most, (count,), generator=generator) for most in (first_rows, second_rows)]
    tensors["pairs"] = torch.stack(indices, 1)
    if table:
        tensors["features"] = randn(table, 3)
        tensors["feature_rows"] = torch.randint(0, table, (count,), generator=generator)
    if sentinels:
        tensors |= {"first_sentinel": randn(columns), "second_sentinel": randn(columns)}
    if masked:
        tensors["mask"] = torch.rand(count, generator=generator) < 0.7
        tensors["pairs"][~tensors["mask"]] = -7
    return tensors


tiny = partial(pair_inputs, rows=3, columns=2, pairs=5)


def without_pairs(size: int) -> Tensors:
    tensors = pair_inputs(size, other=True, table=2)
    return {**tensors, "pairs": tensors["pairs"][:0], "feature_rows": tensors["feature_rows"][:0]}


def without_rows(size: int) -> Tensors:
    """No pair counts, and there is nothing to read."""
    tensors = pair_inputs(size, masked=True, table=1)
    return {**tensors, "first": tensors["first"][:0], "mask": torch.zeros_like(tensors["mask"])}


def of_two_sizes(size: int) -> Tensors:
    tensors = pair_inputs(size, other=True)
    return {**tensors, "second": tensors["second"][:, :2].contiguous()}


def call_pooled(first: Tensor, pairs: Tensor, second: Tensor | None = None, **rest: Any) -> Tensor:
    return pair_pool(first, second, pairs, **rest)


def call_linear(first: Tensor, pairs: Tensor, second: Tensor | None = None, **rest: Any) -> Tensor:
    return pair_linear(first, second, pairs, **rest)


def pooled_row(
    name: str, parts: list[str], inputs: Callable[[int], Tensors], *, large: bool = False, compiled: bool = False
) -> Case:
    call, oracle = partial(call_pooled, parts=parts), partial(pairs_by_loop, parts=parts)
    return Case(name, inputs, call, oracle, twice=("eager",), large=large, compiled=("cpu",) if compiled else ())


def columns_of(tensors: Tensors, parts: list[str]) -> int:
    first = tensors["first"]
    second, table = tensors.get("second", first), tensors.get("features", first[:0])
    sizes = {"y": second.shape[1], "feature": table.shape[1]}
    return sum(sizes.get(part, first.shape[1]) for part in parts)


def layer_inputs(
    size: int, inputs: Callable[[int], Tensors], parts: list[str], outputs: int = 7, bias: bool = True
) -> Tensors:
    """`inputs`, and a layer's weight."""
    tensors = inputs(size)
    generator = torch.Generator().manual_seed(20 + size)
    columns = columns_of(tensors, parts)
    weight = torch.randn(outputs, columns, generator=generator, dtype=torch.float64) / max(columns, 1) ** 0.5
    more = {"bias": torch.randn(outputs, generator=generator, dtype=torch.float64)} if bias else {}
    return {**tensors, "weight": weight, **more}


def linear_terms(tensors: Tensors, gradients: Tensors, incoming: list[Tensor], parts: list[str]) -> dict[str, float]:
    """The gradients of what many pairs read sum signed numbers: the loop's on numbers without signs."""
    values = {
        name: (t.abs() if t.is_floating_point() else t).detach().requires_grad_(t.is_floating_point())
        for name, t in tensors.items()
    }
    output = linear_by_loop(**values, parts=[part.replace("-", "+").strip("|") for part in parts])
    leaves = {name: t for name, t in values.items() if t.requires_grad}
    found = torch.autograd.grad(output, list(leaves.values()), incoming[0].abs(), allow_unused=True)
    sizes = {name: float(g.abs().max()) for name, g in zip(leaves, found, strict=True) if g is not None and g.numel()}
    return {**sizes, **({"output 0": float(output.detach().max())} if output.numel() else {})}


def linear_row(
    name: str,
    parts: list[str],
    inputs: Callable[[int], Tensors],
    operators: tuple[str, ...] = ("pair_pool_forward", "pair_pool_backward"),
    *,
    bias: bool = True,
    outputs: int = 7,
    large: bool = False,
    compiled: bool = False,
) -> Case:
    return Case(
        name,
        partial(layer_inputs, inputs=inputs, parts=parts, outputs=outputs, bias=bias),
        partial(call_linear, parts=parts),
        partial(linear_by_loop, parts=parts),
        twice=("eager",),
        terms=partial(linear_terms, parts=parts),
        operators=operators,
        large=large,
        compiled=("cpu",) if compiled else (),
    )
