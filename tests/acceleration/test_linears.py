"""Every way of multiplying by a weight, also those that another processor would choose."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from agreement import PADDING, assert_agrees, encoder, in_float64, inputs
from torch import Tensor, nn
from transformers.activations import ACT2FN

from spanbert_kernels import accelerate
from spanbert_kernels.acceleration import inference, linears, packed

FLOAT, HALVES = [torch.float32], [torch.bfloat16, torch.float16]
WAYS: dict[str, tuple[linears.Linears, list[torch.dtype]]] = {
    "plain": (linears.PLAIN, FLOAT + HALVES),
    "onednn, fused": (linears.ONEDNN_FUSED, FLOAT + HALVES),
    "onednn": (linears.ONEDNN, FLOAT + HALVES),
    "by size": (linears.by_size(linears.ONEDNN_FUSED, linears.PLAIN, 4), FLOAT),
    "packed": (linears.PACKED, FLOAT + HALVES),
}
CASES = [pytest.param(way, dtype, id=f"{name}-{dtype}") for name, (way, dtypes) in WAYS.items() for dtype in dtypes]


def skip_if_unable(way: linears.Linears, dtype: torch.dtype) -> None:
    needs_onednn = way not in (linears.PLAIN, linears.PACKED)
    if needs_onednn and not linears._onednn_works(dtype):
        pytest.skip(f"oneDNN does not multiply {dtype} here")


def random(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize(("way", "dtype"), CASES)
@pytest.mark.parametrize("rows", [0, 1, 3, 4, 200])
@pytest.mark.parametrize("biased", [False, True])
def test_products(way: linears.Linears, dtype: torch.dtype, rows: int, biased: bool) -> None:
    skip_if_unable(way, dtype)
    x, weight = random(rows, 48, dtype=dtype), random(32, 48, dtype=dtype)
    residual = random(rows, 32, dtype=dtype)
    bias = random(32, dtype=dtype) if biased else None
    kept = x.clone(), weight.clone(), residual.clone()
    with torch.no_grad():
        packed = way.pack(weight)
        result, added = way.linear(x, packed, bias), way.linear_add(x, residual, packed, bias)
        eager = nn.functional.linear(x, weight, bias)
        exact = nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    assert result.shape == added.shape == (rows, 32)
    assert all(torch.equal(before, after) for before, after in zip(kept, (x, weight, residual), strict=True))
    if rows == 200:  # the rule compares largest errors, and needs many numbers for it
        assert_agrees(result, eager, exact)
        assert_agrees(added, eager + residual, exact + residual.double())


@pytest.mark.parametrize(("way", "dtype"), CASES)
@pytest.mark.parametrize("name", ["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python", "relu", "tanh"])
def test_activations(way: linears.Linears, dtype: torch.dtype, name: str) -> None:
    skip_if_unable(way, dtype)
    x, weight, bias = random(200, 48, dtype=dtype), random(32, 48, dtype=dtype), random(32, dtype=dtype)
    with torch.no_grad():
        result = way.linear_activation(x, way.pack(weight), bias, ACT2FN[name])
        eager = ACT2FN[name](nn.functional.linear(x, weight, bias))
        exact = ACT2FN[name](nn.functional.linear(x.double(), weight.double(), bias.double()))
    assert_agrees(result, eager, exact)


@pytest.mark.parametrize(("way", "dtype"), CASES)
@pytest.mark.parametrize("name", ["ReLU", "GELUActivation"])
def test_activations_of_the_users_own_keep_their_effect(way: linears.Linears, dtype: torch.dtype, name: str) -> None:
    """Also where their class is called as one that is fused."""
    skip_if_unable(way, dtype)

    class Negation(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.functional.gelu

        def forward(self, x: Tensor) -> Tensor:
            return -x

    Negation.__name__ = name
    x, weight = random(5, 48, dtype=dtype), random(32, 48, dtype=dtype)
    with torch.no_grad():
        packed = way.pack(weight)
        assert torch.equal(way.linear_activation(x, packed, None, Negation()), -way.linear(x, packed, None))


@pytest.mark.parametrize(("way", "dtype"), CASES)
def test_whole_encoder(way: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_if_unable(way, dtype)
    monkeypatch.setenv("SPANBERT_KERNELS_ENCODER", "separate")
    for module in (packed, inference):
        monkeypatch.setattr(module, "linears_for", lambda dtype: way)
    model, mask = encoder().to(dtype), PADDING["right"]
    accelerated = copy.deepcopy(model)
    accelerate(accelerated)
    with torch.no_grad():
        states = [each(**inputs(mask))[0][mask] for each in (accelerated, model, in_float64(model))]
    assert accelerated.forward._packed_layers.layers.linears is way
    assert_agrees(*states)
