"""`accelerate` and `restore` change how a model runs, and nothing else about it."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from agreement import ENCODERS, PADDING, TINY, assert_agrees, encoder, head, in_float64, inputs
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForTokenClassification,
    BertLMHeadModel,
    BertModel,
    EncoderDecoderModel,
    RobertaForSequenceClassification,
)

from spanbert_kernels import accelerate, restore
from spanbert_kernels.acceleration import AccelerationReport, AccelerationWarning
from spanbert_kernels.acceleration.families import FAMILIES, UNSUPPORTED
from spanbert_kernels.acceleration.forward import PackedForward

NAMES = ", ".join(family.model_class for family in FAMILIES)
MASK = PADDING["right"]


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(**inputs(MASK)).logits


def torch_save(model: Any) -> Any:
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), torch_save],
    ids=["deepcopy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("used", [False, True])
def test_copies_are_accelerated_and_independent(duplicate: Callable[[Any], Any], used: bool) -> None:
    model = head(BertForTokenClassification)
    report = accelerate(model)
    if used:
        logits(model)
    twin = duplicate(model)
    assert twin.bert.forward.model is twin.bert
    assert twin.bert.forward is not model.bert.forward
    assert accelerate(twin).already
    assert torch.equal(logits(twin), logits(model))
    assert report.calls == {"packed-inference": 1 + used}
    assert accelerate(twin).calls == {"packed-inference": 1 + used}
    with torch.no_grad():
        twin.bert.encoder.layer[0].output.dense.weight.mul_(1.5)
    assert not torch.equal(logits(twin), logits(model))
    restore(twin)
    assert isinstance(model.bert.forward, PackedForward)


def test_state_dict_and_parameters_are_untouched() -> None:
    model = head(BertForTokenClassification)
    state, modules = dict(model.state_dict()), list(model.named_modules())
    parameters = list(model.named_parameters())
    accelerate(model)
    logits(model)
    assert list(model.state_dict()) == list(state)
    assert all(value.data_ptr() == state[name].data_ptr() for name, value in model.state_dict().items())
    assert list(model.named_modules()) == modules
    assert all(a is b for (_, a), (_, b) in zip(model.named_parameters(), parameters, strict=True))
    assert repr(model) == repr(head(BertForTokenClassification))


def test_save_and_load(tmp_path: Path) -> None:
    model = head(BertForTokenClassification)
    accelerate(model)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    loaded = BertForTokenClassification.from_pretrained(tmp_path).eval()
    assert "forward" not in loaded.bert.__dict__
    accelerate(loaded)
    assert torch.equal(logits(loaded), expected)


def test_signature_is_the_encoders_own() -> None:
    """The Trainer drops the columns that a signature does not name."""
    for name in ENCODERS:
        model = encoder(name)
        expected = inspect.signature(model.forward)
        accelerate(model)
        assert inspect.signature(model.forward) == expected


def test_positional_arguments() -> None:
    model, batch = encoder(), inputs(MASK)
    accelerate(model)
    with torch.no_grad():
        expected = model(**batch).last_hidden_state
        assert torch.equal(model(*batch.values()).last_hidden_state, expected)


def test_restore() -> None:
    model = head(BertForTokenClassification)
    expected = logits(model)
    accelerate(model)
    assert not torch.equal(logits(model), expected)
    restore(model)
    assert torch.equal(logits(model), expected)
    assert "forward" not in model.bert.__dict__
    with pytest.raises(ValueError, match="BertForTokenClassification is not accelerated"):
        restore(model)


def test_twice_changes_nothing() -> None:
    model = head(BertForTokenClassification)
    first = accelerate(model)
    forward = model.bert.forward
    logits(model)
    second = accelerate(model)
    assert model.bert.forward is forward
    assert (first.already, second.already) == (False, True)
    assert second.calls == first.calls == {"packed-inference": 1}
    assert str(first).splitlines()[0] == "accelerated: BertModel at 'bert', 2 layers"
    assert str(second).splitlines()[0] == "already accelerated: BertModel at 'bert', 2 layers"
    assert str(second).splitlines()[1:] == str(first).splitlines()[1:]


def test_a_report_knows_the_latest_of_several_encoders() -> None:
    both = nn.ModuleList([encoder(), encoder("roberta")])
    report = accelerate(both)
    assert [str(each) for each in report.replaced] == ["BertModel at '0', 2 layers", "RobertaModel at '1', 2 layers"]
    assert report.last_path is None
    assert report.calls == {}
    with torch.no_grad():
        both[1](**inputs(MASK))
    both[0](**inputs(MASK))
    assert report.last_path == "packed-training (gradients are on)"
    with torch.no_grad():
        both[1](**inputs(MASK))
    assert report.last_path == "packed-inference"
    assert report.calls == {"packed-inference": 2, "packed-training (gradients are on)": 1}


def test_an_encoder_that_stands_in_two_places() -> None:
    shared = encoder()
    report = accelerate(nn.ModuleDict({"first": shared, "second": shared}))
    assert [each.name for each in report.replaced] == ["first"]


def test_what_heads_read_is_learnt_from_the_whole_model() -> None:
    """RoBERTa's classifier reads token 0 without a pooler: with padding there, only transformers' path will do."""
    model, batch = head(RobertaForSequenceClassification), inputs(PADDING["left"])
    with torch.no_grad():
        expected = model(**batch).logits
    accelerate(model.roberta)
    assert accelerate(model).already
    with pytest.warns(AccelerationWarning, match="is padding"), torch.no_grad():
        assert torch.equal(model(**batch).logits, expected)


class PlainSubclass(BertModel):
    """Adds nothing to the forward."""


class OwnForward(BertModel):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class OwnMasks(BertModel):
    def _create_attention_masks(self, *args: Any, **kwargs: Any) -> Any:
        return super()._create_attention_masks(*args, **kwargs)


def test_a_subclass_without_a_forward_of_its_own() -> None:
    model = PlainSubclass(BertConfig(**TINY)).eval()
    assert str(accelerate(model)) == "accelerated: PlainSubclass, 2 layers"


def decoder() -> Any:
    return BertLMHeadModel(BertConfig(**TINY, is_decoder=True, add_cross_attention=True)).eval()


def with_own_embeddings() -> Any:
    model = encoder()
    model.embeddings.word_embeddings = nn.EmbeddingBag(60, 32)
    return model


def with_lower_rank_adapter() -> Any:
    class Adapted(nn.Linear):
        pass

    model = encoder()
    model.encoder.layer[1].attention.self.query = Adapted(32, 32)
    return model


def with_a_forward_of_its_own() -> Any:
    model = encoder()
    model.forward = model.forward
    return model


def with_a_hook() -> Any:
    model = encoder()
    model.encoder.layer[0].register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Linear(2, 2), rf"Linear has nothing to accelerate: it holds no encoder .*{NAMES}"),
        (decoder, "BertLMHeadModel has nothing to accelerate: BertModel at 'bert': it is a decoder"),
        (lambda: OwnForward(BertConfig(**TINY)), "has nothing to accelerate: OwnForward overrides forward"),
        (lambda: OwnMasks(BertConfig(**TINY)), "OwnMasks overrides _create_attention_masks"),
        (with_own_embeddings, r"its embeddings hold a torch.nn.modules.sparse.EmbeddingBag"),
        (with_lower_rank_adapter, r"attention.self.query is a .*Adapted, not transformers' Linear"),
        (with_a_forward_of_its_own, "its forward has been replaced already"),
        (with_a_hook, "a BertLayer inside has hooks"),
    ],
)
def test_nothing_to_accelerate_is_an_error_that_says_why(build: Callable[[], Any], message: str) -> None:
    model = build()
    before = model.__dict__.get("forward")
    with pytest.raises(ValueError, match=message):
        accelerate(model)
    assert model.__dict__.get("forward") is before


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_encoders_that_are_not_supported_are_refused_in_a_sentence(name: str) -> None:
    folder = name.removesuffix("Model").removesuffix("Stack").lower().replace("bigbird", "big_bird")
    kind = getattr(import_module(f"transformers.models.{folder}.modeling_{folder}"), name)
    model = kind.__new__(kind)
    nn.Module.__init__(model)
    with pytest.raises(ValueError, match=f"{name} has nothing to accelerate: it is not supported: {UNSUPPORTED[name]}"):
        accelerate(model)


@pytest.mark.parametrize("name", ["BertModel", "BertEmbeddings", "BertEncoder", "BertLayer", "BertSelfAttention"])
def test_a_class_whose_forward_was_replaced_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.bert import modeling_bert

    kind = getattr(modeling_bert, name)
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, *args, **kwargs: forward(self, *args, **kwargs))
    with pytest.raises(ValueError, match=f"the forward of the class {name} was replaced"):
        accelerate(encoder())


@pytest.mark.parametrize("function", [accelerate, restore])
def test_what_is_no_module_is_named(function: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match=rf"{function.__name__} takes a torch.nn.Module or an object .*, got dict"):
        function({})


def test_the_encoder_of_an_encoder_and_decoder() -> None:
    """The decoder is left as it is, and the report says so; padded states reach it only behind its mask."""
    model = EncoderDecoderModel(encoder=encoder(), decoder=decoder()).eval()
    batch = {**inputs(MASK), "decoder_input_ids": torch.tensor([[2, 5, 6]] * len(MASK))}
    del batch["token_type_ids"]
    with torch.no_grad():
        eager, reference = model(**batch).logits, in_float64(model)(**batch).logits
    report = accelerate(model)
    assert str(report) == (
        "accelerated: BertModel at 'encoder', 2 layers\nleft as it is: BertModel at 'decoder.bert': it is a decoder"
    )
    with torch.no_grad():
        # The pooler's token is real in every row of this batch.
        result = model(**batch).logits
    assert report.last_path == "packed-inference"
    assert_agrees(result, eager, reference)


def test_encoders_of_unknown_classes_are_reported() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeddings, self.encoder = nn.Embedding(2, 2), nn.Linear(2, 2)

    report = accelerate(nn.ModuleList([encoder(), Other()]))
    assert isinstance(report, AccelerationReport)
    assert f"left as it is: Other at '1': it is not one of {NAMES}" in str(report)
