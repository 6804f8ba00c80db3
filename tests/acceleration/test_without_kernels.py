"""Where no compiled kernel serves: what is missing is said, and the packed path still gains, or is not taken."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from agreement import (
    NO_DROPOUT,
    PADDING,
    assert_agrees,
    assert_all_agree,
    encoder,
    gradients,
    head,
    in_float64,
    inputs,
    inputs_of,
)
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertForTokenClassification

from spanbert_kernels import accelerate, ops, register_attention

REASON = "the compiled extension was not built: no compiler found"
WANTED = ["document_attention"] * 2


@pytest.fixture(autouse=True)
def not_asked(our_attention: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPANBERT_KERNELS_BACKEND", raising=False)
    monkeypatch.setattr(ops.backends, "_forced", None)


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch, not_asked: None) -> None:
    monkeypatch.setitem(ops.backends._LOADERS, "cpu", lambda: REASON)


def trained(model: Any, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
    labels = torch.where(
        batch["attention_mask"] > 0, torch.arange(batch["input_ids"].numel()).view_as(batch["input_ids"]) % 3, -100
    )
    return gradients(model, model(**batch, labels=labels).loss)


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize("padding", PADDING)
def test_outputs_and_gradients_agree(padding: str) -> None:
    model, batch = head(BertForTokenClassification, **NO_DROPOUT), inputs(PADDING[padding])
    double, accelerated = in_float64(model), copy.deepcopy(model)
    report = accelerate(accelerated)
    with ops.backends.record() as ran, torch.no_grad():
        outputs = [each(**batch).logits[PADDING[padding]] for each in (accelerated, model, double)]
    assert_agrees(*outputs)
    for each in (accelerated, model, double):
        each.train()
    assert_all_agree(*(trained(each, batch) for each in (accelerated, model, double)))
    assert ran == []
    assert report.calls == {"packed-inference": 1, "packed-training": 1}


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize(("padding", "gains"), [("right", True), ("none", False)])
def test_training_takes_no_more_products_than_before(padding: str, gains: bool) -> None:
    """Our eager attention, in its place, would take 2.5 times as long as the whole model did."""
    model, batch = head(BertForTokenClassification, **NO_DROPOUT).train(), inputs(PADDING[padding])
    counts = []
    for _ in range(2):
        with FlopCounterMode(display=False) as products:
            trained(model, batch)
        counts.append(products.get_total_flops())
        if len(counts) == 1:
            accelerate(model)
    before, after = counts
    assert after < 0.7 * before if gains else after == before


@pytest.mark.usefixtures("no_kernels")
def test_dropout_drops() -> None:
    model, batch = head(BertForTokenClassification, attention_probs_dropout_prob=0.5).train(), inputs(PADDING["right"])
    accelerate(model)
    torch.manual_seed(1)
    first = model(**batch).logits
    assert not torch.equal(first, model(**batch).logits)
    torch.manual_seed(1)
    assert torch.equal(first, model(**batch).logits)


def test_the_report_says_what_is_missing_and_what_that_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    report = accelerate(encoder())
    monkeypatch.setitem(ops.backends._LOADERS, "cpu", lambda: None)
    assert report.missing is None
    assert str(report) == "accelerated: BertModel, 2 layers"
    monkeypatch.setitem(ops.backends._LOADERS, "cpu", lambda: REASON)
    assert report.missing is not None
    assert report.missing.startswith(f"no compiled attention for float32 on cpu (cpu: {REASON}): PyTorch's own takes")
    assert report.missing.endswith("batches with much padding take longer than with it")
    assert str(report) == f"accelerated: BertModel, 2 layers\nmissing: {report.missing}"


@pytest.mark.usefixtures("no_kernels")
@pytest.mark.parametrize("by", ["use", "variable"])
def test_who_asks_for_eager_gets_it(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = encoder(), inputs(PADDING["right"])
    report = accelerate(model)
    if by == "variable":
        monkeypatch.setenv("SPANBERT_KERNELS_BACKEND", "eager")
    with ops.backends.use("eager") if by == "use" else torch.no_grad(), ops.backends.record() as ran, torch.no_grad():
        model(**batch)
        assert report.missing is None
    assert ran == [(name, "eager") for name in WANTED]


@pytest.mark.parametrize("name", ["albert", "distilbert"])
def test_attention_alone_of_other_encoders(name: str) -> None:
    """By transformers' own switch: attention without padding, equal at the real tokens."""
    model, mask = encoder(name), PADDING["right"]
    batch, double = inputs_of(model, mask), in_float64(model)
    register_attention()
    with torch.no_grad():
        expected, reference = (each(**batch).last_hidden_state[mask] for each in (model, double))
        model.set_attn_implementation("spanbert_kernels")
        with ops.backends.use("eager"), ops.backends.record() as ran:
            assert_agrees(model(**batch).last_hidden_state[mask], expected, reference)
    assert [operation for operation, _ in ran] == WANTED
