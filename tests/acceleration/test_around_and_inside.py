"""What other libraries put around an accelerated encoder, or inside it, works before and after `accelerate`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import accelerate as hugging_face
import pytest
import torch
from accelerate.state import AcceleratorState
from agreement import NO_DROPOUT, PADDING, assert_agrees, encoder, gradients, head, in_float64, inputs
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from transformers import BertForTokenClassification
from transformers.models.bert.modeling_bert import BertLayer

from spanbert_kernels import accelerate, restore
from spanbert_kernels.acceleration import stand_ins

MASK = PADDING["right"]
NOT_REPACKED = "packed-inference (weights not repacked)"


def states(model: Any, mask: Tensor = MASK) -> Tensor:
    with torch.no_grad():
        return model(**inputs(mask))[0]


@pytest.fixture
def accelerator() -> Iterator[hugging_face.Accelerator]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield hugging_face.Accelerator(mixed_precision="bf16", cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("keep_wrapper", [True, False])
@pytest.mark.parametrize("prepared_first", [True, False])
def test_prepared_for_mixed_precision(
    prepared_first: bool, keep_wrapper: bool, accelerator: hugging_face.Accelerator
) -> None:
    """On a bare encoder `Accelerator.prepare` and `accelerate` replace the same forward."""
    model, plain = encoder(), encoder()
    if prepared_first:
        model = accelerator.prepare(model)
    report = accelerate(model)
    if not prepared_first:
        model = accelerator.prepare(model)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = states(plain)
    mixed = states(model)
    assert_agrees(mixed[MASK], autocast[MASK], states(in_float64(plain))[MASK])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.encoder.layer[0].output.dense.weight.mul_(2.0)
    assert not torch.equal(states(twin), mixed)  # it runs its own weights
    assert report.calls == {"packed-inference": 1}
    unwrapped = accelerator.unwrap_model(model, keep_fp32_wrapper=keep_wrapper)
    eager = autocast if keep_wrapper else states(plain)
    assert_agrees(states(unwrapped)[MASK], eager[MASK], states(in_float64(plain))[MASK])
    assert report.calls == {"packed-inference": 2}
    assert accelerate(unwrapped).already
    restore(model)
    states(model)
    assert report.calls == {"packed-inference": 2}


OFFLOADS = {
    "disk": lambda model, folder: hugging_face.disk_offload(model, folder, execution_device="cpu"),
    "by layer": lambda model, folder: hugging_face.dispatch_model(
        model,
        {"bert.embeddings": "cpu", "bert.encoder.layer.0": "disk", "bert.encoder.layer.1": "cpu", "classifier": "cpu"},
        main_device="cpu",
        offload_dir=folder,
        force_hooks=True,
    ),
    "the encoder": lambda model, folder: hugging_face.disk_offload(model.bert, folder, execution_device="cpu"),
}


@pytest.mark.parametrize("name", OFFLOADS)
@pytest.mark.parametrize("offloaded_first", [True, False])
def test_weights_that_are_on_disk(name: str, offloaded_first: bool, tmp_path: Path) -> None:
    model, plain = head(BertForTokenClassification), head(BertForTokenClassification)
    if offloaded_first:
        OFFLOADS[name](model, tmp_path)
    report = accelerate(model)
    if not offloaded_first:
        states(model)
        OFFLOADS[name](model, tmp_path)
    assert model.bert.encoder.layer[0].output.dense.weight.is_meta
    result = states(model)
    assert report.calls[NOT_REPACKED] == 1
    assert_agrees(result[MASK], states(plain)[MASK], states(in_float64(plain))[MASK])
    restore(model)
    assert torch.equal(states(model), states(plain))


def test_layers_on_several_devices_are_left() -> None:
    model = encoder()
    for layer, device in zip(model.encoder.layer, ("cpu", "meta"), strict=True):
        hugging_face.hooks.add_hook_to_module(layer, hugging_face.hooks.AlignDevicesHook(device))
    with pytest.raises(ValueError, match=r"its layers are on 2 devices \(cpu, meta\)"):
        accelerate(model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("quantized_first", [True, False])
def test_quantized_by_pytorch(quantized_first: bool) -> None:
    """Its scales follow the whole batch, padding too: what is compared has none."""
    model = head(BertForTokenClassification)
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    expected = states(quantized, PADDING["none"])
    if not quantized_first:
        accelerate(model)
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    report = accelerate(quantized)
    assert (states(quantized, PADDING["none"]) - expected).abs().max() < 0.02 * expected.abs().max()
    assert report.calls == {NOT_REPACKED: 1}
    if quantized_first:
        with pytest.raises(ValueError, match="8 bits: its layers hold adapters, quantized products or weights"):
            accelerate(BertLike(quantized), weights="int8")


class BertLike(nn.Module):
    """A module of the user's own around another."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = copy.deepcopy(inner)
        restore(self.inner)


