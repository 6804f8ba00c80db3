"""transformers' token classification pipeline returns the same entities, to the bit, with ours in it."""

from __future__ import annotations

import copy
import pickle
import random
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from acceleration.agreement import seeded
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast, TokenClassificationPipeline

import spanbert_kernels as sk
from spanbert_kernels.acceleration import AccelerationWarning

STRATEGIES = ["none", "simple", "first", "average", "max"]
LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC-X"]
LETTERS = "abcdefgh"
TEXT = "ab cde é f ghab. abcd h eeé fgc d abcdefgh é gh"
pytestmark = pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")


def tokenizer(subwords: bool) -> PreTrainedTokenizerFast:
    """Letters, with pieces inside words that say so, or without."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, ".", "ab", *(f"##{each}" for each in LETTERS)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    model = (
        models.WordPiece(vocabulary, unk_token="[UNK]") if subwords else models.BPE(vocabulary, [], unk_token="[UNK]")
    )
    built = Tokenizer(model)
    built.pre_tokenizer = pre_tokenizers.Whitespace()
    if subwords:
        built.decoder = decoders.WordPiece()
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=built, model_max_length=16, **names)


def classifier(kind: type = TokenClassificationPipeline, subwords: bool = True) -> Any:
    config = BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        initializer_range=0.6,
        max_position_embeddings=40,
        id2label=dict(enumerate(LABELS)),
        label2id={label: index for index, label in enumerate(LABELS)},
    )
    model = seeded(lambda: BertForTokenClassification(config)).eval()
    return kind(model=model, tokenizer=tokenizer(subwords), device="cpu")


def same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert found == expected
    for one, other in zip(found, expected, strict=True):
        assert list(one.items()) == list(other.items())
        assert [type(value) for value in one.values()] == [type(value) for value in other.values()]


@pytest.fixture(scope="module", params=[True, False], ids=["word pieces", "no words"])
def pipes(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    """A pipeline as it is, and the same one with ours."""
    plain = classifier(subwords=request.param)
    ours = copy.copy(plain)
    ours.model = copy.deepcopy(plain.model)
    report = sk.accelerate(ours)
    assert str(report.span_layers[0]) == "TokenClassificationPipeline, entities from all tokens at once"
    yield plain, ours
    assert set(report.span_layers[0].calls) == {"fused"}


def outputs_of(pipe: Any, seed: int, **more: Any) -> list[dict[str, Any]]:
    """What the pipeline's forward gives for a text, with random scores: neighbours are often alike, and some equal."""
    generator = random.Random(seed)
    text = " ".join("".join(generator.choices(LETTERS + "é.", k=generator.randint(1, 5))) for _ in range(9))
    sequence = text.split() if more.get("is_split_into_words") else text
    parameters = pipe._sanitize_parameters(**more)[0]
    found = []
    for inputs in pipe.preprocess(sequence, **parameters):
        length = inputs["input_ids"].shape[1]
        scores = torch.randint(-2, 3, (1, length, len(LABELS)), generator=torch.Generator().manual_seed(seed)) * 0.7
        keep = torch.rand(length, generator=torch.Generator().manual_seed(seed)) < 0.5
        places = torch.arange(length).masked_fill(keep, 0).cummax(0).values
        found.append({"logits": scores[:, places], "word_ids": None, "word_to_chars_map": None, **inputs})
    return found


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_entities_are_the_same_to_the_bit(pipes: tuple[Any, Any], strategy: str) -> None:
    plain, ours = pipes
    empty = 0
    for seed in range(12):
        chunked = {"stride": 3} if strategy != "none" and seed % 4 == 0 else {}
        options = plain._sanitize_parameters(aggregation_strategy=strategy)[2]
        options |= {"ignore_labels": [[], ["O"], ["PER", "B-PER"], None][seed % 4]}
        outputs = outputs_of(plain, seed, is_split_into_words=seed % 3 == 0, **chunked)
        if seed % 6 == 1:
            outputs[0]["logits"] = outputs[0]["logits"].half()
        if seed % 6 == 5:
            outputs[0]["offset_mapping"] = None
        if seed == 11:
            outputs[0]["special_tokens_mask"] = torch.ones_like(outputs[0]["special_tokens_mask"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            expected = plain.postprocess(copy.deepcopy(outputs), **options)
        same(ours.postprocess(outputs, **options), expected)
        empty += not expected
    assert empty < 6


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_texts_through_the_pipeline(pipes: tuple[Any, Any], strategy: str) -> None:
    plain, ours = pipes
    for options in ({"batch_size": 2}, {} if strategy == "none" else {"stride": 4}):
        expected, found = (pipe([TEXT, "abc"], aggregation_strategy=strategy, **options) for pipe in (plain, ours))
        assert [[{**each, "score": 0} for each in one] for one in found] == [
            [{**each, "score": 0} for each in one] for one in expected
        ]
        scores = ([each["score"] for one in result for each in one] for result in (found, expected))
        np.testing.assert_allclose(*scores, rtol=1e-4)


def test_what_goes_transformers_way() -> None:
    plain, ours = classifier(), classifier()
    sk.accelerate(ours)
    outputs = outputs_of(plain, 1)
    outputs[0]["logits"][0, 3] = torch.nan
    with np.errstate(all="ignore"), pytest.warns(AccelerationWarning, match="scores that are NaN"):
        found = ours.postprocess(outputs, "none")
    assert [each["word"] for each in found] == [each["word"] for each in plain.postprocess(outputs, "none")]
    for pipe in (plain, ours):
        with pytest.raises(TypeError, match="requires string as left operand"):
            pipe.postprocess(outputs_of(plain, 2), "simple", "O")
        with pytest.raises(ValueError, match="Invalid aggregation_strategy"):
            pipe.postprocess(outputs_of(plain, 2), "loudest")


class OwnGroups(TokenClassificationPipeline):
    def group_entities(self, entities: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return entities[:1]


def test_a_pipeline_of_ones_own_is_left_alone() -> None:
    report = sk.accelerate(pipe := classifier(OwnGroups))
    assert [str(each) for each in report.skipped] == ["OwnGroups: OwnGroups overrides group_entities"]
    assert "postprocess" not in vars(pipe)


def test_restored_and_copied() -> None:
    pipe = classifier()
    sk.accelerate(pipe)
    assert sk.accelerate(pipe).already
    other = pickle.loads(pickle.dumps(pipe.postprocess))
    assert other.module is not pipe
    sk.restore(pipe)
    assert "postprocess" not in vars(pipe)
    with pytest.raises(ValueError, match="is not accelerated"):
        sk.restore(pipe)
