"""Encoders whose attention looks at distances: rows that are long enough for all of them, tables that change, holes."""

from __future__ import annotations

import copy

import pytest
import torch
from agreement import (
    NO_DROPOUT,
    PADDING,
    ROWS,
    assert_agrees,
    assert_equal,
    assert_original,
    encoder,
    exact,
    head,
    in_float64,
    inputs_of,
)
from torch import Tensor, nn
from transformers import ModernBertForMultipleChoice, ModernBertForSequenceClassification

from spanbert_kernels import accelerate
from spanbert_kernels.acceleration.fused import FusedLayers
from spanbert_kernels.ops import backends

WITH_KERNELS = backends.without_kernels("encoder_stack", "cpu", torch.float32) is None
pytestmark = pytest.mark.filterwarnings("ignore::spanbert_kernels.acceleration.AccelerationWarning")
BY_DISTANCE = [name for name, row in ROWS.items() if row.distances]
WITH_TABLES = [name for name, row in ROWS.items() if row.relative is not None]


def with_far_apart(name: str) -> nn.Module:
    """An encoder that takes rows of more tokens than it has buckets of distances, or than a window lets through."""
    return encoder(name, num_hidden_layers=2, max_position_embeddings=200)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", BY_DISTANCE)
def test_16_bits(name: str, dtype: torch.dtype) -> None:
    model, mask = encoder(name).to(dtype), PADDING["right"]
    expected, exact = states(model, mask), states(in_float64(model), mask)
    accelerate(model)
    assert_agrees(states(model, mask), expected, exact)


def test_a_window_in_one_call_of_all_layers() -> None:
    model, mask = encoder("modernbert"), PADDING["right"]
    accelerate(model)
    states(model, mask)
    layers = model.forward._packed_layers.layers
    assert isinstance(layers, FusedLayers) == WITH_KERNELS
    assert [parts.window for parts in layers.encoder.layers] == [None, 2]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", [name for name in WITH_TABLES if name != "deberta"])  # which itself fails there
def test_tables_under_autocast(name: str, training: bool) -> None:
    """Weights are float32, queries bfloat16."""
    model, mask = encoder(name, **NO_DROPOUT), PADDING["right"]
    batch, reference = inputs_of(model, mask), in_float64(model)
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16):
        expected = model(**batch).last_hidden_state[mask]
        report = accelerate(model)
        found = model(**batch).last_hidden_state[mask]
    with torch.no_grad():
        assert_agrees(found.detach(), expected.detach(), reference(**batch).last_hidden_state[mask])
    assert report.last_path == ("packed-training (gradients are on)" if training else "packed-inference")
    if training:
        made_of = model.forward._structure.parts.layers[0].relative.modules()[0].weight
        found.sum().backward()
        assert made_of.grad.dtype == torch.float32


def test_16_bits_are_turned_in_single_precision() -> None:
    """As transformers does it in ModernBERT."""
    model = encoder("modernbert")
    accelerate(model)
    states(model, PADDING["right"])
    angles = model.forward._structure.parts.angles
    assert len(angles) == 2
    for each in angles:
        assert each.rotation(torch.arange(3), torch.bfloat16).cos.dtype == torch.float32


@pytest.mark.parametrize(("pooling", "path"), [("mean", "packed"), ("cls", "original: the token that")])
def test_a_head_that_may_take_the_mean(pooling: str, path: str) -> None:
    model = head(ModernBertForSequenceClassification, classifier_pooling=pooling).double()
    with torch.no_grad():
        (result, _), (expected, _) = exact(model, path, **inputs_of(model, PADDING["left"]))
    assert_equal(result.logits, expected.logits)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_head_that_finds_the_first_real_token(pooling: str) -> None:
    model = head(ModernBertForMultipleChoice, classifier_pooling=pooling).double()
    batch = {key: value[None] for key, value in inputs_of(model, PADDING["left"]).items()}
    with torch.no_grad():
        (result, _), (expected, _) = exact(model, "packed", **batch)
    assert_equal(result.logits, expected.logits)


def test_dropout_that_is_there_only_on_request() -> None:
    """ModernBERT's, after attention."""
    model, mask = encoder("modernbert", attention_probs_dropout_prob=0.5).double(), PADDING["right"]
    for layer in model.layers:
        layer.attn.out_drop.train().p = 1.0
    with torch.no_grad():
        (result, _), (expected, _) = exact(model, "packed", **inputs_of(model, mask))
    assert_equal(result.last_hidden_state[mask], expected.last_hidden_state[mask])


@pytest.mark.parametrize("kind", ["full_attention", "sliding_attention"])
def test_angles_that_follow_the_length_in_some_layers_are_refused(kind: str) -> None:
    model = encoder("modernbert")
    model.rotary_emb.rope_type[kind] = "dynamic"
    with pytest.raises(ValueError, match="its rotary positions are of the type 'dynamic', whose frequencies follow"):
        accelerate(model)
