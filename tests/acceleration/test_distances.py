"""Encoders whose attention looks at distances: rows that are long enough for all of them, tables that change, holes."""

from __future__ import annotations

import copy

import pytest
import torch
from agreement import PADDING, ROWS, assert_agrees, assert_original, encoder, in_float64, inputs_of
from torch import Tensor, nn

from spanbert_kernels import accelerate
from spanbert_kernels.acceleration.fused import FusedLayers
from spanbert_kernels.ops import backends

WITH_KERNELS = backends.without_kernels("encoder_stack", "cpu", torch.float32) is None
BY_DISTANCE = [name for name, row in ROWS.items() if row.distances]
WITH_TABLES = [name for name, row in ROWS.items() if row.relative is not None]


def with_far_apart(name: str) -> nn.Module:
    """One layer of an encoder that takes rows of more tokens than it has buckets of distances."""
    return encoder(name, num_hidden_layers=1, max_position_embeddings=200)


def states(model: nn.Module, mask: Tensor) -> Tensor:
    with torch.no_grad():
        hidden: Tensor = model(**inputs_of(model, mask)).last_hidden_state
    return hidden[mask]


@pytest.mark.parametrize("name", BY_DISTANCE)
def test_long_rows(name: str) -> None:
    model, mask = with_far_apart(name), torch.tensor([[c < n for c in range(180)] for n in (180, 30)])
    expected, exact = states(model, mask), states(in_float64(model), mask)
    report = accelerate(model)
    assert_agrees(states(model, mask), expected, exact)
    assert report.last_path == "packed-inference"


@pytest.mark.parametrize("way", ["fused", "separate"])
@pytest.mark.parametrize("name", WITH_TABLES)
def test_tables_follow_what_they_are_made_of(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANBERT_KERNELS_ENCODER", way)
    model, mask = encoder(name), PADDING["right"]
    own = copy.deepcopy(model)
    accelerate(model)
    before = states(model, mask)
    assert isinstance(model.forward._packed_layers.layers, FusedLayers) == (way == "fused" and WITH_KERNELS)
    made_of = model.forward._structure.parts.layers[0].relative.modules()
    names = {module: name for name, module in model.named_modules()}
    for module in made_of:
        with torch.no_grad():
            for each in (module, own.get_submodule(names[module])):
                each.weight.mul_(1.5)
        found = states(model, mask)
        assert not torch.equal(found, before)
        assert_agrees(found, states(own, mask), states(in_float64(own), mask))
        before = found


@pytest.mark.parametrize("name", BY_DISTANCE)
def test_holes_take_the_original_path(name: str) -> None:
    model = encoder(name)
    assert_original(model, "padding between real tokens, which counts", **inputs_of(model, PADDING["middle"]))
