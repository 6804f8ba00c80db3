"""Training without dropout: gradients, optimiser steps, autocast and gradient checkpointing as in transformers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from agreement import (
    LIKE_BERT,
    NO_DROPOUT,
    PADDING,
    assert_agrees,
    assert_all_agree,
    encoder,
    gradients,
    head,
    in_float64,
    inputs,
)
from torch import Tensor
from transformers import (
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
)

from spanbert_kernels import accelerate, ops
from spanbert_kernels.acceleration import embeddings
from spanbert_kernels.ops import large, products

Loss = Callable[[Any, Tensor], Tensor]


def real_states(output: Any, mask: Tensor) -> Tensor:
    """A loss whose gradient differs from entry to entry, and that no padded position reaches."""
    states = output.last_hidden_state[mask]
    weights = torch.linspace(-1, 1, states.numel(), dtype=states.dtype).view_as(states)
    return (states.square() * weights).sum()


def real_answers(output: Any, mask: Tensor) -> Tensor:
    """The head's own loss takes a softmax over padded positions too."""
    return output.start_logits[mask].square().sum() + output.end_logits[mask].sum()


def own_loss(output: Any, mask: Tensor) -> Tensor:
    """What the head itself returns."""
    return output.loss


def token_labels(mask: Tensor) -> Tensor:
    return torch.where(mask, torch.arange(mask.numel()).view(mask.shape) % 3, -100)


def assert_same_gradients(
    model: Any, batch: dict[str, Tensor], mask: Tensor, loss: Loss, context: Callable[[], Any] = torch.enable_grad
) -> None:
    """Of all parameters, against transformers' own, with the dropout in the model's configuration at 0."""
    model.train()
    accelerated = copy.deepcopy(model)
    report = accelerate(accelerated)
    with context(), ops.backends.record() as ran:
        result = loss(accelerated(**batch), mask)
    operations = [operation for operation, _ in ran]
    assert operations.count("document_attention") == 2
    # Two a layer, or two for each part of one; under autocast PyTorch's own modules.
    in_one_pass = operations.count("dropout_add_layer_norm")
    kernels = context is torch.enable_grad and ops.backends.asked() is None
    assert in_one_pass >= 4 if kernels else in_one_pass == 0
    with context():
        eager = loss(model(**batch), mask)
    double = in_float64(model)
    found = gradients(accelerated, result), gradients(model, eager), gradients(double, loss(double(**batch), mask))
    assert report.calls == {"packed-training": 1}
    unused = {name for name, _ in model.named_parameters() if name not in found[2]}
    assert all("pooler" in name for name in unused)
    assert_all_agree(*found)


@pytest.mark.parametrize("padding", ["right", "left", "middle", "none"])
@pytest.mark.parametrize("family", LIKE_BERT)
def test_encoders(family: str, padding: str) -> None:
    model, mask = encoder(family, **NO_DROPOUT), PADDING[padding]
    model.pooler = None
    assert_same_gradients(model, inputs(mask), mask, real_states)


@pytest.fixture
def looked_up(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The ids of words whose rows are looked up outside of the encoder's module, as those of large tables are."""
    if ops.backends.refusal("cpu", "cpu", torch.float32) is not None:
        pytest.skip("no compiled kernels")
    found: list[torch.Size] = []
    usual = embeddings.look_up

    def look_up(ids: Tensor, *more: Any) -> Tensor:
        found.append(ids.shape)
        return usual(ids, *more)

    monkeypatch.setattr(embeddings, "look_up", look_up)
    monkeypatch.setattr(large, "BYTES", 1)
    return found


@pytest.mark.parametrize("padding", ["right", "middle", "none"])
@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "camembert", "electra"])
def test_large_tables_of_words(family: str, padding: str, looked_up: list[torch.Size]) -> None:
    model, mask = encoder(family, **NO_DROPOUT), PADDING[padding]
    model.pooler = None
    batch = inputs(mask)
    batch["input_ids"][0, 3] = model.config.pad_token_id  # attended; positions are counted by ids
    assert_same_gradients(model, batch, mask, real_states)
    batch["position_ids"] = torch.arange(mask.shape[1]).flip(0)[None] + 2
    assert_same_gradients(model, batch, mask, real_states)
    model(inputs_embeds=torch.zeros(*mask.shape, 16 if family == "electra" else 32), attention_mask=mask)
    shape = mask.shape if padding == "none" else torch.Size([1, int(mask.sum())])
    assert looked_up == [shape] * 2


