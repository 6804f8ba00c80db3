"""SpERT's scores, gradients and behaviour on bad input, with candidates pooled as spans and as it pools them."""

from __future__ import annotations

import copy
import pickle
import sys
from types import ModuleType
from typing import Any

import originals.spert
import pytest
import torch
from acceleration.agreement import seeded
from torch import Tensor, nn
from transformers import BertConfig

import spanbert_kernels as sk
from spanbert_kernels.acceleration import AccelerationWarning
from spanbert_kernels.integrations import spert
from spanbert_kernels.testing import assert_as_exact_as_eager

LENGTH, CLS = 9, 50


def built(kind: type = originals.spert.SpERT, **options: Any) -> Any:
    config = BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.3,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    settings = {"size_embedding": 5, "prop_drop": 0.0, "freeze_transformer": False, "max_pairs": 3, **options}
    return seeded(lambda: kind(config, CLS, 3, 4, **settings)).eval()


def masks_of(spans: list[list[list[int]]]) -> Tensor:
    """Half-open spans `[B, N, 2]` as masks `[B, N, L]`."""
    bounds, places = torch.tensor(spans), torch.arange(LENGTH)
    return (places >= bounds[..., :1]) & (places < bounds[..., 1:])


def batch() -> dict[str, Tensor]:
    """Two documents, the second shorter; padded candidates and relations, neighbours with nothing between them."""
    generator = torch.Generator().manual_seed(1)
    encodings = torch.randint(1, CLS, (2, LENGTH), generator=generator)
    encodings[:, 0] = CLS
    encodings[1, 6:] = 0
    candidates = masks_of([[[1, 3], [2, 3], [5, 9], [0, 0]], [[1, 2], [2, 6], [0, 0], [0, 0]]])
    contexts = masks_of([[[3, 5], [3, 5], [0, 0], [3, 5], [4, 4]], [[0, 0]] * 5])
    return {
        "encodings": encodings,
        "context_masks": encodings != 0,
        "entity_masks": candidates,
        "entity_sizes": candidates.sum(-1),
        "relations": torch.tensor([[[0, 2], [2, 0], [0, 1], [1, 2], [2, 3]], [[0, 1], [1, 0], [0, 0], [0, 0], [0, 0]]]),
        "rel_masks": contexts,
    }


def for_predictions(given: dict[str, Tensor]) -> dict[str, Tensor]:
    wanted = {name: value for name, value in given.items() if name not in ("relations", "rel_masks")}
    masks = given["entity_masks"]
    start = masks.to(torch.uint8).argmax(-1)
    spans = torch.stack([start, start + masks.sum(-1)], -1)
    return {**wanted, "entity_spans": spans, "entity_sample_masks": masks.any(-1)}


def step(model: Any, **changed: Tensor) -> list[Tensor]:
    """Both scores and every gradient; the incoming gradients have a number for each score, padding included."""
    model.zero_grad()
    scores = model(**{**batch(), **changed})
    loss = sum((each * torch.linspace(0.5, 1.5, each.numel()).view_as(each)).sum() for each in scores)
    loss.backward()
    return [each.detach() for each in scores] + [p.grad for p in model.parameters() if p.grad is not None]


def test_scores_and_gradients() -> None:
    """Padded candidates are -1e30 in both, with the gradient of token 0; the encoder inside runs packed."""
    model = built()
    exact = step(built().double())
    eager = step(model)
    report = sk.accelerate(model)
    found = step(model)
    for mine, theirs, right in zip(found, eager, exact, strict=True):
        # The largest numbers of all are those of padding, which say nothing about the others.
        real = right.abs() < 1e20
        assert torch.equal(mine[~real], theirs[~real])
        assert_as_exact_as_eager(mine[real], right[real], theirs[real])
    assert {str(each) for each in (*report.replaced, *report.span_layers)} == {
        "BertModel at 'bert', 1 layer",
        "SpERT, candidates and contexts pooled as spans",
    }
    assert dict(report.calls) == {"packed-training (gradients are on)": 1}
    assert dict(report.span_layers[0].calls) == {"fused": 1}


def test_in_float64() -> None:
    plain, fused = built().double(), built().double()
    sk.accelerate(fused)
    for mine, theirs in zip(step(fused), step(plain), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)  # SpERT keeps relations' scores in float32


