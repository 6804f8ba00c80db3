"""Training with dropout: transformers' distribution, though not its bits, and gradients that belong to the forward."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import pytest
import torch
from agreement import NO_DROPOUT, PADDING, encoder, inputs
from torch import Tensor

from spanbert_kernels import accelerate, ops

HIDDEN = {"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.0}
ATTENTION = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.3}
BOTH = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}
ROWS, LENGTH = 16384, 4


def draws(model: Any, seed: int) -> Tensor:
    """Many independent draws of the states of one short document: it fills a batch, every second row padded."""
    torch.manual_seed(seed)
    mask = torch.ones(ROWS, LENGTH + 2, dtype=torch.long)
    mask[::2, LENGTH:] = 0
    ids = torch.arange(2, LENGTH + 4).expand(ROWS, -1)
    with torch.no_grad():
        states = model.train()(input_ids=ids, attention_mask=mask).last_hidden_state
    return states[::2, :LENGTH].double()


def assert_same_distribution(first: Tensor, second: Tensor) -> None:
    """Mean and variance of two samples `[draws, ...]`."""
    assert_same_mean(first, second)
    center = second.mean(0)
    assert_same_mean((first - center).square(), (second - center).square())


def assert_same_mean(first: Tensor, second: Tensor) -> None:
    """Of two samples `[draws, ...]`: a chance of one in a million to fail where the distributions are the same."""
    spread = ((first.var(0) + second.var(0)) / len(first)).sqrt()
    score = ((first.mean(0) - second.mean(0)) / spread).abs().max().item()
    limit = NormalDist().inv_cdf(1 - 1e-6 / (2 * spread.numel()))
    assert score < limit, f"{score:.2f} standard deviations apart, allowed {limit:.2f}"


@pytest.mark.parametrize("options", [HIDDEN, ATTENTION, BOTH], ids=["hidden", "attention", "both"])
def test_distribution_is_that_of_transformers(options: dict[str, float]) -> None:
    model = encoder(**options)
    expected = draws(model, seed=0)
    report = accelerate(model)
    result = draws(model, seed=1)
    assert report.last_path == "packed-training"
    assert expected.var(0).min() > 0
    assert_same_distribution(result, expected)


def test_the_comparison_sees_another_rate() -> None:
    """What `test_distribution_is_that_of_transformers` would do for a dropout of 0.3 that works as one of 0.25."""
    expected = draws(encoder(**ATTENTION), seed=0)
    other = draws(encoder(**{**ATTENTION, "attention_probs_dropout_prob": 0.25}), seed=1)
    with pytest.raises(AssertionError, match="standard deviations apart"):
        assert_same_distribution(other, expected)


@pytest.mark.parametrize("options", [HIDDEN, ATTENTION], ids=["hidden", "attention"])
def test_the_seed_decides(options: dict[str, float]) -> None:
    model, mask = encoder(**options).train(), PADDING["right"]
    accelerate(model)

    def states(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return model(**inputs(mask)).last_hidden_state

    assert torch.equal(states(0), states(0))
    assert not torch.equal(states(0), states(1))
    torch.manual_seed(0)
    first, second = model(**inputs(mask)), model(**inputs(mask))
    assert not torch.equal(first.last_hidden_state, second.last_hidden_state)


def test_layers_and_rows_draw_on_their_own() -> None:
    """Two rows with the same tokens differ: equal rows would mean one mask for the whole batch."""
    model = encoder(**ATTENTION).train()
    accelerate(model)
    ids = torch.arange(2, 12).expand(2, -1)
    first, second = model(input_ids=ids).last_hidden_state
    assert not torch.equal(first, second)


@pytest.mark.parametrize("padding", ["right", "middle", "none"])
def test_gradients_belong_to_the_forward(padding: str) -> None:
    """Finite differences in double precision, the same dropout in each evaluation."""
    mask = PADDING[padding][:, :6]
    model = encoder(**BOTH, num_hidden_layers=1).double().train()
    report = accelerate(model)
    names = [name for name, _ in model.named_parameters() if "layer.0" in name or "LayerNorm" in name]
    parameters = [model.get_parameter(name).detach().clone().requires_grad_() for name in names]
    embeds = model.embeddings.word_embeddings(inputs(mask)["input_ids"]).detach().requires_grad_()

    def run(embeds: Tensor, *parameters: Tensor) -> Tensor:
        torch.manual_seed(0)
        named = dict(zip(names, parameters, strict=True))
        arguments = {"inputs_embeds": embeds, "attention_mask": mask}
        return torch.func.functional_call(model, named, (), arguments).last_hidden_state[mask]

    assert torch.autograd.gradcheck(run, (embeds, *parameters), fast_mode=True)
    assert report.calls.keys() == {"packed-training"}


def test_evaluation_drops_nothing() -> None:
    mask = PADDING["right"]
    expected = encoder(**NO_DROPOUT)
    model = encoder(**BOTH)
    for each in (model, expected):
        accelerate(each)
    with torch.no_grad():
        assert torch.equal(model(**inputs(mask))[0], expected(**inputs(mask))[0])


def test_dropout_in_evaluation_mode_of_a_part() -> None:
    """Layers have modes of their own: dropout in one of them is at work without gradients too."""
    mask = PADDING["right"]
    model = encoder(**BOTH)
    report = accelerate(model)
    model.encoder.layer[1].train()
    with torch.no_grad():
        first, second = model(**inputs(mask))[0], model(**inputs(mask))[0]
    assert report.calls == {"packed-training": 2}
    assert not torch.equal(first, second)


def test_keep_rate_of_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen through equal scores and values that are one: every kept entry then counts 1 / (length (1 - p))."""
    probability, length = 0.3, 16
    model = encoder(attention_probs_dropout_prob=probability, hidden_dropout_prob=0.0, num_hidden_layers=1)
    attention = model.encoder.layer[0].attention.self
    with torch.no_grad():
        for linear, bias in ((attention.query, 0.0), (attention.key, 0.0), (attention.value, 1.0)):
            linear.weight.zero_()
            linear.bias.fill_(bias)
    seen: list[Tensor] = []
    compute = ops.document_attention
    monkeypatch.setattr(ops, "document_attention", lambda *a, **k: seen.append(compute(*a, **k)) or seen[-1])
    accelerate(model)
    with torch.no_grad():
        model.train()(input_ids=torch.randint(2, 50, (64, length)))
    (context,) = seen
    kept = context[:, :, 0] * length * (1 - probability)
    # A sum of `length` terms of at most 1, each rounded `length` times at most.
    assert (kept - kept.round()).abs().max() < length**2 * torch.finfo(torch.float32).eps
    entries = kept.numel() * length
    deviation = math.sqrt(probability * (1 - probability) / entries)
    score = abs(kept.double().sum().item() / entries - (1 - probability)) / deviation
    assert score < NormalDist().inv_cdf(1 - 0.5e-6)
