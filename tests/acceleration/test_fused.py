"""Inference in one call for all layers: which encoders, in which precision, with what kept and shown."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from agreement import PADDING, TINY, assert_agrees, encoder, in_float64, inputs
from torch import Tensor, nn
from transformers.activations import ACT2FN

from spanbert_kernels import SpanBERTConfig, SpanBERTModel, accelerate, ops
from spanbert_kernels.acceleration.fused import activation_of
from spanbert_kernels.acceleration.packed import CHOICES, precision_of
from spanbert_kernels.ops import library
from spanbert_kernels.ops.encoder_stack import encoder_stack_refusal

pytestmark = pytest.mark.skipif(library.cpu_isa() is None, reason="the CPU library is not built")
MASK = PADDING["right"]
# Those that have no steps run product by product.
SEPARATE = {"hardswish", "laplace", "mish", "sqrtsoftplus"}
needs_int8 = pytest.mark.skipif(encoder_stack_refusal("int8") is not None, reason=str(encoder_stack_refusal("int8")))


def last_state(model: Any, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs(MASK), **options).last_hidden_state


@pytest.mark.parametrize("name", sorted(set(ACT2FN) - {"prelu", "xielu"}))
def test_every_activation_of_transformers(name: str) -> None:
    model = encoder(hidden_act=name)
    accelerated = copy.deepcopy(model)
    accelerate(accelerated)
    with ops.backends.record() as ran:
        found = last_state(accelerated)
    fused = activation_of(model.encoder.layer[0].intermediate.intermediate_act_fn) is not None
    assert (("encoder_stack", "cpu") in ran) == fused
    assert_agrees(found[MASK], last_state(model)[MASK], last_state(in_float64(model))[MASK])


def test_activations_that_are_known_are_most() -> None:
    unknown = {name for name in ACT2FN if name not in ("prelu", "xielu") and activation_of(ACT2FN[name]) is None}
    assert unknown <= SEPARATE


def test_missing_biases_and_norms_without_weights() -> None:
    model = encoder()
    for layer in model.encoder.layer:
        layer.attention.self.key.bias = None
        layer.output.dense.bias = None
        layer.output.LayerNorm.bias = None
    accelerated = copy.deepcopy(model)
    report = accelerate(accelerated)
    assert_agrees(last_state(accelerated)[MASK], last_state(model)[MASK], last_state(in_float64(model))[MASK])
    assert "fused, float32" in str(report)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_hidden_states_asked_for_change_no_bit_of_the_last(dtype: torch.dtype) -> None:
    model = encoder().to(dtype)
    accelerate(model)
    with torch.no_grad():
        output = model(**inputs(MASK), output_hidden_states=True)
    assert torch.equal(output.last_hidden_state, last_state(model))
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert {state.dtype for state in output.hidden_states} == {dtype}


@pytest.mark.parametrize("name", ["electra", "albert"])
def test_autocast_where_a_linear_follows_the_embeddings(name: str) -> None:
    """Its output has autocast's dtype, and the weights of the layers their own."""
    model = encoder(name)
    exact = last_state(in_float64(model))
    with torch.autocast("cpu", torch.bfloat16):
        expected = last_state(model)
        report = accelerate(model)
        found = last_state(model)
    assert report.last_path == "packed-inference"
    assert_agrees(found[MASK], expected[MASK], exact[MASK])


