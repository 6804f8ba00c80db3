import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, BertConfig

from spanbert_kernels.models import SpanBERTConfig, SpanBERTModel


def test_default_is_bert() -> None:
    config = SpanBERTConfig()
    assert config.cross_document_layers == []
    assert {**BertConfig().to_dict(), "model_type": "spanbert"}.items() <= config.to_dict().items()


def test_layers_are_not_shared_between_configurations() -> None:
    SpanBERTConfig().cross_document_layers.append(0)
    assert SpanBERTConfig().cross_document_layers == []


@pytest.mark.parametrize("load", [SpanBERTConfig.from_pretrained, AutoConfig.from_pretrained])
def test_saves_and_loads(load: Callable[[Path], SpanBERTConfig], make_config: Any, tmp_path: Path) -> None:
    config = make_config(
        cross_document_queries="tokens",
        cross_document_keys="tokens",
        cross_document_include_self=True,
        cross_document_normalize="pairwise",
        cross_document_anchor="first",
        pooler_token="anchor",
    )
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "spanbert"
    loaded = load(tmp_path)
    assert type(loaded) is SpanBERTConfig
    assert loaded.to_diff_dict() == config.to_diff_dict()
    assert loaded.cross_document_normalize == "pairwise"


@pytest.mark.parametrize("model_type", ["bert", None])
def test_a_bert_folder_becomes_spanbert(bert_config: BertConfig, tmp_path: Path, model_type: str | None) -> None:
    values = {**bert_config.to_dict(), "model_type": model_type}
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    config = SpanBERTConfig.from_pretrained(tmp_path, cross_document_layers=[1])
    assert config.model_type == "spanbert"
    assert config.hidden_size == bert_config.hidden_size
    assert config.cross_document_layers == [1]


def test_another_kind_of_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "roberta"}')
    with pytest.raises(ValueError, match=r"type 'roberta'.*'bert' and 'spanbert'"):
        SpanBERTConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cross_document_layers": [3]}, "names layer 3, but the layers are 0 to 2"),
        ({"cross_document_layers": [-1]}, "names layer -1"),
        ({"cross_document_layers": [1, 1]}, r"twice: \[1, 1\]"),
        ({"cross_document_queries": "words"}, "cross_document_queries must be .*'words'"),
        ({"cross_document_keys": "words"}, "cross_document_keys must be .*'words'"),
        ({"cross_document_normalize": "none"}, "cross_document_normalize must be .*'none'"),
        ({"cross_document_anchor": "middle"}, "cross_document_anchor must be .*'middle'"),
        ({"pooler_token": "cls"}, "pooler_token must be .*'cls'"),
        ({"is_decoder": True}, r"decoder.*\[0, 1\]"),
        ({"is_decoder": True, "cross_document_layers": [], "pooler_token": "anchor"}, "decoder.*'anchor'"),
    ],
)
def test_bad_values_are_named(make_config: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cross_document_layers": 1}, "list of integers, got 1"),
        ({"cross_document_layers": ["1"]}, r"list of integers, got \['1'\]"),
        ({"cross_document_layers": [True]}, r"got \[True\]"),
        ({"cross_document_include_self": "yes"}, "must be a bool, got 'yes'"),
    ],
)
def test_bad_types_are_named(make_config: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make_config(**options)


def test_a_result_that_nothing_reads_is_refused(make_config: Any) -> None:
    with pytest.raises(ValueError, match=r"cross_document_layers=\[0, 2\].*pooler_token=\"first\" reads the first"):
        make_config(cross_document_layers=[0, 2])


@pytest.mark.parametrize(
    "options", [{"pooler_token": "anchor"}, {"cross_document_queries": "tokens"}, {"cross_document_anchor": "first"}]
)
def test_what_the_refusal_proposes_works(make_config: Any, options: dict[str, Any]) -> None:
    assert make_config(cross_document_layers=[0, 2], **options).cross_document_layers == [0, 2]


def test_fields_assigned_later_are_checked_when_a_model_is_built(make_config: Any) -> None:
    config = make_config()
    config.cross_document_layers = [9]
    with pytest.raises(ValueError, match="names layer 9"):
        SpanBERTModel(config)


def test_a_plain_bert_configuration_is_refused(bert_config: BertConfig) -> None:
    with pytest.raises(TypeError, match="SpanBERTConfig, got BertConfig"):
        SpanBERTModel(bert_config)
