"""Mentions of Maverick and xCoRe, with the layers over their bounds run once a token: as the packages find them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from acceleration.agreement import seeded
from originals import maverick
from torch import Tensor, nn

import spanbert_kernels as sk
from spanbert_kernels.acceleration import AccelerationWarning
from spanbert_kernels.integrations.maverick import VERSIONS, score_mentions

SIZE, LENGTH = 8, 12
MODELS = {version.class_path.rpartition(".")[2]: version for version in VERSIONS}
STAGES = ["train", "val", "test"]


def models(name: str) -> tuple[Any, Any, Any]:
    """The same model twice, the second accelerated, with its report; dropout as `eval` leaves it."""
    plain, fused = (seeded(lambda: getattr(maverick, name)(SIZE)).double().eval() for _ in range(2))
    return plain, fused, sk.accelerate(fused)


def given(name: str, gold: bool) -> dict[str, Any]:
    """States, where spans may stand, and gold, as the model takes them."""
    generator = torch.Generator().manual_seed(2)
    states = torch.randn(1, LENGTH, SIZE, generator=generator, dtype=torch.float64).requires_grad_()
    allowed = maverick.sentences(LENGTH, 5)
    mentions = ((torch.rand(1, LENGTH, LENGTH, generator=generator) < 0.3) * allowed) if gold else None
    starts = mentions.amax(-1) if mentions is not None else None
    batched = MODELS[name].batched
    masks = [each if each is None or batched else each[0] for each in (allowed, mentions, starts)]
    names = ("lhs", "eos_mask" if batched else "mask", "gold_mentions", "gold_starts")
    return dict(zip(names, (states, *masks), strict=True))


def extract(model: Any, name: str, stage: str, call: dict[str, Any]) -> list[Any]:
    """What the method returns, and the gradients of both losses."""
    starts, mentions, *losses = getattr(model, MODELS[name].method)(**call, stage=stage)
    model.zero_grad()
    call["lhs"].grad = None
    (losses[0] + 2 * losses[1]).backward()
    return [*starts, *mentions, *losses, call["lhs"].grad, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("name", MODELS)
def test_mentions_losses_and_gradients(name: str) -> None:
    plain, fused, report = models(name)
    assert list(inspect.signature(getattr(fused, MODELS[name].method)).parameters) == [*given(name, True), "stage"]
    for stage, gold in (("train", True), ("val", True), ("test", True), ("test", False)):
        call = given(name, gold)
        found, expected = (extract(model, name, stage, call) for model in (fused, plain))
        assert len(found[1]) > 3, "no mention was found"
        for mine, theirs in zip(found, expected, strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                torch.testing.assert_close(mine, theirs)
    assert dict(report.span_layers[0].calls) == {"fused": 4}


def test_no_start_is_found() -> None:
    plain, fused, _ = models("Maverick_mes")
    for model in (plain, fused):
        nn.init.constant_(model.start_token_classifier.layer.dense.bias, -99)
    call = given("Maverick_mes", True)
    for mine, theirs in zip(*(extract(model, "Maverick_mes", "test", call) for model in (fused, plain)), strict=True):
        assert mine is theirs is None or torch.equal(mine, theirs)


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_dropout_stands_before_the_activation(p: float) -> None:
    """Where one unit is kept, the LayerNorm behind says which, and with what number: as the package's layers do."""
    plain, fused, _ = models("Maverick_mes")
    layer = fused.start_end_classifier.layer
    with torch.no_grad():
        for each in (plain, fused):
            each.start_end_classifier.layer.dropout.p = p
            each.start_end_classifier.layer.layer_norm.eps = 0.5
        states, spans = given("Maverick_mes", False)["lhs"][0], torch.tensor([[0, 3]]).expand(4000, 2)
        possible = possible_logits(plain, states, p)
        layer.train()
        drawn = score_mentions(fused, states, spans)
    distance = (drawn[:, None] - possible).abs().amin(1)
    assert distance.max() < 1e-6
    assert drawn.unique().numel() > 10


def possible_logits(model: Any, states: Tensor, p: float) -> Tensor:
    """The logits of the span (0, 3) for all ways to drop units of the last layers."""
    layer = model.start_end_classifier.layer
    both = [model.start_token_representation(states[3]), model.end_token_representation(states[0])]
    inner = layer.dense1(torch.cat(both))
    kept = (torch.arange(2**SIZE)[:, None] >> torch.arange(SIZE)) & 1
    return layer.dense(layer.layer_norm(layer.activation_func(inner * kept / (1 - p)))).squeeze(-1)


@pytest.mark.parametrize(("name", "stage"), [("Maverick_mes", "train"), ("xCoRe_system", "val")])
def test_gold_that_is_missing_raises_the_same(name: str, stage: str) -> None:
    for model in models(name)[:2]:
        with pytest.raises(TypeError):
            extract(model, name, stage, given(name, False))


def test_a_mask_that_lets_mentions_end_before_they_start() -> None:
    plain, fused, _ = models("Maverick_mes")
    call = given("Maverick_mes", False)
    call["eos_mask"] = torch.ones_like(call["eos_mask"])
    with pytest.warns(AccelerationWarning, match="end before they start"):
        found = extract(fused, "Maverick_mes", "test", call)
    for mine, theirs in zip(found, extract(plain, "Maverick_mes", "test", call), strict=True):
        assert mine is theirs is None or torch.equal(mine, theirs)


def test_other_layers_stay() -> None:
    model = maverick.Maverick_mes(SIZE)
    model.start_end_classifier.layer = nn.Linear(2 * SIZE, 1)
    with pytest.raises(ValueError, match="its start_end_classifier is not two fully connected layers"):
        sk.accelerate(model)


def test_a_version_whose_bounds_are_not_swapped_stays() -> None:
    class Straight(maverick.Maverick_mes):
        __module__, __qualname__ = "maverick.models.model_mes", "Maverick_mes"

        def span_logits(self, states: Tensor, spans: Tensor) -> Tensor:
            return super().span_logits(states, spans.flip(1))

    with pytest.raises(ValueError, match="it computes something else than the package's"):
        sk.accelerate(seeded(lambda: Straight(SIZE)))
