"""Inference: what an accelerated model returns is what transformers returns, at real tokens."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import LIKE_BERT, PADDING, assert_agrees, encoder, head, in_float64, inputs
from torch import nn
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    ElectraForSequenceClassification,
    RobertaForSequenceClassification,
)

from spanbert_kernels import accelerate, ops
from spanbert_kernels.acceleration import inference, linears
from spanbert_kernels.testing import assert_as_exact_as_eager

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def three_ways(model: Any, batch: dict[str, Any], expected_path: str = "packed-inference") -> tuple[Any, Any, Any]:
    """The accelerated model's output, transformers' in the same dtype, and the double precision reference."""
    accelerated = copy.deepcopy(model)
    report = accelerate(accelerated)
    doubles = {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}
    with torch.no_grad():
        outputs = accelerated(**batch), model(**batch), in_float64(model)(**doubles)
    assert report.last_path == expected_path
    return outputs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("family", LIKE_BERT)
def test_encoders(family: str, padding: str, dtype: torch.dtype) -> None:
    model, mask = encoder(family).to(dtype), PADDING[padding]
    model.pooler = None
    result, eager, reference = three_ways(model, inputs(mask))
    assert_agrees(result.last_hidden_state[mask], eager.last_hidden_state[mask], reference.last_hidden_state[mask])
    assert not result.last_hidden_state[~mask].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("padding", ["right", "middle", "none"])
def test_pooler(padding: str, dtype: torch.dtype) -> None:
    result, eager, reference = three_ways(encoder().to(dtype), inputs(PADDING[padding]))
    assert type(result) is type(eager)
    assert list(result) == list(eager)
    assert_agrees(result.pooler_output, eager.pooler_output, reference.pooler_output)


def many_batches(model: Any, mask: torch.Tensor, **labels: torch.Tensor) -> list[tuple[Any, Any, Any]]:
    """`three_ways` on sixteen batches. A rounding error is only comparable over many numbers, and a loss is one."""
    return [three_ways(model, {**inputs(mask, seed), **labels}) for seed in range(16)]


def assert_named_agree(outputs: list[tuple[Any, Any, Any]], name: str, mask: torch.Tensor | None = None) -> None:
    joined = [torch.stack([getattr(output, name) for output in way]) for way in zip(*outputs, strict=True)]
    result, eager, reference = joined if mask is None else (each[:, mask] for each in joined)
    assert_agrees(result, eager, reference)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "model_class", [BertForSequenceClassification, RobertaForSequenceClassification, ElectraForSequenceClassification]
)
def test_sequence_heads(model_class: Any, dtype: torch.dtype) -> None:
    outputs = many_batches(head(model_class).to(dtype), PADDING["right"], labels=torch.tensor([0, 2, 1, 1]))
    assert_named_agree(outputs, "logits")
    assert_named_agree(outputs, "loss")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padding", ["right", "left", "middle", "none"])
@pytest.mark.parametrize("model_class", [BertForTokenClassification, BertForMaskedLM])
def test_token_heads_and_their_loss(model_class: Any, padding: str, dtype: torch.dtype) -> None:
    mask = PADDING[padding]
    labels = torch.where(mask, torch.arange(mask.numel()).view(mask.shape) % 3, -100)
    outputs = many_batches(head(model_class).to(dtype), mask, labels=labels)
    assert_named_agree(outputs, "logits", mask)
    assert_named_agree(outputs, "loss")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_question_answering(dtype: torch.dtype) -> None:
    model, mask = head(BertForQuestionAnswering, num_labels=2).to(dtype), PADDING["left"]
    outputs = many_batches(model, mask)
    assert_named_agree(outputs, "start_logits", mask)
    assert_named_agree(outputs, "end_logits", mask)
    # The loss looks at padded logits too, so it is compared where there are none.
    answers = {"start_positions": torch.tensor([1, 2, 3, 4]), "end_positions": torch.tensor([4, 5, 6, 7])}
    assert_named_agree(many_batches(model, PADDING["none"], **answers), "loss")


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("padding", ["right", "middle"])
def test_own_positions_and_embeddings(family: str, padding: str) -> None:
    mask = PADDING[padding]
    model, batch = encoder(family), inputs(mask)
    embedded = {k: v for k, v in batch.items() if k != "input_ids"}
    embedded["inputs_embeds"] = model.embeddings.word_embeddings(batch["input_ids"]).detach()
    positions = {**batch, "position_ids": torch.arange(mask.shape[1]).flip(0)[None]}
    for given in (embedded, positions, {**embedded, **positions, "input_ids": None}):
        given = {k: v for k, v in given.items() if v is not None}
        result, eager, reference = three_ways(model, given)
        assert_agrees(result.last_hidden_state[mask], eager.last_hidden_state[mask], reference.last_hidden_state[mask])


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "camembert", "data2vec"])
def test_padding_ids_that_are_attended_and_other_ids_that_are_not(family: str) -> None:
    """RoBERTa counts positions by ids, whatever the mask says."""
    mask = PADDING["middle"]
    model, batch = encoder(family), inputs(mask)
    batch["input_ids"] = torch.randint(0, 5, mask.shape, generator=torch.Generator().manual_seed(3))
    assert (batch["input_ids"][mask] == 1).any()
    assert (batch["input_ids"][~mask] != 1).any()
    result, eager, reference = three_ways(model, batch)
    assert_agrees(result.last_hidden_state[mask], eager.last_hidden_state[mask], reference.last_hidden_state[mask])


def test_no_mask_and_boolean_and_float_masks() -> None:
    model, mask = encoder(), PADDING["right"]
    ids = inputs(mask)["input_ids"]
    result, eager, reference = three_ways(model, {"input_ids": ids})
    assert_agrees(result.last_hidden_state, eager.last_hidden_state, reference.last_hidden_state)
    for given in (mask, mask.float()):
        result, eager, reference = three_ways(model, {"input_ids": ids, "attention_mask": given})
        assert_agrees(result.last_hidden_state[mask], eager.last_hidden_state[mask], reference.last_hidden_state[mask])


@pytest.mark.parametrize("padding", ["right", "none"])
def test_hidden_states_and_tuples(padding: str) -> None:
    mask = PADDING[padding]
    result, eager, reference = three_ways(encoder(), {**inputs(mask)})
    model = encoder(output_hidden_states=True)
    result, eager, reference = three_ways(model, inputs(mask))
    assert len(result.hidden_states) == len(eager.hidden_states) == 3
    for ours, theirs, exact in zip(result.hidden_states, eager.hidden_states, reference.hidden_states, strict=True):
        assert_agrees(ours[mask], theirs[mask], exact[mask])
        assert not ours[~mask].any()
    accelerate(model)
    with torch.no_grad():
        as_tuple = model(**inputs(mask), return_dict=False)
        assert model(**inputs(mask), output_hidden_states=False).hidden_states is None
    assert [type(each) for each in as_tuple] == [torch.Tensor, torch.Tensor, tuple]
    assert torch.equal(as_tuple[0], result.last_hidden_state)
    model.config.return_dict = False
    with torch.no_grad():
        assert isinstance(model(**inputs(mask)), tuple)
        assert isinstance(model(**inputs(mask), return_dict=None), tuple)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "relu", "silu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations(activation: str, dtype: torch.dtype) -> None:
    mask = PADDING["right"]
    result, eager, reference = three_ways(encoder(hidden_act=activation).to(dtype), inputs(mask))
    assert_agrees(result.last_hidden_state[mask], eager.last_hidden_state[mask], reference.last_hidden_state[mask])


@pytest.mark.parametrize("rows", [1, 5, 8])
def test_feed_forward_in_blocks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "FEED_FORWARD_ROWS", rows)
    mask = PADDING["right"]
    result, eager, reference = three_ways(encoder(), inputs(mask))
    assert_agrees(result.last_hidden_state[mask], eager.last_hidden_state[mask], reference.last_hidden_state[mask])


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
def test_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switching oneDNN off and on between calls is noticed."""
    monkeypatch.setenv("SPANBERT_KERNELS_ENCODER", "separate")
    model, mask = encoder(), PADDING["right"]
    with torch.backends.mkldnn.flags(enabled=False):
        assert linears.linears_for(torch.float32) is linears.PLAIN
        result, eager, reference = three_ways(model, inputs(mask))
    assert_agrees(result.last_hidden_state[mask], eager.last_hidden_state[mask], reference.last_hidden_state[mask])
    accelerate(model)
    with torch.no_grad():
        before = model(**inputs(mask)).last_hidden_state
        with torch.backends.mkldnn.flags(enabled=False):
            plain = model(**inputs(mask)).last_hidden_state
            assert model.forward._packed_layers.layers.linears is linears.PLAIN
        after = model(**inputs(mask)).last_hidden_state
    assert_agrees(plain[mask], eager.last_hidden_state[mask], reference.last_hidden_state[mask])
    assert torch.equal(before, after)


