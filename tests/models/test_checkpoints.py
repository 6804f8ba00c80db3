import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForTokenClassification,
    BertModel,
    PreTrainedModel,
)

from spanbert_kernels.models import (
    SpanBERTConfig,
    SpanBERTForMaskedLM,
    SpanBERTForQuestionAnswering,
    SpanBERTForSequenceClassification,
    SpanBERTForTokenClassification,
    SpanBERTModel,
)
from spanbert_kernels.models.checkpoints import resolve_model, resolve_tokenizer

MakeConfig = Callable[..., SpanBERTConfig]
OpenGates = Callable[[PreTrainedModel], PreTrainedModel]
AUTO = [
    (AutoModel, SpanBERTModel),
    (AutoModelForMaskedLM, SpanBERTForMaskedLM),
    (AutoModelForQuestionAnswering, SpanBERTForQuestionAnswering),
    (AutoModelForSequenceClassification, SpanBERTForSequenceClassification),
    (AutoModelForTokenClassification, SpanBERTForTokenClassification),
]
MODELS = [model for _, model in AUTO]


def write_release(folder: Path, bert: BertModel, prefix: str) -> None:
    """The original release's format: old names, no pooler, neither vocabulary nor type."""
    config = {name: value for name, value in bert.config.to_dict().items() if name in BertConfig().to_dict()}
    for name in ("model_type", "transformers_version", "architectures", "dtype"):
        config.pop(name, None)
    (folder / "config.json").write_text(json.dumps({**config, "directionality": "bidi"}))
    weights = {"embeddings.position_ids": torch.arange(16).unsqueeze(0)}
    for name, value in bert.state_dict().items():
        if not name.startswith("pooler."):
            name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            weights[name] = value
    torch.save({prefix + name: value for name, value in weights.items()}, folder / "pytorch_model.bin")


def randomised(bert: BertModel) -> BertModel:
    for parameter in bert.parameters():  # LayerNorm too, whose initial values would hide a name that was not found
        torch.nn.init.normal_(parameter, std=0.5)
    return bert


def assert_encoder_is(model: Any, bert: BertModel) -> None:
    loaded = getattr(model, "bert", model).state_dict()
    for name, value in bert.state_dict().items():
        if not name.startswith("pooler."):
            assert torch.equal(loaded[name], value), name


def assert_mixers_are_fresh(model: Any) -> None:
    mixers = [layer.cross_document for layer in getattr(model, "bert", model).encoder.layer]
    for mixer in filter(None, mixers):
        assert mixer.gate.item() == 0
        assert 0 < mixer.query.weight.std() < 0.1
        assert mixer.key_value.bias.abs().max() == 0
        assert (mixer.layer_norm.weight == 1).all()
    assert [mixer is not None for mixer in mixers] == [True, True, False]


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("model_class", MODELS)
def test_the_original_release_loads(
    bert_config: BertConfig, tmp_path: Path, model_class: type[PreTrainedModel], prefix: str
) -> None:
    bert = randomised(BertModel(bert_config, add_pooling_layer=False))
    write_release(tmp_path, bert, prefix)
    model = model_class.from_pretrained(tmp_path, cross_document_layers=[0, 1])
    assert_encoder_is(model, bert)
    assert_mixers_are_fresh(model)
    assert model.config.model_type == "spanbert"


@pytest.mark.parametrize("saved", [BertModel, BertForTokenClassification])
@pytest.mark.parametrize("model_class", MODELS)
def test_a_bert_folder_loads(
    bert_config: BertConfig, tmp_path: Path, saved: Any, model_class: type[PreTrainedModel]
) -> None:
    source = saved(bert_config)
    bert = randomised(getattr(source, "bert", source))
    source.save_pretrained(tmp_path)
    model = model_class.from_pretrained(tmp_path, cross_document_layers=[0, 1])
    assert_encoder_is(model, bert)
    assert_mixers_are_fresh(model)
    assert model.config.model_type == "spanbert"
    if saved is BertForTokenClassification and model_class is SpanBERTForTokenClassification:
        assert torch.equal(model.classifier.weight, source.classifier.weight)


def test_a_bert_folder_gives_exactly_berts_outputs(bert_config: BertConfig, batch: Any, tmp_path: Path) -> None:
    bert = randomised(BertModel(bert_config)).eval()
    bert.save_pretrained(tmp_path)
    model = SpanBERTModel.from_pretrained(tmp_path)
    output, expected = model(**batch), bert(**batch)
    assert torch.equal(output.last_hidden_state, expected.last_hidden_state)
    assert torch.equal(output.pooler_output, expected.pooler_output)


