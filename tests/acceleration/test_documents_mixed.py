"""The reference model with its cross-document layers at work, accelerated and not."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from agreement import (
    NO_DROPOUT,
    PADDING,
    TINY,
    assert_agrees,
    assert_draws_agree,
    assert_original,
    drawn_again,
    gradients,
    in_float64,
    inputs,
    seeded,
)
from torch import Tensor

from spanbert_kernels import (
    SpanBERTConfig,
    SpanBERTForMaskedLM,
    SpanBERTForSequenceClassification,
    SpanBERTForTokenClassification,
    SpanBERTModel,
    accelerate,
    ops,
)

CLUSTERS = {
    "adjacent": torch.tensor([0, 0, 1, 1]),
    "not adjacent": torch.tensor([5, -2, 5, 5]),
    "one": torch.tensor([3, 3, 3, 3]),
    "alone": torch.tensor([0, 1, 2, 3]),
}
MODES = list(itertools.product(("anchors", "tokens"), ("anchors", "tokens")))


def build(model_class: Any = SpanBERTModel, **options: Any) -> Any:
    """A tiny model whose gates stand open."""
    layers = {"cross_document_layers": [0, 1], "pooler_token": "anchor"}
    model = seeded(lambda: model_class(SpanBERTConfig(**{**TINY, **layers, **options}))).eval()
    encoder = getattr(model, "bert", model).encoder
    for layer in encoder.layer:
        if layer.cross_document is not None:
            torch.nn.init.constant_(layer.cross_document.gate, 0.7)
    return model


def assert_same_outputs(model: Any, mask: Tensor, clusters: Tensor | None) -> Any:
    """At real tokens and in the pooler, which needs a real token in every row; returns the accelerated output."""
    accelerated = copy.deepcopy(model)
    report = accelerate(accelerated)
    batch = {**inputs(mask), "cluster_ids": clusters}
    with torch.no_grad():
        draws = [each(**batch) for each in (accelerated, model, in_float64(model))]
        draws += drawn_again(lambda: model(**batch))
    result = draws[0]
    assert report.calls == {"packed-inference": 1}
    assert_agrees(*(each.last_hidden_state[mask] for each in draws))
    assert not result.last_hidden_state[~mask].any()
    if model.pooler is not None:
        assert_agrees(*(each.pooler_output for each in draws))
    return result


@pytest.mark.parametrize("anchor", ["last", "first"])
@pytest.mark.parametrize(("queries", "keys"), MODES)
@pytest.mark.parametrize("padding", ["right", "left", "middle", "none"])
def test_outputs(padding: str, queries: str, keys: str, anchor: str) -> None:
    """With an anchor to pool, padding on the left is no obstacle."""
    modes = {"cross_document_queries": queries, "cross_document_keys": keys, "cross_document_anchor": anchor}
    model, mask = build(**modes), PADDING[padding]
    together = assert_same_outputs(model, mask, CLUSTERS["not adjacent"])
    alone = assert_same_outputs(model, mask, None)
    moved = (together.last_hidden_state != alone.last_hidden_state).flatten(1).any(1)
    assert moved.tolist() == [True, False, True, True]


@pytest.mark.parametrize("clusters", CLUSTERS)
@pytest.mark.parametrize("normalize", ["joint", "pairwise"])
@pytest.mark.parametrize("include_self", [False, True])
def test_clusters(clusters: str, normalize: str, include_self: bool) -> None:
    options = {"cross_document_normalize": normalize, "cross_document_include_self": include_self}
    model = build(cross_document_queries="tokens", cross_document_keys="tokens", **options)
    assert_same_outputs(model, PADDING["middle"], CLUSTERS[clusters])


def test_a_row_without_a_token() -> None:
    """It has no anchor: with a pooler transformers' path runs, without one the packed path does."""
    mask = PADDING["empty row"]
    reason = "the token that the pooler or the head reads is padding in some row"
    assert_original(build(), reason, **inputs(mask), cluster_ids=CLUSTERS["one"])
    model = build()
    model.pooler = None
    assert_same_outputs(model, mask, CLUSTERS["one"])


def test_the_first_column_pooled_is_padding() -> None:
    model = build(cross_document_layers=[0], pooler_token="first")
    reason = "the token that the pooler or the head reads is padding in some row"
    assert_original(model, reason, **inputs(PADDING["left"]), cluster_ids=CLUSTERS["one"])


def test_hidden_states_are_those_after_mixing() -> None:
    model, mask = build(), PADDING["left"]
    accelerated = copy.deepcopy(model)
    accelerate(accelerated)
    batch = {**inputs(mask), "cluster_ids": CLUSTERS["adjacent"], "output_hidden_states": True}
    with torch.no_grad():
        states = [each(**batch).hidden_states for each in (accelerated, model, in_float64(model))]
    assert [len(each) for each in states] == [3, 3, 3]
    for ours, theirs, exact in zip(*states, strict=True):
        assert_agrees(ours[mask], theirs[mask], exact[mask])


