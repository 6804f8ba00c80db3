"""What DeBERTa has and no other family: projected tables, a convolution, layers that act again, calls of its parts."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import children
import pytest
import torch
from agreement import (
    NO_DROPOUT,
    PADDING,
    ROWS,
    assert_agrees,
    assert_equal,
    assert_original,
    assert_same_training,
    encoder,
    exact,
    in_double_precision,
    in_float64,
    inputs,
    inputs_of,
)
from torch import Tensor, nn

from spanbert_kernels import accelerate
from spanbert_kernels.acceleration import stand_ins
from spanbert_kernels.ops import library
from spanbert_kernels.ops.encoder_stack import encoder_stack_refusal

NAMES = [name for name in ROWS if name.startswith("deberta")]
V2 = "deberta-v2"
pytestmark = pytest.mark.filterwarnings("ignore::spanbert_kernels.acceleration.AccelerationWarning")


@pytest.mark.parametrize(
    "options",
    [
        {"share_att_key": False, "pos_att_type": ["p2c", "p2p"], "position_buckets": -1, "norm_rel_ebd": "none"},
        {"share_att_key": False, "pos_att_type": ["c2p"], "conv_kernel_size": 0, "embedding_size": 32},
        {"relative_attention": False, "type_vocab_size": 0, "position_biased_input": False},
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_configurations(name: str, options: dict[str, Any]) -> None:
    model, mask = in_double_precision(name, **options), PADDING["left"]
    assert_same_training(model, inputs_of(model, mask), mask)


@pytest.mark.parametrize(("reentrant", "norm"), [(True, "none"), (False, "layer_norm")])
def test_gradient_checkpointing(reentrant: bool, norm: str) -> None:
    """Reentrant, transformers' own backward fails if there is a norm of the table."""
    model, mask = in_double_precision(V2, norm_rel_ebd=norm), PADDING["right"]
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert_same_training(model, inputs_of(model, mask), mask)


def test_dropout_of_the_convolution() -> None:
    model, mask = in_double_precision(V2, num_hidden_layers=1), PADDING["right"]
    model.encoder.conv.dropout.p = 1.0
    with torch.no_grad():
        (result, _), (expected, _) = exact(model, "packed-training", **inputs_of(model, mask))
    assert_equal(result.last_hidden_state[mask], expected.last_hidden_state[mask])


def test_tables_have_dropout_in_training() -> None:
    """One mask for each layer and forward, whatever the number of tokens."""
    model, mask = encoder(V2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train(), PADDING["right"]
    accelerate(model)
    batch = inputs_of(model, mask)
    first, second = (model(**batch).last_hidden_state for _ in range(2))
    assert torch.equal(first, second)
    for layer in model.encoder.layer:
        layer.attention.self.pos_dropout.p = 0.5
    first, second = (model(**batch).last_hidden_state for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", NAMES)
def test_rows_longer_than_the_table_of_positions(name: str) -> None:
    mask = torch.ones(2, 9, dtype=torch.bool)
    without = encoder(name, position_biased_input=False, max_position_embeddings=8, **NO_DROPOUT).double()
    with torch.no_grad():
        (result, _), (expected, _) = exact(without, "packed", **inputs_of(without, mask))
    assert_equal(result.last_hidden_state, expected.last_hidden_state)


@pytest.mark.parametrize("name", NAMES)
def test_layers_that_act_again_take_the_original_path(name: str) -> None:
    model, batch = encoder(name), inputs_of(encoder(name), PADDING["right"])
    model.z_steps = 1  # no time more
    assert_original(model, "the encoder's z_steps is 1", **batch)
    model.z_steps = 2
    with torch.no_grad(), pytest.raises((AttributeError, RuntimeError), match=r"no attribute 'append'|t\(\) expects"):
        model(**batch)  # which fails there


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("deberta", {"talking_head": True}, r"its heads take each other's logits \(talking_head\)"),
        (V2, {"position_buckets": 5}, "its distances: buckets must be even, got 5"),
        (V2, {"conv_kernel_size": 2}, "its encoder.conv has an even kernel, of 2 tokens"),
    ],
)
def test_what_is_refused(name: str, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        accelerate(encoder(name, **options))


@pytest.mark.parametrize("name", NAMES)
def test_parts_that_are_called_on_their_own_are_transformers(name: str) -> None:
    """GLiNER packs several texts into a row, with a mask of who sees whom, and calls embeddings and encoder."""
    model = encoder(name, conv_kernel_size=0)
    batch = inputs(torch.ones(1, 10, dtype=torch.bool))
    together = torch.block_diag(torch.ones(4, 4), torch.ones(6, 6))[None].long()

    def called() -> torch.Tensor:
        embedded = model.embeddings(batch["input_ids"], mask=batch["attention_mask"])
        hidden: torch.Tensor = model.encoder(embedded, together).last_hidden_state
        return hidden

    with torch.no_grad():
        expected = called()
        accelerate(model)
        model(**inputs_of(model, PADDING["right"]))
        assert torch.equal(called(), expected)


class Doubled(nn.Linear):
    """As an adapter changes what a Linear gives."""

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)


