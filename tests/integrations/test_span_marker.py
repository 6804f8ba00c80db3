"""SpanMarker's logits, gradients and entities, with its markers as documents linked to their text and as rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from acceleration.agreement import encoder, seeded
from originals.span_marker import SpanMarkerModel, batch_of
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import spanbert_kernels as sk
from spanbert_kernels.acceleration import AccelerationWarning
from spanbert_kernels.testing import assert_as_exact_as_eager

TEXTS, MARKERS = 12, 4
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def built(name: str = "bert", **options: Any) -> Any:
    return seeded(lambda: SpanMarkerModel(encoder(name, **{**NO_DROPOUT, **options}), num_labels=3)).eval()


def batch() -> dict[str, Any]:
    """Four rows: two of one text, of an odd number of tokens; another text; a text without spans. With labels."""
    text, other = torch.arange(5, 12), torch.arange(20, 26)
    spans = [[[1, 1], [1, 2], [2, 4], [5, 5]], [[3, 4], [4, 4]], [[2, 2], [1, 4], [3, 4]], []]
    pairs = [torch.tensor(each, dtype=torch.long).view(-1, 2) for each in spans]
    made = batch_of([text, text, other, other[:4]], pairs, TEXTS, MARKERS, (58, 59))
    labels = torch.full((4, (TEXTS + 2 * MARKERS) // 2), -100)
    for row, of_row in enumerate(pairs):
        labels[row, : len(of_row)] = torch.arange(len(of_row)) % 3
    return {**made, "labels": labels, "num_words": torch.tensor([5, 5, 4, 2])}


def step(model: Any, **changed: Any) -> list[Tensor]:
    """Loss, logits and all gradients, with a number for each logit, also those of no span."""
    model.zero_grad()
    output = model(**{**batch(), **changed})
    weights = torch.linspace(0.5, 1.5, output.logits.numel()).view_as(output.logits)
    (output.loss + (weights.to(output.logits) * output.logits).sum()).backward()
    gradients = [each.grad.flatten() for each in model.parameters() if each.grad is not None]
    return [output.loss.detach(), output.logits.detach(), torch.cat(gradients)]


@pytest.mark.parametrize("name", ["bert", "roberta", "electra"])
def test_logits_loss_and_gradients(name: str) -> None:
    model = built(name)
    exact, eager = step(built(name).double()), step(model)
    report = sk.accelerate(model)
    found = step(model)
    for mine, theirs, right in zip(found, eager, exact, strict=True):
        assert_as_exact_as_eager(mine, right, theirs)
    assert {str(each) for each in report.span_layers} == {"SpanMarkerModel, markers as documents linked to their text"}
    assert dict(report.calls) == {"packed-training (gradients are on)": 1}
    assert dict(report.span_layers[0].calls) == {"fused": 1}
    for mine, theirs in zip(step(model.double()), exact, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_inference_compiled_autocast_and_restored() -> None:
    plain, fused = built(), built()
    report = sk.accelerate(fused)
    given = batch()
    with torch.no_grad():
        expected = plain(**given)
        found = fused(**given)
        torch.testing.assert_close(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.loss, expected.loss)
        assert list(found) == list(expected)
        assert found.num_words is given["num_words"]
        compiled = torch.compile(fused, backend="eager")(**given)
        torch.testing.assert_close(compiled.logits, expected.logits, rtol=1e-4, atol=1e-5)
        with torch.autocast("cpu", torch.bfloat16):
            half = fused(**given)
            torch.testing.assert_close(half.logits, plain(**given).logits, rtol=0.1, atol=0.1)
        assert report.calls["packed-inference"] == 2
        sk.restore(fused)
        assert torch.equal(fused(**given).logits, expected.logits)
    assert dict(report.span_layers[0].calls) == {"fused": 3}


def test_a_text_of_several_rows_is_encoded_once_unless_dropout_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(hidden_dropout_prob=0.1)
    sk.accelerate(model)
    seen = []
    run = model.encoder.forward.run_linked
    monkeypatch.setattr(
        model.encoder.forward,
        "run_linked",
        lambda inputs, plan: seen.append(len(inputs["input_ids"])) or run(inputs, plan),
    )
    with torch.no_grad():
        model(**batch())
        model.train()(**batch())
        for each in model.modules():
            if isinstance(each, nn.Dropout):
                each.p = 0.0
        model(**batch())
    markers, texts = 2 * (4 + 2 + 3), 7 + 6 + 4
    assert seen == [markers + texts, markers + texts + 7, markers + texts]


def test_dropout_of_states_and_of_vectors() -> None:
    model = built().train()
    sk.accelerate(model)
    for place in (0, 1):
        model.dropout = nn.Dropout(0.0)
        calls = [0]

        def dropped(given: Tensor, place: int = place, calls: list[int] = calls) -> Tensor:
            calls[0] += 1
            return given * 0 if calls[0] == place + 1 else given

        model.dropout.forward = dropped  # type: ignore[method-assign]
        logits = model(**batch()).logits
        assert torch.equal(logits, model.classifier.bias.expand_as(logits))
        assert calls == [2]


def another_mask(given: dict[str, Any], place: tuple[int, ...]) -> dict[str, Any]:
    mask = given["attention_mask"].clone()
    mask[place] ^= True
    return {"attention_mask": mask}


CHANGES = {
    "a marker sees another pair": lambda given: another_mask(given, (0, 8, 9)),
    "a marker does not see its other": lambda given: another_mask(given, (0, 8, 12)),
    "a token sees a marker": lambda given: another_mask(given, (1, 2, 8)),
    "padding sees a token": lambda given: another_mask(given, (3, 19, 0)),
    "another place": lambda given: {"start_marker_indices": given["start_marker_indices"] - 4},
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_masks_take_the_path_of_spanmarker(name: str) -> None:
    plain, fused = built(), built()
    report = sk.accelerate(fused)
    given = batch()
    given.update(CHANGES[name](given))
    with torch.no_grad(), pytest.warns(AccelerationWarning, match=r"SpanMarkerModel\.forward: the package's own path"):
        found = fused(**given)
    real = given["labels"] != -100
    torch.testing.assert_close(found.logits[real], plain(**given).logits[real], rtol=1e-4, atol=1e-5)
    assert report.span_layers[0].last_path in (
        "original: a mask that is not SpanMarker's",
        "original: markers that are not behind their text",
    )


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: built(output_hidden_states=True), "hidden states were asked for"),
        (lambda: built(output_attentions=True, attn_implementation="eager"), "attention matrices were asked for"),
        (lambda: built("mpnet"), "a MPNetModel, whose tokens see more of each other"),
    ],
    ids=["hidden states", "attention matrices", "distances"],
)
def test_what_the_encoder_cannot_do_takes_the_path_of_spanmarker(build: Any, reason: str) -> None:
    plain, fused = build(), build()
    report = sk.accelerate(fused)
    with torch.no_grad(), pytest.warns(AccelerationWarning, match=reason):
        found = fused(**batch())
    real = batch()["labels"] != -100
    torch.testing.assert_close(found.logits[real], plain(**batch()).logits[real], rtol=1e-4, atol=1e-5)
    assert report.span_layers[0].last_path.startswith(f"original: {reason}")


def test_an_encoder_that_is_not_accelerated() -> None:
    model = built()
    model.encoder.encoder.layer[0].register_forward_hook(lambda *_: None)
    report = sk.accelerate(model)
    with torch.no_grad(), pytest.warns(AccelerationWarning, match="its encoder is not accelerated"):
        model(**batch())
    assert report.replaced == ()
    assert report.last_path is None


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SENTENCES = [
    "Anna Smith of Acme wrote about dogs while the cat sat on a mat in Paris and slept",
    "the cat sat on a mat in Paris",
    ["dogs"],
]


def saved_encoder(folder: Path) -> str:
    words = sorted({word for text in SENTENCES for word in (text.split() if isinstance(text, str) else text)})
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=64, **names).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(vocab_size=len(vocabulary), initializer_range=0.3, **sizes)
    seeded(lambda: BertModel(config)).save_pretrained(folder)
    return str(folder)


def with_transformers_5(monkeypatch: pytest.MonkeyPatch) -> None:
    """The labels of the encoder's configuration, which SpanMarker expects to see through its own."""
    from span_marker.configuration import SpanMarkerConfig

    found_in = SpanMarkerConfig.__getattribute__

    def with_labels(self: Any, name: str) -> Any:
        found = found_in(self, name)
        return self.encoder[name] if found is None and name in ("id2label", "label2id") else found

    monkeypatch.setattr(SpanMarkerConfig, "__getattribute__", with_labels)


