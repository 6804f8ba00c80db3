"""Encoders whose queries and keys are turned by their positions."""

from __future__ import annotations

import copy

import pytest
import torch
from agreement import PADDING, TINY, assert_agrees, assert_equal, encoder, exact, in_float64, inputs_of, without_pooler

from spanbert_kernels import accelerate, ops


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotary_positions_that_follow_the_length_are_refused(kind: str) -> None:
    model = encoder("nomic-bert")
    model.rotary_emb.rope_type = kind
    with pytest.raises(ValueError, match=f"its rotary positions are of the type '{kind}', whose frequencies follow"):
        accelerate(model)


def test_values_that_are_turned_too() -> None:
    model, mask = encoder("roformer", rotary_value=True).double(), PADDING["left"]
    with torch.no_grad():
        (result, _), (expected, _) = exact(model, "packed-training", **inputs_of(model, mask))
    assert_equal(result.last_hidden_state[mask], expected.last_hidden_state[mask])


@pytest.mark.parametrize("name", ["nomic-bert", "jina-embeddings-v3", "roformer"])
def test_rotary_positions_in_one_call_of_all_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are a token's place in its document; otherwise layer by layer."""
    monkeypatch.setenv("SPANBERT_KERNELS_ENCODER", "fused")
    model = without_pooler(encoder(name))
    exact_model, ours = in_float64(model), copy.deepcopy(model)
    report = accelerate(ours)
    masks = {**PADDING, "longer than the table": torch.ones(1, TINY["max_position_embeddings"] + 1, dtype=torch.bool)}
    if name == "roformer":
        del masks["longer than the table"]  # nor does transformers' own table have more
    for padding, mask in masks.items():
        batch = inputs_of(model, mask)
        with torch.no_grad(), ops.backends.record() as ran:
            result = ours(**batch).last_hidden_state[mask]
        with torch.no_grad():
            assert_agrees(result, *(each(**batch).last_hidden_state[mask] for each in (model, exact_model)))
        in_one_call = padding not in ("middle", "longer than the table")
        assert ("encoder_stack" in dict(ran)) == in_one_call
        assert report.last_path == ("packed-inference" if in_one_call else "packed-training")


def test_angles_that_change_are_followed() -> None:
    """As weights are: a copy of a changed model gives the same."""
    model, mask = encoder("nomic-bert"), PADDING["right"]
    accelerate(model)
    with torch.no_grad():
        before = model(**inputs_of(model, mask)).last_hidden_state
        model.rotary_emb.inv_freq.mul_(0.5)
        after = model(**inputs_of(model, mask)).last_hidden_state
        assert not torch.equal(after, before)
        assert torch.equal(after, copy.deepcopy(model)(**inputs_of(model, mask)).last_hidden_state)


@pytest.mark.parametrize("name", ["nomic-bert", "jina-embeddings-v3"])
def test_positions_of_ones_own_turn_queries_and_keys(name: str) -> None:
    model, mask = without_pooler(encoder(name)).double(), PADDING["middle"]
    positions = torch.arange(mask.shape[1]).flip(0)[None] * 3
    with torch.no_grad():
        (result, _), (expected, _) = exact(model, "packed-training", **inputs_of(model, mask), position_ids=positions)
    assert_equal(result.last_hidden_state[mask], expected.last_hidden_state[mask])
