"""Gradients of what tens of thousands of spans, pairs or rows read: long sums keep their digits."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from op_checks import Tensors, place_parameters
from places import ISAS, Place
from torch import Tensor

from spanbert_kernels import ops
from spanbert_kernels.testing import deviation

READERS, TOKENS, COLUMNS = 20_000, 4, 5
# Machine epsilons of the largest sum; one addend behind the other it is off by 25 of them.
ROUNDINGS = 3
NUMBER = torch.arange(READERS)
SAME = torch.zeros(READERS, 2, dtype=torch.int64)
SPANS = {
    "one start": torch.stack([0 * NUMBER, NUMBER % TOKENS], 1),
    "one end": torch.stack([NUMBER % TOKENS, 0 * NUMBER + TOKENS - 1], 1),
}
PARTS = ["start", "end", "mean", "sum", "width"]
POOLED = len(PARTS) * COLUMNS


class Row(NamedTuple):
    call: Callable[..., Tensor]
    shapes: dict[str, tuple[int, ...]]


def of_pairs(operation: Callable[..., Tensor], parts: list[str], **shapes: tuple[int, ...]) -> Row:
    def call(first: Tensor, second: Tensor, features: Tensor, backend: str, **layer: Tensor) -> Tensor:
        given = {**layer, "features": features, "feature_rows": SAME[:, 0]}
        return operation(first, second, SAME, parts, backend=backend, **given)

    return Row(call, {"first": (TOKENS, COLUMNS), "second": (2, COLUMNS), "features": (2, COLUMNS), **shapes})


def of_spans(operation: Callable[..., Tensor], spans: str, **shapes: tuple[int, ...]) -> Row:
    cu_seqlens = {"cu_seqlens": torch.tensor([0, TOKENS])} if len(shapes.get("bias", ())) == 2 else {}

    def call(hidden: Tensor, width_embedding: Tensor, backend: str, **layer: Tensor) -> Tensor:
        given = {**layer, **cu_seqlens, "width_embedding": width_embedding}
        return operation(hidden, SPANS[spans], PARTS, backend=backend, **given)

    return Row(call, {"hidden": (TOKENS, COLUMNS), "width_embedding": (2, COLUMNS), **shapes})


def gathered(hidden: Tensor, backend: str) -> Tensor:
    return ops.span_gather(hidden, SPANS["one end"], backend=backend)[0]


def normed(weight: Tensor, bias: Tensor, backend: str) -> Tensor:
    x = torch.linspace(-1, 1, READERS * COLUMNS, dtype=weight.dtype).view(COLUMNS, READERS).T
    return ops.dropout_add_layer_norm(x, x.cos(), weight, bias, backend=backend)


LAYER: dict[str, tuple[int, ...]] = {"weight": (COLUMNS, POOLED), "bias": (COLUMNS,)}
SECOND: dict[str, tuple[int, ...]] = {"out_weight": (12, COLUMNS), "out_bias": (12,)}
OF_DOCUMENTS: dict[str, tuple[int, ...]] = {"bias": (1, COLUMNS), "out_weight": (1, 3, COLUMNS), "out_bias": (1, 3)}
ROWS = {
    "pair_pool": of_pairs(ops.pair_pool, ["x", "y", "x*y", "feature"]),
    "pair_linear": of_pairs(ops.pair_linear, ["x", "y", "feature"], weight=(COLUMNS, 3 * COLUMNS), bias=(COLUMNS,)),
    "span_gather": Row(gathered, {"hidden": (TOKENS, COLUMNS)}),
    "span_pool, one start": of_spans(ops.span_pool, "one start"),
    "span_pool, one end": of_spans(ops.span_pool, "one end"),
    "span_linear, one start": of_spans(ops.span_linear, "one start", **LAYER),
    "span_linear, one end": of_spans(ops.span_linear, "one end", **LAYER),
    "span_score, one score": of_spans(ops.span_score, "one end", **LAYER, out_weight=(COLUMNS,)),
    "span_score, many scores": of_spans(ops.span_score, "one end", **LAYER, **SECOND),
    "span_score, by document": of_spans(ops.span_score, "one end", **LAYER | OF_DOCUMENTS),
    "dropout_add_layer_norm": Row(normed, {"weight": (COLUMNS,), "bias": (COLUMNS,)}),
}


def gradients(row: Row, backend: str, dtype: torch.dtype) -> Tensors:
    """All of one sign: what is lost is lost by the length of the sums, not where they cancel."""
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.rand(shape, generator=generator) for name, shape in row.shapes.items()}
    leaves = {name: values.to(dtype).requires_grad_() for name, values in drawn.items()}
    output = row.call(**leaves, backend=backend)
    incoming = torch.rand(output.shape, generator=generator).to(dtype)
    return dict(zip(leaves, torch.autograd.grad(output, list(leaves.values()), incoming), strict=True))


@functools.cache
def exact(name: str) -> Tensors:
    return gradients(ROWS[name], "eager", torch.float64)


@pytest.mark.parametrize("backend", place_parameters(("cpu",), tuple(Place("cpu", isa) for isa in ISAS)), indirect=True)
@pytest.mark.parametrize("name", ROWS)
def test_long_sums_keep_their_digits(name: str, backend: str) -> None:
    """And are the same bits for any number of threads."""
    found = gradients(ROWS[name], backend, torch.float32)
    torch.set_num_threads(3)
    again = gradients(ROWS[name], backend, torch.float32)
    for leaf, gradient in found.items():
        expected = exact(name)[leaf]
        off = deviation(gradient, expected) / float(expected.abs().max()) / torch.finfo(torch.float32).eps
        assert off <= ROUNDINGS, f"gradient of {leaf}: off by {off:.1f} machine epsilons"
        assert torch.equal(gradient, again[leaf]), f"gradient of {leaf}: other bits with 3 threads"
