"""The pre-training model: its losses, its tied weights, and the released file's names."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from spanbert_kernels import SpanBERTConfig, SpanBERTForPreTraining, SpanBERTModel, accelerate
from spanbert_kernels.models import load_released_heads

SIZES = {"vocab_size": 31, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def new_model(**fields: Any) -> SpanBERTForPreTraining:
    torch.manual_seed(0)
    model = SpanBERTForPreTraining(SpanBERTConfig(**SIZES, **fields)).eval()
    with torch.no_grad():
        for parameter in model.cls.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batch() -> dict[str, torch.Tensor]:
    labels = torch.full((2, 9), -100)
    labels[0, 2:5] = torch.tensor([7, 8, 9])
    labels[1, 1] = 5  # touches the special token: MLM alone
    labels[1, 3] = 6
    mask = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    ids = torch.randint(1, 31, (2, 9), generator=torch.Generator().manual_seed(1)) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "spans": torch.tensor([[0, 2, 4], [1, 3, 3]])}


def test_both_losses() -> None:
    model, given = new_model(), batch()
    output = model(**given)
    hidden = model.bert(given["input_ids"], given["attention_mask"]).last_hidden_state
    scores = model.cls.predictions(hidden)
    torch.testing.assert_close(output.mlm_loss, F.cross_entropy(scores.flatten(0, 1), given["labels"].flatten()))
    rows = torch.tensor([[2, 4], [9 + 3, 9 + 3]])
    logits, _, _ = model.cls.pair_target_predictions(hidden.flatten(0, 1), rows)
    expected = F.cross_entropy(logits, torch.tensor([7, 8, 9, 6]), reduction="sum") / 5  # one more than its targets
    torch.testing.assert_close(output.sbo_loss, expected)
    assert output.loss == output.mlm_loss + output.sbo_loss


def test_accelerated_gives_the_same_gradients() -> None:
    model, given = new_model(), batch()
    expected = torch.autograd.grad(model(**given).loss, list(model.parameters()))
    report = accelerate(model)
    found = torch.autograd.grad(model(**given).loss, list(model.parameters()))
    assert report.last_path.startswith("packed")
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_nothing_masked_is_no_loss_and_no_nan() -> None:
    given = batch()
    output = new_model()(given["input_ids"], labels=torch.full((2, 9), -100), spans=torch.zeros(0, 3, dtype=torch.long))
    assert output.loss == 0
    model = new_model()
    model(**{**given, "spans": torch.zeros(0, 3, dtype=torch.long)}).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())  # ranks that have spans wait for these


def test_both_heads_are_tied_to_the_embeddings(tmp_path: Path) -> None:
    model = new_model()
    words = model.bert.embeddings.word_embeddings.weight
    assert model.cls.predictions.decoder.weight is words
    assert model.cls.pair_target_predictions.decoder.weight is words
    model.save_pretrained(tmp_path)
    again = SpanBERTForPreTraining.from_pretrained(tmp_path)
    assert again.cls.pair_target_predictions.decoder.weight is again.bert.embeddings.word_embeddings.weight
    assert torch.equal(again(**batch()).loss, model(**batch()).loss)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"labels": None}, "labels must be .2, 9., got None"),
        ({"labels": torch.zeros(2, 8)}, r"labels must be \[2, 9\], got \[2, 8\]"),
        ({"spans": torch.tensor([[0, 0, 1]])}, "spans must lie in columns 1 to 7"),
        ({"spans": torch.tensor([[0, 2, 8]])}, "spans must lie in columns 1 to 7"),
    ],
)
def test_bad_arguments(change: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        new_model()(**{**batch(), **change})


def released(model: SpanBERTForPreTraining) -> dict[str, torch.Tensor]:
    """The model's parameters as the released file names them."""
    found = {"decoder.cls.seq_relationship.weight": torch.zeros(2, 8)}
    for name, tensor in model.state_dict().items():
        if name == "cls.predictions.decoder.bias":
            continue
        for norm in ("LayerNorm", "layer_norm1", "layer_norm2"):
            name = name.replace(f"{norm}.weight", f"{norm}.gamma").replace(f"{norm}.bias", f"{norm}.beta")
        found[f"decoder.{name}"] = tensor.clone()
    return found


def test_the_released_names(tmp_path: Path) -> None:
    source, target = new_model(), SpanBERTForPreTraining(SpanBERTConfig(**SIZES)).eval()
    torch.save({"model": released(source)}, tmp_path / "model.pt")
    assert load_released_heads(target, tmp_path / "model.pt") == ["cls.seq_relationship.weight"]
    assert torch.equal(target(**batch()).loss, source(**batch()).loss)
    assert target.cls.predictions.decoder.weight is target.bert.embeddings.word_embeddings.weight


def test_heads_that_a_checkpoint_lacks_are_initialised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an encoder's checkpoint lacks is made of memory as it was found."""
    SpanBERTModel(SpanBERTConfig(**SIZES)).save_pretrained(tmp_path)
    empty_like = torch.empty_like

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        made = empty_like(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty_like", poisoned)
    model = SpanBERTForPreTraining.from_pretrained(tmp_path)
    assert [name for name, tensor in model.state_dict().items() if tensor.isnan().any()] == []
    assert bool((model.cls.pair_target_predictions.bias == 0).all())


def test_a_checkpoint_of_fairseq(tmp_path: Path) -> None:
    """Which keeps the options of its training beside the model."""
    source, target = new_model(), SpanBERTForPreTraining(SpanBERTConfig(**SIZES)).eval()
    torch.save({"args": argparse.Namespace(lr=0.1), "model": released(source)}, tmp_path / "model.pt")
    load_released_heads(target, tmp_path / "model.pt")
    assert torch.equal(target(**batch()).loss, source(**batch()).loss)


@pytest.mark.parametrize("content", [b"", b"no model\n", [1, 2]])
def test_a_file_without_a_model(tmp_path: Path, content: object) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ValueError, match=r"model\.pt does not hold a model's tensors by name"):
        load_released_heads(new_model(), path)


def test_a_file_that_does_not_fit(tmp_path: Path) -> None:
    state = released(new_model())
    torch.save({"model": state}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"position_embeddings.weight is \[20, 200\], the model has \[5, 200\]"):
        load_released_heads(new_model(max_span_targets=5), tmp_path / "model.pt")
    del state["decoder.cls.predictions.bias"]
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model.pt lacks cls.predictions"):
        load_released_heads(new_model(), tmp_path / "model.pt")
