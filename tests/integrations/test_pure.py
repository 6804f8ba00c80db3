"""PURE's scores, vectors and gradients, and what it does with spans that are none, by both ways."""

from __future__ import annotations

from typing import Any

import originals.pure
import pytest
import torch
import torch.nn.functional as F
from acceleration.agreement import assert_agrees, drawn_again, seeded
from torch import Tensor
from transformers import AlbertConfig, BertConfig

import spanbert_kernels as sk
from spanbert_kernels.acceleration import AccelerationWarning

LENGTH = 7
SIZES = {
    "vocab_size": 40,
    "embedding_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,
}
MODELS = {"bert": (originals.pure.BertForEntity, BertConfig), "albert": (originals.pure.AlbertForEntity, AlbertConfig)}


def built(name: str = "bert") -> Any:
    kind, config = MODELS[name]
    model = seeded(lambda: kind(config(**SIZES), 3, head_hidden_dim=6, width_embedding_dim=4, max_span_length=4))
    for layer in model.ner_classifier[0]._dropout:
        layer.p = 0.0
    return model.eval()


def batch(**changed: Any) -> dict[str, Tensor]:
    """The second row is shorter and has fewer spans; its padded ones are (0, 0, 0), as PURE pads."""
    spans = torch.tensor([[[1, 1, 1], [1, 3, 2], [5, 6, 2]], [[2, 4, 3], [0, 0, 0], [0, 0, 0]]])
    made = {
        "input_ids": torch.arange(14).view(2, LENGTH) + 3,
        "spans": spans,
        "spans_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
        "spans_ner_label": torch.tensor([[0, 2, 1], [1, 0, 0]]),
        "attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2]),
    }
    return {**made, **changed}


def step(model: Any, **changed: Any) -> list[Tensor]:
    """What is returned, and all gradients as one: some of the encoder's are 0 but for rounding."""
    model.zero_grad()
    found = model(**batch(**changed))
    found[0].sum().backward()
    gradients = [each.grad.flatten() for each in model.parameters() if each.grad is not None]
    return [*(each.detach() for each in found), torch.cat(gradients)]


@pytest.mark.parametrize("changed", [{}, {"attention_mask": None}, {"spans_ner_label": None}], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_what_is_returned_and_gradients(name: str, changed: dict[str, None]) -> None:
    """Padded spans are scored as any other and masked in the loss alone, unless no attention mask was given."""
    model = built(name)
    exact, eager = step(built(name).double(), **changed), step(model, **changed)
    again = drawn_again(lambda: step(model, **changed))
    report = sk.accelerate(model)
    found = step(model, **changed)
    assert len(found) == len(exact)
    for draws in zip(found, eager, exact, *again, strict=True):
        assert_agrees(*draws)
    (stands,) = report.span_layers
    assert (str(stands), dict(stands.calls)) == (
        f"{type(model).__name__}, the scorer's first layer applied to tokens",
        {"fused": 1},
    )
    assert [each.name for each in report.replaced] == [name]
    for mine, theirs in zip(step(model.double(), **changed), exact, strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(
    ("span", "reason", "error"),
    [
        ([5, 7, 3], "a span outside the 7 tokens of its row", ValueError),
        ([-1, 2, 3], "a span outside the 7 tokens of its row", ValueError),
        ([1, 2, 5], "a width outside the 5 rows of the table", IndexError),
        ([3, 1, 2], "a span that ends before it begins", None),
    ],
)
def test_spans_that_are_none_take_the_path_of_pure(span: list[int], reason: str, error: type[Exception] | None) -> None:
    plain, fused = built(), built()
    report = sk.accelerate(fused)
    spans = batch()["spans"].clone()
    spans[0, 2] = torch.tensor(span)
    if error is None:
        with pytest.warns(AccelerationWarning, match=reason):
            found = step(fused, spans=spans)
        for mine, theirs in zip(found, step(plain, spans=spans), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        assert report.span_layers[0].last_path == f"original: {reason}"
        return
    for model in (plain, fused):
        with pytest.raises(error):
            model(**batch(spans=spans))


def test_no_spans_compiled_and_autocast() -> None:
    plain, fused = built(), built()
    report = sk.accelerate(fused)
    nothing = torch.zeros(2, 0, 3, dtype=torch.long)
    options = {"spans": nothing, "spans_mask": nothing[..., 0], "spans_ner_label": None}
    compiled = torch.compile(fused, backend="eager")
    with torch.no_grad():
        for mine, theirs in zip(fused(**batch(**options)), plain(**batch(**options)), strict=True):
            assert mine.shape == theirs.shape
        for mine, theirs in zip(compiled(**batch()), plain(**batch()), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            for mine, theirs in zip(fused(**batch()), plain(**batch()), strict=True):
                torch.testing.assert_close(mine.float(), theirs.float(), rtol=0.05, atol=0.05)
    assert dict(report.span_layers[0].calls) == {"fused": 3}


def test_dropout_of_states_and_between_the_layers() -> None:
    """With everything dropped of the states only the width is left; behind the first layer, only later biases are."""
    model = built().train()
    sk.accelerate(model)
    model.hidden_dropout.p = model.ner_classifier[0]._dropout[0].p = 1.0
    scores, vectors, _ = model(**batch(spans_ner_label=None))
    assert not vectors[..., :32].any()
    assert vectors[..., 32:].all()
    assert torch.equal(scores, scores[:1, :1].expand_as(scores))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: model.ner_classifier[0]._activations.__setitem__(0, F.gelu), "the activation of its scorer is"),
        (lambda model: model.ner_classifier.__setitem__(0, torch.nn.Linear(36, 6)), "its scorer begins with a Linear"),
        (lambda model: model.ner_classifier[0]._activations.reverse(), None),
    ],
    ids=["another activation", "another scorer", "the same"],
)
def test_other_scorers_stay_as_they_are(change: Any, reason: str | None) -> None:
    model = built()
    change(model)
    report = sk.accelerate(model)
    assert [each.reason for each in report.skipped if reason is None or not each.reason.startswith(reason)] == []
    assert len(report.span_layers) == (reason is None)