@pytest.mark.parametrize("shared", [True, False])
def test_a_stand_in_projects_the_table_too(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stand_ins._STAND_INS, nn.Linear, {(Doubled.__module__, "Doubled")})
    model, mask = in_double_precision(V2, share_att_key=shared), PADDING["right"]
    for layer in model.encoder.layer:
        attention = layer.attention.self
        for linear in (attention.query_proj, attention.key_proj if shared else attention.pos_key_proj):
            linear.__class__ = Doubled
    batch = inputs_of(model, mask)
    with torch.no_grad():
        (result, _), (expected, _) = exact(copy.deepcopy(model).eval(), "packed-inference (w", **batch)
    assert_equal(result.last_hidden_state[mask], expected.last_hidden_state[mask])
    assert_same_training(model, batch, mask)


@pytest.mark.skipif(encoder_stack_refusal("int8") is not None, reason=str(encoder_stack_refusal("int8")))
def test_weights_of_8_bits() -> None:
    """Compared with float weights in the first call, the convolution included."""
    model, mask = encoder(V2), PADDING["right"]
    report = accelerate(model, weights="int8")
    with torch.no_grad():
        model(**inputs_of(model, mask))
    assert report.last_path == "packed-inference"
    assert report.int8_error is not None
    assert 0 < report.int8_error < 0.1


@pytest.mark.parametrize("way", ["fused", "separate"])
@pytest.mark.parametrize("bias", ["q_bias", "v_bias"])
def test_biases_beside_the_linear_are_followed(bias: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANBERT_KERNELS_ENCODER", way)
    model, mask = encoder("deberta"), PADDING["right"]
    accelerate(model)
    batch = inputs_of(model, mask)
    with torch.no_grad():
        before = model(**batch).last_hidden_state
        getattr(model.encoder.layer[0].attention.self, bias).add_(torch.randn(32))
        expected, reference = (
            each.forward.original(**batch).last_hidden_state[mask] for each in (model, in_float64(model))
        )
        found = model(**batch).last_hidden_state
    assert not torch.equal(found, before)
    assert_agrees(found[mask], expected, reference)


# One layer of base size on one document; prints by how much memory grew.
SCRIPT = """
import sys
from pathlib import Path
import torch
from transformers import DebertaV2Config, DebertaV2Model
import spanbert_kernels as sk

def memory(field):
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024

config = DebertaV2Config(
    vocab_size=100, hidden_size=768, num_attention_heads=12, num_hidden_layers=1, intermediate_size=3072,
    relative_attention=True, position_buckets=256, pos_att_type=["p2c", "c2p"], share_att_key=True,
    norm_rel_ebd="layer_norm", position_biased_input=False,
)
model = DebertaV2Model(config).eval()
if sys.argv[1] == "own":
    sk.accelerate(model)
with torch.no_grad():
    model(torch.full((1, 8), 7))
    ids = torch.full((1, 2048), 7)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    model(ids)
print(memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts the memory")
@pytest.mark.skipif(library.cpu_isa() is None, reason="the CPU library is not built")
def test_a_layer_takes_a_small_share_of_the_memory() -> None:
    grown = {}
    for way in ("own", "theirs"):
        done = children.run([sys.executable, "-c", SCRIPT, way], check=True, capture_output=True, text=True)
        grown[way] = int(done.stdout.split()[-1])
    assert grown["own"] * 20 <= grown["theirs"], grown