@pytest.mark.skipif(encoder_stack_refusal("bfloat16") is not None, reason=str(encoder_stack_refusal("bfloat16")))
def test_autocast_takes_products_of_its_dtype() -> None:
    model = encoder()
    report = accelerate(model)
    exact = last_state(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = last_state(model)
    assert "fused, bfloat16" in str(report)
    assert found.dtype == torch.float32
    assert 1e-4 < ((found - exact)[MASK].abs().max() / exact[MASK].abs().max()).item() < 2e-2
    assert torch.equal(last_state(model)[MASK], exact[MASK])


@needs_int8
def test_int8_says_what_it_changes() -> None:
    model = encoder()
    exact = last_state(model)
    report = accelerate(model, weights="int8")
    assert report.int8_error is None
    found = last_state(model)
    error = ((found - exact)[MASK].abs().max() / exact[MASK].abs().max()).item()
    assert 1e-4 < error < 0.05
    assert report.int8_error == pytest.approx(error, rel=0.02)
    assert f"int8 changed the hidden states by up to {error:.3f} of the largest" in str(report)
    assert "fused, int8" in str(report)
    accelerate(model)  # and back
    assert_agrees(last_state(model)[MASK], exact[MASK], last_state(in_float64(copy.deepcopy(model)))[MASK])


def test_products_of_training_are_in_the_report() -> None:
    model = encoder()
    report = accelerate(model)
    last_state(model)
    assert "products of training" not in str(report)
    long = torch.ones(4, 20, dtype=torch.long)  # enough rows for a choice
    model.train()(input_ids=long).last_hidden_state.sum().backward()
    assert "products of training: torch" in str(report)


def test_int8_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"weights must be None or one of \['int8'\], got 'int4'"):
        accelerate(encoder(), weights="int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="are copies: repack=False leaves none"):
        accelerate(encoder(), weights="int8", repack=False)
    with pytest.raises(ValueError, match="cannot run with weights of 8 bits: the activation MishActivation"):
        accelerate(encoder(hidden_act="mish"), weights="int8")
    before = torch.ops.spanbert_kernels.cpu_isa()
    torch.ops.spanbert_kernels.set_cpu_isa("portable")
    try:
        with pytest.raises(ValueError, match="products of int8 take an instruction set that portable does not have"):
            accelerate(encoder(), weights="int8")
    finally:
        torch.ops.spanbert_kernels.set_cpu_isa(before)


def test_all_layers_are_one_call_where_documents_could_see_each_other_and_do_not() -> None:
    torch.manual_seed(0)
    model = SpanBERTModel(SpanBERTConfig(**TINY, cross_document_layers=[0])).eval()
    accelerate(model)
    for clusters, calls in ((None, 1), (torch.tensor([0, 0, 1, 1]), len(model.encoder.layer))):
        with ops.backends.record() as ran:
            last_state(model, cluster_ids=clusters)
        assert ran.count(("encoder_stack", "cpu")) == calls


def test_without_copies_of_the_weights() -> None:
    model = encoder()
    expected, exact = last_state(model), last_state(in_float64(model))
    report = accelerate(model, repack=False)
    assert_agrees(last_state(model)[MASK], expected[MASK], exact[MASK])
    assert report.calls == {"packed-inference (weights not repacked)": 1}
    assert "kept" not in str(report)
    accelerate(model)
    last_state(model)
    assert "kept: fused, float32" in str(report)


def test_eight_threads_get_the_same_bits() -> None:
    model = encoder()
    accelerate(model)
    expected, wrong = last_state(model), []

    def call() -> None:
        wrong.extend(1 for _ in range(5) if not torch.equal(last_state(model), expected))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_settings_of_a_module_are_followed() -> None:
    model = encoder(hidden_act="relu")
    accelerate(model)
    before = last_state(model)
    model.encoder.layer[0].intermediate.intermediate_act_fn = nn.LeakyReLU(0.3)  # no step has it
    changed = last_state(model)
    assert not torch.equal(changed, before)
    assert_agrees(changed[MASK], last_state(copy.deepcopy(model))[MASK], last_state(in_float64(model))[MASK])


@pytest.mark.parametrize("way", ["fused", "fused-float32", "separate"])
def test_the_way_that_was_chosen_runs(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANBERT_KERNELS_ENCODER", way)
    for dtype in (torch.float32, torch.bfloat16):
        model = encoder().to(dtype)
        report = accelerate(model)
        with ops.backends.record() as ran:
            last_state(model)
        assert ("encoder_stack" in dict(ran)) == (way != "separate")
        precision = precision_of(way, dtype)
        assert (f"fused, {precision}" in str(report)) == (precision is not None)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", list(CHOICES))
def test_ways_are_measured(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("SPANBERT_KERNELS_ENCODER", "measure")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = CHOICES[dtype].found()
    assert found.reason == "measured"
    assert found.way in CHOICES[dtype].candidates
    assert list(tmp_path.rglob("*.json"))