def test_a_table_of_words_that_somebody_watches(looked_up: list[torch.Size]) -> None:
    model, mask = encoder(**NO_DROPOUT).requires_grad_(False), PADDING["right"]
    accelerate(model.train())
    model.embeddings.word_embeddings.weight.requires_grad_()
    model.enable_input_require_grads()  # by a hook on the table
    real_states(model(**inputs(mask)), mask).backward()
    assert model.embeddings.word_embeddings.weight.grad.any()
    assert looked_up == []


def test_another_product_than_pytorch_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six products a layer, each with two more in the backward."""
    onednn, multiplied = products.PRODUCTS["onednn"], []

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        multiplied.append(weight.shape)
        return onednn(x, weight, bias)

    if products.CHOICE.candidates["onednn"].refusal() is not None:
        pytest.skip("oneDNN does not multiply float32 here")
    monkeypatch.setitem(products.PRODUCTS, "onednn", counted)
    monkeypatch.setenv(products.VARIABLE, "onednn")
    monkeypatch.setattr(products, "FEWEST_ROWS", 1)
    model, mask = encoder(**NO_DROPOUT), PADDING["right"]
    model.pooler = None
    assert_same_gradients(model, inputs(mask), mask, real_states)
    assert len(multiplied) == 2 * 6 * 3


@pytest.mark.parametrize("padding", ["right", "middle", "none"])
def test_pooler(padding: str) -> None:
    mask = PADDING[padding]

    def loss(output: Any, mask: Tensor) -> Tensor:
        return output.pooler_output.square().sum() + real_states(output, mask)

    assert_same_gradients(encoder(**NO_DROPOUT), inputs(mask), mask, loss)


@pytest.mark.parametrize("padding", ["right", "left", "middle", "none"])
@pytest.mark.parametrize("model_class", [BertForTokenClassification, BertForMaskedLM])
def test_token_heads(model_class: Any, padding: str) -> None:
    mask = PADDING[padding]
    batch = {**inputs(mask), "labels": token_labels(mask)}
    assert_same_gradients(head(model_class, **NO_DROPOUT), batch, mask, own_loss)


@pytest.mark.parametrize("padding", ["right", "middle", "none"])
def test_sequence_head(padding: str) -> None:
    mask = PADDING[padding]
    batch = {**inputs(mask), "labels": torch.tensor([0, 2, 1, 1])}
    assert_same_gradients(head(BertForSequenceClassification, **NO_DROPOUT), batch, mask, own_loss)


@pytest.mark.parametrize("padding", ["right", "left", "middle", "none"])
def test_question_answering(padding: str) -> None:
    mask = PADDING[padding]
    model = head(BertForQuestionAnswering, num_labels=2, **NO_DROPOUT)
    assert_same_gradients(model, inputs(mask), mask, real_answers)
    if padding == "none":
        answers = {"start_positions": torch.tensor([1, 2, 3, 4]), "end_positions": torch.tensor([4, 5, 6, 7])}
        assert_same_gradients(model, {**inputs(mask), **answers}, mask, own_loss)


@pytest.mark.parametrize("padding", ["right", "none"])
def test_inputs_that_are_embeddings_get_their_gradient(padding: str) -> None:
    """Also of a frozen model, which without them would not be trained."""
    mask = PADDING[padding]
    model = encoder(**NO_DROPOUT).requires_grad_(False)
    embeds = model.embeddings.word_embeddings(inputs(mask)["input_ids"])
    accelerated = copy.deepcopy(model)
    report = accelerate(accelerated)
    found = []
    for each in (accelerated, model, in_float64(model)):
        leaf = embeds.to(each.dtype).clone().requires_grad_()
        real_states(each(inputs_embeds=leaf, attention_mask=mask), mask).backward()
        found.append(leaf.grad)
    assert report.last_path == "packed-training"
    assert not found[0][~mask].any()
    assert_agrees(*(gradient[mask] for gradient in found))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("padding", ["right", "left"])
def test_autocast(padding: str, dtype: torch.dtype) -> None:
    mask = PADDING[padding]
    model = head(BertForTokenClassification, **NO_DROPOUT)
    batch = {**inputs(mask), "labels": token_labels(mask)}
    assert_same_gradients(model, batch, mask, own_loss, lambda: torch.autocast("cpu", dtype=dtype))


def test_autocast_without_gradients() -> None:
    mask = PADDING["right"]
    model = encoder()
    accelerated = copy.deepcopy(model)
    report = accelerate(accelerated)
    with torch.no_grad():
        reference = in_float64(model)(**inputs(mask)).last_hidden_state
        with torch.autocast("cpu", dtype=torch.bfloat16):
            result, eager = (each(**inputs(mask)).last_hidden_state for each in (accelerated, model))
    assert report.last_path == "packed-inference"
    assert_agrees(result[mask], eager[mask], reference[mask])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    mask = PADDING["right"]
    model = head(BertForTokenClassification, **NO_DROPOUT).to(dtype)
    assert_same_gradients(model, {**inputs(mask), "labels": token_labels(mask)}, mask, own_loss)


def train(model: Any, steps: int = 6) -> dict[str, Tensor]:
    """The losses and the final parameters of a few optimiser steps over batches with all kinds of padding."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model.train()
    losses = []
    for step in range(steps):
        mask = list(PADDING.values())[step % len(PADDING)]
        loss = model(**inputs(mask, seed=step), labels=token_labels(mask)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return {"loss": torch.stack(losses), **{name: p.detach() for name, p in model.named_parameters()}}


@pytest.mark.parametrize("model_class", [BertForTokenClassification, BertForMaskedLM])
def test_optimiser_steps(model_class: Any) -> None:
    model = head(model_class, **NO_DROPOUT)
    accelerated, double = copy.deepcopy(model), in_float64(model)
    report = accelerate(accelerated)
    result, eager, reference = train(accelerated), train(model), train(double)
    assert report.calls == {"packed-training": 6}
    assert reference["loss"][-1] < reference["loss"][0]
    assert_all_agree(result, eager, reference)


def test_gradients_add_up_over_calls() -> None:
    model, mask = encoder(**NO_DROPOUT).double().train(), PADDING["right"]
    accelerate(model)
    once = gradients(model, real_states(model(**inputs(mask)), mask))
    once = {name: 2 * gradient for name, gradient in once.items()}
    both = real_states(model(**inputs(mask)), mask) + real_states(model(**inputs(mask)), mask)
    for name, gradient in gradients(model, both).items():
        torch.testing.assert_close(gradient, once[name])


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("rows", [0, 4])
def test_gradient_checkpointing(use_reentrant: bool, dropout: float, rows: int) -> None:
    """Equal to the bit: the recomputation draws the same dropout. `rows`: feed-forward in chunks."""
    mask = PADDING["right"][:, :8]
    options = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    model = head(BertForTokenClassification, chunk_size_feed_forward=rows, **options).train()
    batch = {**inputs(mask), "labels": token_labels(mask)}
    report = accelerate(model)
    found = []
    for calls in (2, 4):
        torch.manual_seed(3)
        with ops.backends.record() as ran:
            found.append(gradients(model, model(**batch).loss))
        assert [operation for operation, _ in ran].count("document_attention") == calls
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert report.calls == {"packed-training": 2}
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_feed_forward_in_chunks() -> None:
    mask = PADDING["right"][:, :8]
    assert_same_gradients(encoder(chunk_size_feed_forward=2, **NO_DROPOUT), inputs(mask), mask, real_states)


def test_frozen_layers_get_no_gradient() -> None:
    mask = PADDING["right"]
    model = head(BertForTokenClassification, **NO_DROPOUT)
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[0].requires_grad_(False)
    accelerate(model)
    found = gradients(model, model(**inputs(mask), labels=token_labels(mask)).loss)
    assert found
    assert all("layer.1" in name or "classifier" in name for name in found)
