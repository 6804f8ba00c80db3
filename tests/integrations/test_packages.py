"""Packages that are built on encoders give the same results accelerated and not, on tiny random models.

`make test-integrations` installs them; without it what is missing is skipped by name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from acceleration.agreement import seeded
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedTokenizerFast, pipeline

import spanbert_kernels as sk
from spanbert_kernels.acceleration.families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore")

TEXTS = [
    "the cat sat on a mat in Paris .",
    "Anna Smith of Acme wrote about dogs , while the cat sat on a mat in Paris and slept .",
    "dogs .",
]
LABELS = ["person", "place", "company"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 90,
    "max_position_embeddings": 80,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
# What the published models of these types have beside that.
SETTINGS: dict[str, dict[str, Any]] = {
    "bert": {},
    "mpnet": {"relative_attention_num_buckets": 32},
    "deberta-v2": {
        "relative_attention": True,
        "position_buckets": 8,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "type_vocab_size": 0,
        "layer_norm_eps": 1e-7,
    },
    "modernbert": {"hidden_activation": "gelu", "local_attention": 8, "global_attn_every_n_layers": 2},
}
CLASSES = {"bert": "BertModel", "mpnet": "MPNetModel", "deberta-v2": "DebertaV2Model", "modernbert": "ModernBertModel"}


def needs(model_type: str) -> None:
    if CLASSES[model_type] not in {family.model_class for family in FAMILIES}:
        pytest.skip(f"{CLASSES[model_type]} is not in the table of families")


def configuration(model_type: str, **more: Any) -> Any:
    needs(model_type)
    return AutoConfig.for_model(model_type, **{**SIZES, **SETTINGS[model_type], **more})


@pytest.fixture
def tokenizer(tmp_path: Path) -> PreTrainedTokenizerFast:
    """Of words, saved in the folder `tmp_path`."""
    words = sorted({word for text in [*TEXTS, *LABELS, "This example is about"] for word in text.split()})
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *words])}
    built = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    made = PreTrainedTokenizerFast(tokenizer_object=built, model_max_length=64, **names)
    made.save_pretrained(tmp_path)
    return made


def saved(model_class: Any, model_type: str, folder: Path, **more: Any) -> str:
    """A random model, saved beside its tokenizer."""
    model = seeded(lambda: model_class.from_config(configuration(model_type, **more)))
    model.save_pretrained(folder)
    return str(folder)


def same(model: Any, use: Callable[[Any], Any], found: str) -> None:
    """What `use` returns does not depend on acceleration, which finds an encoder at `found` and runs it packed."""
    before = use(model)
    report = sk.accelerate(model)
    assert [each.name for each in report.replaced] == [found]
    after = use(model)
    assert report.calls, "the encoder was not called"
    calls = [report.calls, *(layer.calls for layer in report.span_layers)]
    assert {path for each in calls for path in each if path.startswith("original")} == set()
    assert_close(after, before)
    sk.restore(model)
    assert_close(use(model), before, rtol=1e-6, atol=1e-6)


def assert_close(found: Any, expected: Any, rtol: float = 1e-3, atol: float = 1e-4) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert_close(found[name], value, rtol, atol)
    elif isinstance(expected, np.ndarray | torch.Tensor | float):
        np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=rtol, atol=atol)
    elif isinstance(expected, Sequence) and not isinstance(expected, str):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, rtol, atol)
    else:
        assert found == expected


@pytest.mark.parametrize("model_type", ["bert", "deberta-v2", "modernbert"])
def test_gliner(model_type: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    gliner = pytest.importorskip("gliner")
    config = gliner.GLiNERConfig(
        model_name=str(tmp_path),
        encoder_config=configuration(model_type).to_dict(),
        hidden_size=32,
        max_width=4,
        dropout=0.0,
        vocab_size=SIZES["vocab_size"],
    )
    model = seeded(lambda: gliner.GLiNER.from_config(config, backbone_from_pretrained=False)).eval()

    def entities(model: Any) -> list[list[dict[str, Any]]]:
        found = model.inference(TEXTS, LABELS, threshold=0.02, flat_ner=False, multi_label=True, batch_size=4)
        return [sorted(each, key=lambda one: (one["start"], one["end"], one["label"])) for each in found]

    assert len(entities(model)[1]) > 10
    same(model, entities, "model.token_rep_layer.bert_layer.model")


@pytest.mark.parametrize("model_type", ["bert", "deberta-v2"])
def test_gliner2(model_type: str, tokenizer: PreTrainedTokenizerFast) -> None:
    gliner2 = pytest.importorskip("gliner2")
    from gliner2.configuration import ExtractorConfig

    model = seeded(
        lambda: gliner2.GLiNER2(
            ExtractorConfig(model_name="tiny", max_width=4),
            encoder_config=configuration(model_type),
            tokenizer=tokenizer,
        )
    ).eval()
    same(model, lambda model: [model.extract_entities(text, LABELS, threshold=0.0) for text in TEXTS], "encoder")


@pytest.mark.parametrize("model_type", ["bert", "deberta-v2"])
def test_gliclass(model_type: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    gliclass = pytest.importorskip("gliclass")
    tokenizer.add_tokens(["<<LABEL>>", "<<SEP>>"], special_tokens=True)
    config = gliclass.GLiClassModelConfig(
        encoder_config=configuration(model_type),
        encoder_model=str(tmp_path),
        class_token_index=tokenizer.convert_tokens_to_ids("<<LABEL>>"),
        text_token_index=tokenizer.convert_tokens_to_ids("<<SEP>>"),
        hidden_size=32,
        vocab_size=SIZES["vocab_size"],
    )
    model = seeded(lambda: gliclass.GLiClassModel(config)).eval()
    classify = gliclass.ZeroShotClassificationPipeline(model, tokenizer, device="cpu", progress_bar=False)
    same(model, lambda _: classify(TEXTS, LABELS, threshold=0.0, batch_size=4), "model.encoder_model")


@pytest.mark.parametrize("model_type", ["bert", "mpnet", "modernbert"])
@pytest.mark.parametrize("pooling", ["mean", "cls", ("max", "weightedmean", "mean_sqrt_len_tokens", "lasttoken")])
def test_sentence_transformers(
    model_type: str, pooling: str | tuple[str, ...], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    body = Transformer(saved(AutoModel, model_type, tmp_path))
    model = sentence_transformers.SentenceTransformer(modules=[body, Pooling(32, pooling)], device="cpu")
    same(model, lambda model: model.encode(TEXTS, batch_size=4), "0.model")
    assert [str(each) for each in sk.accelerate(model).span_layers] == ["Pooling at '1', pooled over packed tokens"]


def test_sentence_transformers_that_takes_padding_out_itself(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does where a flash attention is there; an accelerated model takes such batches too."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import modeling_flash_attention_utils

    folder = saved(AutoModel, "bert", tmp_path)

    def built() -> Any:
        return sentence_transformers.SentenceTransformer(
            modules=[Transformer(folder), Pooling(32, "mean")], device="cpu"
        )

    padded = built().encode(TEXTS, batch_size=4)
    monkeypatch.setattr(Transformer, "_is_flash_attention_requested", lambda _: True)
    monkeypatch.setattr(modeling_flash_attention_utils, "lazy_import_flash_attention", lambda *_: ((None, len), None))
    model = built()
    assert "cu_seq_lens_q" in model.preprocess(TEXTS)
    report = sk.accelerate(model)
    assert_close(model.encode(TEXTS, batch_size=4), padded)
    assert report.calls == {"packed-inference": 1}


def test_cross_encoder(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = saved(AutoModelForSequenceClassification, "bert", tmp_path, num_labels=1)
    model = sentence_transformers.CrossEncoder(folder, device="cpu")
    pairs = [(TEXTS[0], text) for text in TEXTS]
    same(model, lambda model: model.predict(pairs), "0.model.bert")


@pytest.mark.parametrize("model_type", ["bert", "mpnet"])
def test_setfit(model_type: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    setfit = pytest.importorskip("setfit")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    body = Transformer(saved(AutoModel, model_type, tmp_path))
    head = setfit.SetFitHead(in_features=32, out_features=3)
    model = setfit.SetFitModel(
        SentenceTransformer(modules=[body, Pooling(32, "mean")], device="cpu"), head, labels=LABELS
    )
    same(model, lambda model: model.predict_proba(TEXTS, as_numpy=True), "model_body.0.model")


@pytest.mark.parametrize("model_type", ["bert", "deberta-v2"])
def test_zero_shot_classification(model_type: str, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    names = {0: "contradiction", 1: "neutral", 2: "entailment"}
    folder = saved(
        AutoModelForSequenceClassification,
        model_type,
        tmp_path,
        id2label=names,
        label2id={name: i for i, name in names.items()},
    )
    classify = pipeline("zero-shot-classification", model=folder, tokenizer=str(tmp_path), device="cpu")
    inner = {"bert": "bert", "deberta-v2": "deberta"}[model_type]
    same(classify, lambda classify: classify(TEXTS, LABELS, batch_size=4), f"model.{inner}")


ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("LoraConfig", {"target_modules": ["query", "value", "word_embeddings"], "lora_dropout": 0.0}),
    "DoRA": ("LoraConfig", {"target_modules": ["query", "output.dense"], "use_dora": True}),
    "IA3": ("IA3Config", {"target_modules": ["key", "output.dense"], "feedforward_modules": ["output.dense"]}),
    "AdaLoRA": ("AdaLoraConfig", {"target_modules": ["query", "intermediate.dense"], "total_step": 9}),
    "LoHa": ("LoHaConfig", {"target_modules": ["query", "output.dense"]}),
    "LoKr": ("LoKrConfig", {"target_modules": ["query", "output.dense"]}),
    "VeRA": ("VeraConfig", {"target_modules": ["query", "value"]}),
}


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("adapted_first", [True, False])
def test_peft(name: str, adapted_first: bool, tokenizer: PreTrainedTokenizerFast) -> None:
    peft = pytest.importorskip("peft")
    kind, options = ADAPTERS[name]

    def adapted(accelerated: bool) -> tuple[Any, Any]:
        sizes = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        base = seeded(lambda: AutoModelForSequenceClassification.from_config(configuration("bert", **sizes)))
        report = sk.accelerate(base) if accelerated and not adapted_first else None
        model = peft.get_peft_model(base, getattr(peft, kind)(**options)).eval()
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return model, sk.accelerate(model) if accelerated and adapted_first else report

    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
    (plain, _), (packed, report) = adapted(False), adapted(True)
    with torch.no_grad():
        torch.testing.assert_close(packed(**batch).logits, plain(**batch).logits, rtol=1e-4, atol=1e-5)
    for model in (plain, packed):
        model.train()
        model(**batch).logits.square().sum().backward()
    trained = {name: each for name, each in plain.named_parameters() if each.requires_grad}
    for name, parameter in packed.named_parameters():
        if name in trained and trained[name].grad is not None:
            torch.testing.assert_close(parameter.grad, trained[name].grad, rtol=1e-3, atol=1e-4)
    assert report.calls == {"packed-inference (weights not repacked)": 1, "packed-training": 1}


@pytest.mark.parametrize("quantized_first", [True, False])
def test_torchao(quantized_first: bool, tokenizer: PreTrainedTokenizerFast) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    batch = tokenizer(TEXTS, padding=True, return_tensors="pt")

    def logits(accelerated: bool) -> tuple[torch.Tensor, Any]:
        model = seeded(lambda: AutoModelForSequenceClassification.from_config(configuration("bert"))).eval()
        report = sk.accelerate(model) if accelerated and not quantized_first else None
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
        report = sk.accelerate(model) if accelerated and quantized_first else report
        with torch.no_grad():
            return model(**batch).logits, report

    found, report = logits(True)
    assert_close(found, logits(False)[0])
    assert all(path.startswith("packed") for path in report.calls)
