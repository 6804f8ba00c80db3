"""Encoders of every family in the table: documents see each other, saved and loaded, on both paths."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

from spanbert_kernels import (
    SpanBERTForPreTraining,
    SpanBERTForSequenceClassification,
    SpanBERTForTokenClassification,
    SpanBERTModel,
    accelerate,
)
from spanbert_kernels.acceleration.families import FAMILIES
from spanbert_kernels.models import kind_for, kind_on

TYPES = {name.removesuffix("Config"): model_type for model_type, name in CONFIG_MAPPING_NAMES.items()}
ENCODERS = [TYPES[family.model_class.removesuffix("Model")] for family in FAMILIES[1:]]
QUICK = ("modernbert", "mpnet")  # a norm after the last layer; layers that return tuples
SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
SIGHT = {"cross_document_layers": [1, 2], "cross_document_queries": "tokens", "cross_document_keys": "tokens"}
NO_DROPOUT = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout"), 0.0)
FIELDS: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16, "cross_document_layers": []},
    "distilbert": {"n_layers": 3, "n_heads": 2, "dim": 16, "hidden_dim": 32},
    "electra": {"embedding_size": 8},
    "modernbert": dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0),
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "roformer": {"embedding_size": 16},
}
families = pytest.mark.parametrize(
    "encoder_type", [pytest.param(each, marks=() if each in QUICK else pytest.mark.slow) for each in ENCODERS]
)


def configuration(encoder_type: str, **fields: Any) -> Any:
    shape = {} if encoder_type == "distilbert" else SMALL
    return kind_on(SpanBERTModel, encoder_type).config_class(
        **{**shape, "vocab_size": 40, "num_labels": 3, **SIGHT, **FIELDS.get(encoder_type, {}), **fields}
    )


def opened(model: Any) -> Any:
    for name, parameter in model.named_parameters():
        if "cross_document" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


def batch(config: Any) -> dict[str, Tensor]:
    """Four documents of two clusters."""
    ids = torch.randint(5, 40, (4, 9), generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([9, 5, 7, 9])
    mask = (torch.arange(9) < lengths[:, None]).long()
    clusters = {"cluster_ids": torch.tensor([0, 1, 0, 1])} if config.cross_document_layers else {}
    return {"input_ids": ids, "attention_mask": mask, **clusters}


@families
@torch.no_grad()
def test_documents_see_each_other_on_both_paths(encoder_type: str, tmp_path: Path) -> None:
    """The family's own encoder without clusters; with them other states, the same ones accelerated and loaded."""
    torch.manual_seed(0)
    config = configuration(encoder_type)
    model = opened(kind_on(SpanBERTForTokenClassification, encoder_type)(config))
    given = batch(config)
    rows = given["attention_mask"].bool()
    alone = {name: each for name, each in given.items() if name != "cluster_ids"}
    plain = model.base_model(**alone).last_hidden_state
    fields = {name: value for name, value in config.to_dict().items() if name != "model_type"}
    own = AutoModel.from_config(AutoConfig.for_model(encoder_type, **fields)).eval()
    own.save_pretrained(tmp_path / "own")
    begun = kind_for(SpanBERTModel, tmp_path / "own").from_pretrained(
        tmp_path / "own", **(SIGHT if config.cross_document_layers else {})
    )
    for given_to in (alone, given):  # the gates are shut
        assert torch.equal(begun.eval()(**given_to).last_hidden_state, own(**alone).last_hidden_state)
    with torch.enable_grad():  # what has no gradients may be changed where it lies
        expected = model(**given, output_hidden_states=True)
    assert torch.equal(expected.hidden_states[-1], model.base_model(**given).last_hidden_state)
    if config.cross_document_layers:
        assert not torch.allclose(expected.hidden_states[-1], plain, atol=1e-4)
        assert torch.equal(expected.hidden_states[1], model.base_model(**alone, output_hidden_states=True)[-1][1])
    model.save_pretrained(tmp_path)
    for loaded in (
        kind_for(SpanBERTForTokenClassification, tmp_path).from_pretrained(tmp_path),
        AutoModelForTokenClassification.from_pretrained(tmp_path),
        pickle.loads(pickle.dumps(AutoModelForTokenClassification.from_pretrained(tmp_path))),
    ):
        assert type(loaded) is type(model)
        assert torch.equal(loaded.eval()(**given).logits, expected.logits)
    report = accelerate(model)
    found = model(**given, output_hidden_states=True)
    assert dict(report.calls) == {"packed-inference": 1}
    for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert torch.allclose(one[rows], other[rows], atol=1e-5)


@families
def test_gradients_of_layers_that_are_computed_again(encoder_type: str) -> None:
    """Two calls before the backward: each layer is computed again with the documents that it had seen."""
    torch.manual_seed(0)
    config = configuration(encoder_type, **NO_DROPOUT)
    model = opened(kind_on(SpanBERTForTokenClassification, encoder_type)(config))
    if not model.supports_gradient_checkpointing:
        pytest.skip("layers are not computed again")
    given = batch(config)
    again = {**given, "cluster_ids": given["cluster_ids"].flip(0) // 2} if "cluster_ids" in given else given
    model.train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        (model(**given).logits.square().sum() + model(**again).logits.sum()).backward()
        gradients.append({name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradients[1][name], gradient, atol=1e-5), name


@pytest.mark.parametrize("token", ["first", "anchor"])
@torch.no_grad()
def test_a_document_is_read_where_it_says(token: str) -> None:
    """Also padding on the left: accelerated, the first column is then transformers' own."""
    torch.manual_seed(0)
    config = configuration("electra", pooler_token=token, cross_document_layers=[])
    model = kind_on(SpanBERTForSequenceClassification, "electra")(config).eval()
    given = batch(config)
    for ids, mask in (
        (given["input_ids"], given["attention_mask"]),
        (given["input_ids"], given["attention_mask"].flip(1)),
    ):
        hidden = model.electra(ids, mask).last_hidden_state
        last = (mask * torch.arange(1, 10)).argmax(1) if token == "anchor" else torch.zeros(4, dtype=torch.long)
        expected = model.classifier(torch.tanh(model.pooler(hidden[torch.arange(4), last])))
        assert torch.allclose(model(ids, mask, labels=torch.zeros(4).long()).logits, expected, atol=1e-6)
        accelerated = pickle.loads(pickle.dumps(model))
        accelerate(accelerated)
        assert torch.allclose(accelerated(ids, mask).logits, expected, atol=1e-5)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layers=\[1\], but the layers of a AlbertModel are one and the same"):
        kind_on(SpanBERTModel, "albert")(configuration("albert", cross_document_layers=[1]))
    with pytest.raises(ValueError, match=r"names layer 0, whose output a convolution of the DebertaV2Model reads"):
        kind_on(SpanBERTModel, "deberta-v2")(
            configuration("deberta-v2", conv_kernel_size=3, cross_document_layers=[0], relative_attention=True)
        )
    with pytest.raises(ValueError, match="encoders of type 'gpt2' are not known: a checkpoint of one of Bert, Roberta"):
        kind_on(SpanBERTModel, "gpt2")
    with pytest.raises(ValueError, match=r"SpanBERTForPreTraining stands on BERT alone, not on .* 'roberta'"):
        kind_on(SpanBERTForPreTraining, "roberta")
    with pytest.raises(TypeError, match="must be a SpanElectraConfig, got SpanMPNetConfig"):
        kind_on(SpanBERTModel, "electra")(configuration("mpnet"))