@pytest.mark.parametrize(("auto", "model_class"), AUTO)
def test_saves_and_loads_itself(
    make_config: MakeConfig,
    open_gates: OpenGates,
    batch: Any,
    cluster_ids: torch.Tensor,
    tmp_path: Path,
    auto: Any,
    model_class: Any,
) -> None:
    config = make_config(num_labels=2, pooler_token="anchor")
    model = open_gates(model_class(config)).eval()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "spanbert"
    expected = model(**batch, cluster_ids=cluster_ids)
    for loader in (model_class, auto):
        loaded = loader.from_pretrained(tmp_path)
        assert type(loaded) is model_class
        output = loaded(**batch, cluster_ids=cluster_ids)
        for name, value in expected.items():
            assert torch.equal(output[name], value), name


def test_plain_bert_reads_what_was_saved(make_config: MakeConfig, batch: Any, tmp_path: Path) -> None:
    model = SpanBERTModel(make_config()).eval()
    model.save_pretrained(tmp_path)
    bert = BertModel.from_pretrained(tmp_path)
    assert torch.equal(bert(**batch).last_hidden_state, model(**batch).last_hidden_state)


@pytest.mark.parametrize(
    ("short", "hub", "tokenizer"),
    [
        ("spanbert-base", "SpanBERT/spanbert-base-cased", "bert-base-cased"),
        ("spanbert-large", "SpanBERT/spanbert-large-cased", "bert-large-cased"),
    ],
)
def test_short_names(monkeypatch: pytest.MonkeyPatch, short: str, hub: str, tokenizer: str) -> None:
    asked = []
    monkeypatch.setattr(
        PreTrainedModel, "from_pretrained", classmethod(lambda cls, name, *args, **kwargs: asked.append(name))
    )
    for model in MODELS:
        model.from_pretrained(short)
        model.from_pretrained(hub)
    assert asked == [hub] * 2 * len(MODELS)
    assert resolve_tokenizer(short) == resolve_tokenizer(hub) == tokenizer


def test_other_names_pass_and_a_folder_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bert-base-cased", "google-bert/bert-base-cased", "someone/spanbert-tuned"):
        assert resolve_model(name) == resolve_tokenizer(name) == name
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spanbert-base").mkdir()
    (tmp_path / "spanbert-base" / "config.json").write_text("{}")
    assert resolve_model("spanbert-base") == "spanbert-base"


@pytest.mark.parametrize("name", ["spanbert-huge", "SpanBERT", "spanbert_base", "spanbert"])
def test_an_unknown_short_name_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"'{name}'.*'spanbert-base', 'spanbert-large'"):
        SpanBERTModel.from_pretrained(name)


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such", "a/b/c", Path("missing")])
def test_a_folder_that_is_not_there_is_named(name: Any) -> None:
    with pytest.raises(FileNotFoundError, match=f"no folder '{name}'.*a local folder, a hub name"):
        SpanBERTModel.from_pretrained(name)


def test_a_folder_without_its_files_is_named(bert_config: BertConfig, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}.*no config\.json"):
        SpanBERTModel.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}.*no config\.json"):
        SpanBERTConfig.from_pretrained(tmp_path)
    bert_config.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=rf"pytorch_model\.bin.*{tmp_path}"):
        SpanBERTModel.from_pretrained(tmp_path)


def test_a_checkpoint_in_a_subfolder_loads(make_config: MakeConfig, tmp_path: Path) -> None:
    SpanBERTModel(make_config()).save_pretrained(tmp_path / "inside")
    assert SpanBERTModel.from_pretrained(tmp_path, subfolder="inside").config.cross_document_layers == [0, 1]
    with pytest.raises(FileNotFoundError, match="outside"):
        SpanBERTModel.from_pretrained(tmp_path, subfolder="outside")


def test_a_hub_name_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(cls: type, name: str, *args: Any, **kwargs: Any) -> None:
        raise OSError("no connection")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(fail))
    with pytest.raises(OSError, match=r"'nobody/nothing' from the hub.*'spanbert-base'") as caught:
        SpanBERTModel.from_pretrained("nobody/nothing")
    assert str(caught.value.__cause__) == "no connection"


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "distilbert"}')
    with pytest.raises(ValueError, match="'distilbert'"):
        SpanBERTModel.from_pretrained(tmp_path)