class Doubled(nn.Linear):
    """Acts otherwise than its weight says."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_stand_in_is_called_and_its_weights_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stand_ins._STAND_INS, nn.Linear, {(Doubled.__module__, "Doubled")})
    model = head(BertForTokenClassification, **NO_DROPOUT)
    report = accelerate(model)
    before = states(model)
    assert report.last_path == "packed-inference"
    for layer in model.bert.encoder.layer:
        layer.output.dense.__class__ = Doubled
        layer.attention.self.query.__class__ = Doubled
    plain = copy.deepcopy(model)
    restore(plain)
    assert_agrees(states(model)[MASK], states(plain)[MASK], states(in_float64(plain))[MASK])
    assert report.last_path == NOT_REPACKED
    assert (states(model)[MASK] - before[MASK]).abs().max() > 0.1
    expected = gradients(plain, plain(**inputs(MASK))[0][MASK].square().sum())
    for name, gradient in gradients(model, model(**inputs(MASK))[0][MASK].square().sum()).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-4)


class Shards:
    """Adds methods of its own and changes none, as FSDP2's classes do."""

    def gather(self) -> None: ...


class RenamedLayer(Shards, BertLayer):
    pass


class ChangedLayer(Shards, BertLayer):
    def feed_forward_chunk(self, attention_output: Tensor) -> Tensor:
        return 2 * super().feed_forward_chunk(attention_output)


def test_a_class_that_changes_no_method_is_its_ancestor() -> None:
    model = encoder()
    model.encoder.layer[0].__class__ = RenamedLayer
    assert str(accelerate(model)) == "accelerated: BertModel, 2 layers"
    model.encoder.layer[1].__class__ = ChangedLayer
    restore(model)
    with pytest.raises(ValueError, match=r"a layer is a .*ChangedLayer, not transformers' BertLayer"):
        accelerate(model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("sharded_first", [True, False])
def test_sharded_by_pytorch(sharded_first: bool, checkpointing: bool, tmp_path: Path) -> None:
    """FSDP2's hooks on the layers bring their weights together, and the layers run packed."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        plain = head(BertForTokenClassification, **NO_DROPOUT).train()
        model = copy.deepcopy(plain)
        if checkpointing:
            model.gradient_checkpointing_enable()

        def shard() -> None:
            for module in (*model.bert.encoder.layer, model):
                fully_shard(module, mesh=mesh)

        if sharded_first:
            shard()
        report = accelerate(model)
        if not sharded_first:
            shard()
        assert type(model.bert.encoder.layer[0]).__name__ == "FSDPBertLayer"
        batch = {**inputs(MASK), "labels": torch.where(MASK, 1, -100)}
        expected = gradients(plain, plain(**batch).loss)
        for name, gradient in gradients(model, model(**batch).loss).items():
            torch.testing.assert_close(gradient.full_tensor(), expected[name], rtol=1e-4, atol=1e-6)
        assert report.calls == {"packed-training": 1}
    finally:
        torch.distributed.destroy_process_group()