@pytest.mark.filterwarnings("ignore")
def test_entities_of_the_package_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    span_marker = pytest.importorskip("span_marker")
    with_transformers_5(monkeypatch)
    torch.manual_seed(1)
    model = span_marker.SpanMarkerModel.from_pretrained(
        saved_encoder(tmp_path),
        labels=["O", "PER", "LOC"],
        model_max_length=64,
        marker_max_length=16,
        entity_max_length=3,
    )
    nn.init.normal_(model.classifier.weight, std=0.5)
    # transformers 5 takes masks of pairs of tokens with a dimension for heads alone.
    handle = model.encoder.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "attention_mask": kwargs["attention_mask"][:, None]}),
        with_kwargs=True,
    )

    def entities() -> list[Any]:
        return [*map(model.predict, SENTENCES), *model.predict(SENTENCES[:2])]

    expected = entities()
    handle.remove()
    report = sk.accelerate(model)
    found = entities()
    assert len(expected[0]) > 3
    for mine, theirs in zip(found, expected, strict=True):
        assert [{**each, "score": 0} for each in mine] == [{**each, "score": 0} for each in theirs]
        assert [each["score"] for each in mine] == pytest.approx([each["score"] for each in theirs], rel=1e-4)
    assert dict(report.span_layers[0].calls) == {"fused": 4}