def test_onednn_is_used_where_pytorch_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANBERT_KERNELS_LINEARS", "onednn")
    if torch.backends.mkldnn.is_available():
        assert linears.linears_for(torch.float32) is linears.ONEDNN_FUSED
    else:
        with pytest.raises(ops.backends.BackendUnavailable, match="oneDNN does not multiply"):
            linears.linears_for(torch.float32)
    assert linears.linears_for(torch.float64) is linears.PLAIN


def test_few_rows_and_many_are_measured_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reason = ops.backends.refusal("cpu", "cpu", torch.float32)
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setenv("SPANBERT_KERNELS_LINEARS", "measure")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def seconds(functions: dict[str, Any]) -> dict[str, float]:
        for function in functions.values():
            function()
        slow = "packed" if len(measured) else "torch"
        measured.append(sorted(functions))
        return {way: 2.0 if way != slow else 1.0 for way in functions}

    measured: list[list[str]] = []
    monkeypatch.setattr("spanbert_kernels.ops.measured.fastest_seconds", seconds)
    for choice in linears.CHOICES[torch.float32]:
        monkeypatch.setattr(choice, "_found", {})
    way = linears.linears_for(torch.float32)
    assert len(measured) == 2
    assert "packed" in measured[1]
    assert way.name == "PyTorch's below 65 rows, packed_linear"
    assert linears.linears_for(torch.float32) is way


