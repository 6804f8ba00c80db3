"""Attention of tensors that lie in memory in any way: each gives the bits that a dense copy of it gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_checks import place_parameters
from places import ISAS, Place
from torch import Tensor

from spanbert_kernels.ops import cross_document_attention, document_attention

# The strides of a tensor [rows, heads, head_dim].
STRIDES: dict[str, Callable[[int, int, int], tuple[int, int, int]]] = {
    "expanded rows": lambda rows, heads, dim: (0, dim, 1),
    "expanded heads": lambda rows, heads, dim: (dim, 0, 1),
    "expanded columns": lambda rows, heads, dim: (heads, 1, 0),
    "one row": lambda rows, heads, dim: (0, 0, 1),
    "one number": lambda rows, heads, dim: (0, 0, 0),
    "dense, but not aligned": lambda rows, heads, dim: (heads * dim, dim, 1),
    "rows apart": lambda rows, heads, dim: (heads * dim + 5, dim, 1),
    "heads apart": lambda rows, heads, dim: (heads * (dim + 3), dim + 3, 1),
    "every other column": lambda rows, heads, dim: (2 * heads * dim, 2 * dim, 2),
    "heads first": lambda rows, heads, dim: (dim, rows * dim, 1),
    "columns before heads": lambda rows, heads, dim: (heads * dim, 1, heads),
    "transposed": lambda rows, heads, dim: (1, rows, rows * heads),
    "overlapping rows": lambda rows, heads, dim: (1, dim, 1),
    "overlapping heads": lambda rows, heads, dim: (heads * dim, 1, 1),
    "heads in blocks": lambda rows, heads, dim: (64, rows * 64 + dim, 1),
}
MARGIN = 4099  # numbers on both sides, also an odd one: no tensor begins at a multiple of a vector
# Rows of one panel of each instruction set's kernels, of less, and of more.
DIMS = (8, 16, 64, 37)
LENGTHS = {"small": (5, 1, 12, 9), "one row": (1,), "blocks": (131, 4)}
AT_EVERY_ISA = pytest.mark.parametrize(
    "backend", place_parameters(("cpu",), tuple(Place("cpu", isa) for isa in ISAS)), indirect=True
)


def laid_out(shape: tuple[int, int, int], strides: tuple[int, int, int], dtype: torch.dtype, seed: int) -> Tensor:
    """Random numbers in these strides, NaN at every other place of their memory."""
    # The stride of a dimension of one has no meaning.
    strides = tuple(10**9 + 1 if size == 1 else stride for size, stride in zip(shape, strides, strict=True))
    extent = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
    memory = torch.full((extent + 2 * MARGIN,), torch.nan, dtype=dtype)
    places = torch.arange(len(memory)).as_strided(shape, strides, MARGIN).unique()
    memory[places] = torch.randn(len(places), generator=torch.Generator().manual_seed(seed)).to(dtype)
    return memory.as_strided(shape, strides, MARGIN)


def of_documents(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor) -> Any:
    return document_attention(q, k, v, cu_seqlens, backend="cpu")


def of_clusters(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, normalize: str) -> Any:
    clusters, sides = torch.tensor([0, len(cu_seqlens) - 1]), {"queries": "tokens", "keys": "tokens"}
    return cross_document_attention(q, k, v, cu_seqlens, clusters, **sides, normalize=normalize, backend="cpu")


CALLS: dict[str, Callable[..., Any]] = {
    "documents": of_documents,
    "clusters, joint": lambda *tensors: of_clusters(*tensors, normalize="joint"),
    "clusters, pairwise": lambda *tensors: of_clusters(*tensors, normalize="pairwise"),
}


RUNS = [
    pytest.param(call, dtype, id=f"{call}, {str(dtype)[6:]}", marks=[pytest.mark.slow] if slow else [])
    for call in CALLS
    for dtype in (torch.float32, torch.float64, torch.bfloat16)
    for slow in [call == "clusters, pairwise" or dtype != torch.float32]
]


@AT_EVERY_ISA
@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize(("call", "dtype"), RUNS)
def test_any_layout_gives_the_bits_of_a_dense_copy(call: str, strides: str, dtype: torch.dtype, backend: str) -> None:
    """Each tensor in turn, the incoming gradient too, over short documents, one row, long documents, and head sizes."""
    for lengths in LENGTHS.values():
        cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
        for dim in DIMS if len(lengths) > 2 else DIMS[2:]:
            shape = (int(cu_seqlens[-1]), 2, dim)
            dense = {
                n: laid_out(shape, (2 * dim, dim, 1), dtype, seed) for seed, n in enumerate(("q", "k", "v", "grad"))
            }
            for seed, name in enumerate(dense):
                tensors = {**dense, name: laid_out(shape, STRIDES[strides](*shape), dtype, seed)}
                found = results(CALLS[call], tensors, cu_seqlens)
                copies = {n: t.clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
                for what, value, expected in zip(
                    ("output", "q", "k", "v"), found, results(CALLS[call], copies, cu_seqlens), strict=True
                ):
                    assert value.isfinite().all(), f"{what}, {name} {strides}, head_dim {dim}"
                    assert torch.equal(value, expected), f"{what}, {name} {strides}, head_dim {dim}"


def results(call: Callable[..., Any], tensors: dict[str, Tensor], cu_seqlens: Tensor) -> tuple[Tensor, ...]:
    leaves = [tensors[name].detach().requires_grad_() for name in "qkv"]
    output = call(*leaves, cu_seqlens)
    return (output, *torch.autograd.grad(output, leaves, tensors["grad"]))


@AT_EVERY_ISA
@pytest.mark.parametrize("pooled", ["sum", "mean"])
def test_the_gradient_of_pooled_tokens(pooled: str, backend: str) -> None:
    """Of a sum over tokens every row of the incoming gradient is the same memory."""
    leaves = [laid_out((40, 2, 64), (128, 64, 1), torch.float32, seed).requires_grad_() for seed in range(3)]
    output, factors = of_documents(*leaves, torch.tensor([0, 5, 12, 40])), torch.arange(128.0).view(2, 64)
    found = torch.autograd.grad((getattr(output, pooled)(0) * factors).sum(), leaves, retain_graph=True)
    rows = (factors / (1 if pooled == "sum" else 40)).repeat(40, 1, 1)
    for grad, expected in zip(found, torch.autograd.grad(output, leaves, rows), strict=True):
        assert torch.equal(grad, expected)