def loss_of(model: Any, mask: Tensor, clusters: Tensor, seed: int = 1) -> Tensor:
    output = model(**inputs(mask, seed), cluster_ids=clusters)
    states = output.last_hidden_state[mask]
    weights = torch.linspace(-1, 1, states.numel(), dtype=states.dtype).view_as(states)
    return (states.square() * weights).sum() + output.pooler_output.square().sum()


@pytest.mark.parametrize(("queries", "keys"), MODES)
@pytest.mark.parametrize("padding", ["right", "left", "middle", "none"])
def test_gradients(padding: str, queries: str, keys: str) -> None:
    mask, clusters, seeds = PADDING[padding], CLUSTERS["one"], range(1, 5)
    model = build(cross_document_queries=queries, cross_document_keys=keys, **NO_DROPOUT).train()
    accelerated, double = copy.deepcopy(model), in_float64(model)
    report = accelerate(accelerated)
    ways = (accelerated, model, double)
    draws = [tuple(gradients(each, loss_of(each, mask, clusters, seed)) for each in ways) for seed in seeds]
    assert report.calls == {"packed-training": len(seeds)}
    assert sum("gate" in name for name in draws[0][2]) == 2
    assert_draws_agree(draws)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_with_dropout(use_reentrant: bool) -> None:
    model = build(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2).train()
    accelerate(model)
    found = []
    for calls in (2, 4):
        torch.manual_seed(4)
        with ops.backends.record() as ran:
            found.append(gradients(model, loss_of(model, PADDING["left"], CLUSTERS["one"])))
        assert [operation for operation, _ in ran].count("document_attention") == calls
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    assert_same_outputs(build().to(dtype), PADDING["left"], CLUSTERS["one"])


@pytest.mark.parametrize("model_class", [SpanBERTForTokenClassification, SpanBERTForMaskedLM])
def test_token_heads(model_class: Any) -> None:
    mask = PADDING["left"]
    labels = torch.where(mask, torch.arange(mask.numel()).view(mask.shape) % 3, -100)
    batch = {**inputs(mask), "labels": labels, "cluster_ids": CLUSTERS["adjacent"]}
    model = build(model_class)
    accelerated = copy.deepcopy(model)
    report = accelerate(accelerated)
    with torch.no_grad():
        outputs = [each(**batch) for each in (accelerated, model, in_float64(model))]
        alone = accelerated(**{**batch, "cluster_ids": None}).logits
    assert_agrees(*(output.logits[mask] for output in outputs))
    assert not torch.equal(outputs[0].logits, alone)
    assert report.calls == {"packed-inference": 2}


@pytest.mark.parametrize("pooler_token", ["first", "anchor"])
def test_sequence_head(pooler_token: str) -> None:
    model = build(SpanBERTForSequenceClassification, cross_document_layers=[0], pooler_token=pooler_token)
    accelerated = copy.deepcopy(model)
    accelerate(accelerated)
    batch = {**inputs(PADDING["right"]), "cluster_ids": CLUSTERS["one"]}
    with torch.no_grad():
        assert_agrees(*(each(**batch).logits for each in (accelerated, model, in_float64(model))))


def test_edits_of_the_mixer_are_noticed() -> None:
    model, batch = build(), {**inputs(PADDING["left"]), "cluster_ids": CLUSTERS["one"]}
    accelerate(model)
    with torch.no_grad():
        before = model(**batch).last_hidden_state
        model.encoder.layer[0].cross_document.gate.data.fill_(-0.4)
        after = model(**batch).last_hidden_state
        assert not torch.equal(before, after)
        assert torch.equal(after, copy.deepcopy(model)(**batch).last_hidden_state)


def test_a_hook_on_the_mixer_is_called() -> None:
    def add(model: Any) -> Any:
        model.encoder.layer[0].cross_document.register_forward_hook(lambda module, args, output: output * 2)
        return model

    model, batch = add(build()), {**inputs(PADDING["left"]), "cluster_ids": CLUSTERS["one"]}
    with pytest.raises(ValueError, match="a CrossDocumentMixer inside has hooks"):
        accelerate(model)
    model = build()
    accelerate(model)
    assert_original(add(model), "a CrossDocumentMixer inside has hooks", **batch)


def test_bad_cluster_ids_raise_what_the_model_raises() -> None:
    model = build()
    accelerate(model)
    with pytest.raises(ValueError, match=r"cluster_ids must be \[4\], one per document, got \[3\]"):
        model(**inputs(PADDING["right"]), cluster_ids=torch.tensor([0, 0, 1]))
    with pytest.raises(TypeError, match="must hold integers"):
        model(**inputs(PADDING["right"]), cluster_ids=torch.zeros(4))


def test_a_subclass_with_a_forward_of_its_own_is_left_alone() -> None:
    class Doubled(SpanBERTModel):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = super().forward(*args, **kwargs)
            output.last_hidden_state = 2 * output.last_hidden_state
            return output

    with pytest.raises(ValueError, match="Doubled overrides forward"):
        accelerate(build(Doubled))