def test_attention_runs_once_a_layer_on_the_real_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANBERT_KERNELS_ENCODER", "separate")
    model, mask = encoder(), PADDING["right"]
    accelerate(model)
    shapes = []
    attention = ops.document_attention
    monkeypatch.setattr(ops, "document_attention", lambda q, *a, **k: shapes.append(q.shape) or attention(q, *a, **k))
    with torch.no_grad(), ops.backends.record() as ran:
        model(**inputs(mask))
    assert shapes == [(int(mask.sum()), 4, 8)] * 2
    assert [operation for operation, _ in ran if operation != "packed_linear"] == ["document_attention"] * 2


def test_attention_implementations_of_transformers_are_equal() -> None:
    mask = PADDING["right"]
    for name in ("eager", "sdpa"):
        result, eager, reference = three_ways(encoder(attn_implementation=name), inputs(mask))
        assert_agrees(result.last_hidden_state[mask], eager.last_hidden_state[mask], reference.last_hidden_state[mask])


def test_frozen_model_under_autograd_runs_the_inference_path() -> None:
    model = head(BertForTokenClassification)
    model.bert.requires_grad_(False)
    report = accelerate(model)
    model(**inputs(PADDING["right"])).logits.sum().backward()
    assert report.last_path == "packed-inference"
    assert model.classifier.weight.grad is not None


def test_double_precision() -> None:
    model, mask = encoder(), PADDING["right"]
    _, eager, reference = three_ways(model, inputs(mask))
    result, same, _ = three_ways(model.double(), inputs(mask), "packed-training")
    assert torch.equal(same.last_hidden_state, reference.last_hidden_state)
    assert_as_exact_as_eager(*(way.last_hidden_state[mask] for way in (result, reference, eager)))


def test_inference_mode() -> None:
    model, mask = encoder(), PADDING["right"]
    report = accelerate(model)
    with torch.inference_mode():
        first = model(**inputs(mask)).last_hidden_state
    with torch.no_grad():
        second = model(**inputs(mask)).last_hidden_state
    assert report.calls == {"packed-inference": 2}
    assert torch.equal(first, second)


def test_inside_another_module() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder()
            self.layer = nn.Linear(32, 2)

    tagger = Tagger()
    report = accelerate(tagger)
    assert [(each.name, each.class_name, each.layers) for each in report.replaced] == [("encoder", "BertModel", 2)]
    assert str(report) == "accelerated: BertModel at 'encoder', 2 layers"