def test_predictions() -> None:
    model, given = built(), for_predictions(batch())
    with torch.no_grad():
        expected = model(**given, inference=True)
        report = sk.accelerate(model)
        found = model(**given, inference=True)
    assert expected[2].shape[1] > 1, "no relation was predicted"
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert report.span_layers[0].last_path == "fused"


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"relations": torch.full((2, 5, 2), 7)}, IndexError),
        ({"entity_sizes": torch.full((2, 4), 100)}, IndexError),
        ({"encodings": torch.full((2, LENGTH), CLS)}, RuntimeError),  # more than one first token in a document
    ],
    ids=["a candidate that is not there", "a size beyond the table", "two first tokens"],
)
def test_what_raises_raises_the_same(changed: dict[str, Tensor], error: type[Exception]) -> None:
    plain, fused = built(), built()
    sk.accelerate(fused)
    for model in (plain, fused):
        with pytest.raises(error):
            model(**{**batch(), **changed})


@pytest.mark.parametrize(
    ("name", "changed", "reason"),
    [
        ("entity_masks", lambda masks: masks | (torch.arange(LENGTH) == 5), "a mask whose tokens do not stand side by"),
        ("rel_masks", lambda masks: masks.float(), "masks of torch.float32"),
    ],
)
def test_other_masks_take_the_path_of_spert(name: str, changed: Any, reason: str) -> None:
    plain, fused = built(), built()
    report = sk.accelerate(fused)
    masks = {name: changed(batch()[name])}
    with (
        torch.no_grad(),
        pytest.warns(AccelerationWarning, match=f"SpERT.forward: the package's own path ran: {reason}"),
    ):
        found = fused(**{**batch(), **masks})
    assert report.span_layers[0].last_path.startswith(f"original: {reason}")
    for mine, theirs in zip(found, plain(**{**batch(), **masks}), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_state_dict_copies_and_restore(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("spert.models")
    module.SpERT = originals.spert.SpERT  # type: ignore[attr-defined]
    for name in ("spert", "spert.models"):  # where pickle looks for the class
        monkeypatch.setitem(sys.modules, name, module)
    model = built()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    report = sk.accelerate(model)
    assert list(model.state_dict()) == list(state)
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    with torch.no_grad():
        expected = model(**batch())
        for twin in twins:
            assert all(map(torch.equal, twin(**batch()), expected))
            assert twin.forward.module is twin
            assert sk.accelerate(twin).already
    assert dict(report.span_layers[0].calls) == {"fused": 1}
    model.load_state_dict(state)
    sk.restore(model)
    assert "forward" not in model.__dict__
    assert model.forward.__func__ is originals.spert.SpERT.forward


def test_under_autocast_and_compiled() -> None:
    """In 16 bits the hidden states are the same, so that the maximum is; a compiled model breaks its graph here."""
    plain, fused = built(), built()
    sk.accelerate(fused)
    hidden = torch.randn(2, LENGTH, 16).bfloat16()
    masks = batch()["entity_masks"]
    expected = originals.spert.masked_maximum(hidden, masks)
    found = spert.pooled_candidates(hidden, *spert.bounds_of(masks))
    assert found.dtype == expected.dtype == torch.float32
    assert torch.equal(found, expected)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for mine, theirs in zip(fused(**batch()), plain(**batch()), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0.05, atol=0.05)
    with torch.no_grad():
        compiled = torch.compile(fused, backend="eager")
        for mine, theirs in zip(compiled(**batch()), plain(**batch()), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


class OwnPooling(originals.spert.SpERT):
    def _classify_entities(self, *args: Any) -> Any:
        return super()._classify_entities(*args)


def changed_copy() -> type:
    """The class as somebody's checkout may have it."""

    class Mean(originals.spert.SpERT):
        __module__, __qualname__ = "spert.models", "SpERT"

        def _classify_entities(self, encodings: Tensor, h: Tensor, masks: Tensor, sizes: Tensor) -> Any:
            scores, pooled = super()._classify_entities(encodings, h, masks, sizes)
            return scores, pooled / 2

    return Mean


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (OwnPooling, "OwnPooling overrides _classify_entities"),
        (changed_copy(), "it computes something else than the package's"),
    ],
    ids=["a subclass", "a changed copy"],
)
def test_other_code_stays_as_it_is(kind: type, reason: str) -> None:
    model = built(kind)
    report = sk.accelerate(nn.ModuleDict({"spert": model}))
    assert [str(each) for each in report.replaced] == ["BertModel at 'spert.bert', 1 layer"]
    assert [each.reason for each in report.skipped] == [reason]
    assert report.span_layers == ()
    assert "forward" not in model.__dict__


def test_dropout_drops_what_spert_drops() -> None:
    """With everything dropped between pooling and classifier only biases are left."""
    model = built(prop_drop=1.0).train()
    sk.accelerate(model)
    entity_scores, _ = model(**batch())
    assert torch.equal(entity_scores, model.entity_classifier.bias.expand_as(entity_scores))
