"""Explanations: the weights that were used, unchanged predictions, the page and the picture."""

from __future__ import annotations

import json
import os
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from deletion import losses
from PIL import Image
from small_files import FILES

from spanbert_kernels import (
    SpanBERTForCoreference,
    SpanBERTForSequenceClassification,
    SpanBERTForSpanClassification,
    accelerate,
)
from spanbert_kernels.cli import main
from spanbert_kernels.data.conll_coref import MarkedDocument
from spanbert_kernels.data.labelled import LabelledDocument
from spanbert_kernels.tasks import classification, coreference, nested
from spanbert_kernels.tasks import cross_document_coreference as across
from spanbert_kernels.tasks.attribution import masked, parts_of_words
from spanbert_kernels.tasks.base import TASKS, load
from spanbert_kernels.tasks.explanation import document_weights, explain_classification
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions

TEXTS = ("ships in the north", "we saw <script>alert(1)</script>", "ships today", "alone")
CLUSTERS = ("p", "p", "p", "q")
WORDS = ("the", "mayor", "of", "Oslo", "left")
TRAINING = {"steps": 30, "batch_size": 4, "learning_rate": 3e-3, "seed": 3, "quiet": True}


def documents() -> list[LabelledDocument]:
    pairs = zip(TEXTS, CLUSTERS, strict=True)
    return [LabelledDocument(text, "x", cluster, Path("file.jsonl"), 1) for text, cluster in pairs]


def classifier(**fields: Any) -> tuple[Any, Any]:
    start = Start(size="tiny", vocabulary_size=60)
    tokenizer = start.tokenizer(TEXTS * 2)
    fields = {"cross_document_layers": [0, 1], "cross_document_anchor": "first", "id2label": {0: "x", 1: "y"}, **fields}
    model = start.build(SpanBERTForSequenceClassification, tokenizer, 0, **fields).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.ones_(parameter)
    return model, tokenizer


@pytest.mark.parametrize("accelerated", [False, True])
def test_weights_are_those_of_the_forward_pass(accelerated: bool) -> None:
    model, tokenizer = classifier()
    if accelerated:
        report = accelerate(model)
    batch = classification.collate([classification.encode(documents()[:3], tokenizer, ["x", "y"], 64)])
    with torch.no_grad():
        plain = model(**batch).logits
        with document_weights(model) as weights:
            watched = model(**batch).logits
        assert len(weights) == 2
        assert torch.equal(plain, watched)
        assert torch.equal(plain, model(**batch).logits)
    if accelerated:
        assert set(report.calls) == {"packed-inference"}, report.calls
    first, second = explain_classification(model, tokenizer, documents())
    assert sorted(first.weights) == [0, 1]
    for layer in (0, 1):
        np.testing.assert_allclose(first.weights[layer].sum(2), 1, rtol=1e-5)
        assert (first.weights[layer][:, range(3), range(3)] == 0).all()
        assert second.weights[layer].shape[1:] == (1, 1)
        assert (second.weights[layer] == 0).all()  # there is no other document
        np.testing.assert_array_equal(first.weights[layer].transpose(1, 0, 2), weights[layer].numpy())
    assert first.texts == TEXTS[:3]
    assert first.probabilities == pytest.approx(plain.softmax(-1).max(-1).values.tolist())


def test_words_of_a_document() -> None:
    """All of a text is shown; what the model did not see counts for nothing."""
    model, tokenizer = classifier(max_position_embeddings=12)
    texts = ("ships in the north today", "", "  we saw ships " * 8, " \u200b")
    cluster = [LabelledDocument(text, "x", "p", Path("file.jsonl"), 1) for text in texts]
    (found,) = explain_classification(model, tokenizer, cluster)
    assert tuple("".join(words) for words in found.words) == texts
    assert [len(words) for words in found.words[:2]] == [5, 0]
    assert [shares.sum() for shares in found.word_shares] == pytest.approx([1, 0, 1, 0])
    assert found.words[2][-1].startswith(" ")  # what was cut off
    assert found.word_shares[2][-1] == 0


def test_parts_sum_to_what_all_words_bring() -> None:
    """Sundararajan et al.'s completeness, on the line from all words masked; also where the model is accelerated."""
    model, tokenizer = classifier(cross_document_layers=[])
    torch.nn.init.normal_(model.classifier.weight)
    for _, prediction, passed in classification.TASK.explained(model, tokenizer, documents()[:1]):
        token, words = tokenizer.mask_token_id, range(len(prediction.reading.words))
        nothing = {**passed.batch, "input_ids": masked(passed.batch["input_ids"], prediction.reading, words, token)}
        with torch.no_grad():
            wanted = float(prediction.score(passed.output) - prediction.score(model(**nothing)))
        (parts,) = parts_of_words(model, passed.batch, [prediction], token, steps=100)
        assert abs(wanted) > 0.01
        assert parts.sum() == pytest.approx(wanted, rel=0.03)
        before = [each.requires_grad for each in model.parameters()]
        accelerate(model)
        (again,) = parts_of_words(model, passed.batch, [prediction], token, steps=100)
        np.testing.assert_allclose(again, parts, rtol=1e-3, atol=1e-5)
        assert [each.requires_grad for each in model.parameters()] == before


def test_documents_that_do_not_see_each_other() -> None:
    (first, _) = explain_classification(*classifier(cross_document_layers=[]), documents())
    assert (first.weights, first.mean()) == ({}, None)
    with pytest.raises(ValueError, match="the queries are tokens"):
        explain_classification(*classifier(cross_document_queries="tokens"), documents())


def finder() -> tuple[Any, Any]:
    start = Start(size="tiny", vocabulary_size=60)
    tokenizer = start.tokenizer([" ".join(WORDS)] * 2)
    labels = {0: "none", 1: "person"}
    model = start.build(SpanBERTForSpanClassification, tokenizer, 0, id2label=labels, max_span_width=3).eval()
    torch.nn.init.normal_(model.attention.weight)
    torch.nn.init.constant_(model.classifier.bias[1:], 2.0)
    return model, tokenizer


def test_words_around_a_mention() -> None:
    """Those of its window, and which of them it is."""
    model, tokenizer = finder()
    document = MarkedDocument("d", WORDS * 4, (), Path("file.txt"), (1,) * 20)
    model.config.max_position_embeddings = 10
    found = nested.TASK.explain(model, tokenizer, [document])
    assert {each.document for each in found} == {"d"}
    assert len({each.place for each in found}) > 1
    mentions = set()
    for each in found:
        assert each.words == document.words[each.place : each.place + len(each.words)]
        assert each.label == "person"
        assert each.shares.sum() == pytest.approx(1 if each.shares.any() else 0, rel=1e-5)
        mentions.add((each.place + each.about[0], each.place + each.about[-1], each.label))
    assert mentions == nested.find(model, tokenizer, [document])[0]
    assert len(nested.TASK.explain(model, tokenizer, [document], limit=2)) == 2


def linker(**fields: Any) -> tuple[Any, Any]:
    start = Start(size="tiny", vocabulary_size=60)
    tokenizer = start.tokenizer([" ".join(WORDS)] * 2)
    fields = {**across.cross_document_fields(2), "max_span_width": 2, **fields}
    model = start.build(SpanBERTForCoreference, tokenizer, 2, max_position_embeddings=16, **fields).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.ones_(parameter)
    torch.nn.init.normal_(model.attention.weight)
    torch.nn.init.constant_(model.fine.bias, 5.0)
    model.config.kept_spans_share = 1.0
    return model, tokenizer


def reports() -> tuple[MarkedDocument, ...]:
    texts = (WORDS * 3, WORDS[3:], WORDS[:2])
    return tuple(MarkedDocument(f"d{i}", t, (), Path("file.txt"), (1,) * len(t)) for i, t in enumerate(texts))


def test_mentions_across_documents() -> None:
    """Which documents a mention's tokens looked at, and its words, by the forward pass itself."""
    model, tokenizer = linker()
    cluster = reports()
    found = across.TASK.explain(model, tokenizer, [cluster])
    assert {each.document for each in found} == {"d0", "d1", "d2"}
    (entities,) = across.resolve(model, tokenizer, [cluster])
    count = sum(len(entity) > 1 for entity in entities)
    assert {each.label for each in found} == {f"entity {i + 1}" for i in range(count)}
    spans = sorted(span for entity in sorted(map(sorted, entities)) if len(entity) > 1 for span in entity)
    assert len(found) == len(spans)
    packed = across.joined(cluster).words
    assert any(each.other for each in found)
    for each, (first, last) in zip(found, spans, strict=True):
        assert tuple(each.words[i] for i in each.about) == packed[first : last + 1]
        if each.other:
            assert (each.other[0], each.other[-1]) < (each.about[0], each.about[-1])

    examples = [coreference.encode(document, tokenizer, 16) for document in cluster]
    sizes = [len(each["windows"]) for each in examples]
    assert sizes[0] > 1 == sizes[1] == sizes[2]
    batch = across.collate([across.merged(examples)])
    with torch.no_grad(), document_weights(model) as weights:
        model(**batch)
    rows = torch.stack([each.mean(1) for each in weights]).mean(0)
    offsets = np.cumsum([0, *batch["attention_mask"].sum(1).tolist()])
    for each, (first, last) in zip(found, spans, strict=True):
        assert sum(each.seen.values()) == pytest.approx(1, rel=1e-5)
        if each.document == "d1":  # a single window, the last but one
            assert each.seen["d1"] == 0
            pieces = [len(tokenizer(word, add_special_tokens=False)["input_ids"]) for word in cluster[1].words]
            bounds = offsets[-3] + 1 + np.cumsum([0, *pieces])
            words = [rows[begin:end].mean(0) for begin, end in pairwise(bounds)]
            wanted = torch.stack(words[first - 15 : last - 14]).mean(0)
            assert each.seen["d0"] == pytest.approx(float(wanted[: sizes[0]].sum()), rel=1e-5)
            assert each.seen["d2"] == pytest.approx(float(wanted[-1]), rel=1e-5)


def test_mentions_of_a_document_alone() -> None:
    model, tokenizer = linker(cross_document_layers=[])
    found = coreference.TASK.explain(model, tokenizer, reports()[:1])
    assert found
    assert all(each.seen == {} for each in found)
    anchors = linker(cross_document_queries="anchors", cross_document_anchor="first")
    with pytest.raises(ValueError, match="the queries are anchors"):
        across.TASK.explain(*anchors, [reports()])


# Tasks whose small models are trained in less than a second.
QUICK = ("tagging", "cross_document_coreference", "parsing", "question_answering")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in TASKS]
)
def test_masking_what_counts_most_takes_most_from_a_prediction(name: str, tmp_path: Path) -> None:
    """More than masking as many drawn words; masking what counts least takes less than these."""
    task, data = load(name), FILES[name](tmp_path)
    start, options = Start(size="tiny", vocabulary_size=120), TrainingOptions(tmp_path / "model", **TRAINING)
    torch.set_num_threads(1)
    task.train(data, None, start, options, None)
    falls = losses(task, *task.load(tmp_path / "model"), task.read(data), limit=8, share=0.2)
    assert falls["most"] > 2 * abs(falls["drawn"]), falls
    assert falls["least"] < falls["drawn"], falls


def test_the_page_and_the_picture(tmp_path: Path) -> None:
    model, tokenizer = classifier()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data = tmp_path / "reports.jsonl"
    rows = [{"text": text, "cluster": cluster} for text, cluster in zip(TEXTS, CLUSTERS, strict=True)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = CliRunner()
    arguments = ["--model", str(tmp_path / "model"), "--output", str(tmp_path / "page.html")]
    result = run.invoke(main, ["explain", "classification", str(data), *arguments])
    assert result.exit_code == 0, result.output
    page = (tmp_path / "page.html").read_text()
    assert "&lt;</span>" in page
    assert "<script>" not in page
    assert page.count("looked at 3") == 1
    assert all(title in page for title in (">Cluster p <", ">Documents that stand alone <", ">line 1:</span>"))
    with Image.open(tmp_path / "page.png") as picture:
        assert min(picture.size) > 100
        assert len(picture.convert("L").getcolors()) > 10  # type: ignore[arg-type]
    alone, tokenizer = classifier(cross_document_layers=[])
    alone.save_pretrained(tmp_path / "alone")
    tokenizer.save_pretrained(tmp_path / "alone")
    page_of_words = ["--model", str(tmp_path / "alone"), "--output", str(tmp_path / "alone.html")]
    result = run.invoke(main, ["explain", "classification", str(data), *page_of_words])
    assert result.exit_code == 0, result.output
    assert "do not see each other" in (tmp_path / "alone.html").read_text()
    with Image.open(tmp_path / "alone.png") as picture:
        assert len(picture.convert("L").getcolors()) > 10  # type: ignore[arg-type]
        height = picture.height
    data.write_text("".join(json.dumps({"text": text, "cluster": "p"}) + "\n" for text in [*TEXTS, "\u200b"] * 4))
    result = run.invoke(main, ["explain", "classification", str(data), *page_of_words])
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "alone.png") as picture:  # no more than a page holds
        assert height < picture.height < 4 * height
    result = run.invoke(main, ["explain", "tagging", str(data), *arguments])
    assert result.exit_code == 2
    assert "train it for this task first" in result.output
    result = run.invoke(main, ["explain", "classification", str(tmp_path / "none.jsonl"), *arguments])
    assert result.exit_code == 2

    model, tokenizer = finder()
    model.save_pretrained(tmp_path / "finder")
    tokenizer.save_pretrained(tmp_path / "finder")
    (tmp_path / "plain.txt").write_text(" ".join(WORDS) + "\n")
    arguments = ["--model", str(tmp_path / "finder"), "--output", str(tmp_path / "words.html"), "--limit", "2"]
    result = run.invoke(main, ["explain", "nested", str(tmp_path / "plain.txt"), *arguments])
    assert result.exit_code == 0, result.output
    assert "the first 2 of 8; a larger <code>--limit</code>" in (tmp_path / "words.html").read_text()
    assert (tmp_path / "words.png").stat().st_size > 1000

    model, tokenizer = linker()
    model.save_pretrained(tmp_path / "linker")
    tokenizer.save_pretrained(tmp_path / "linker")
    (tmp_path / "reports").mkdir()
    (tmp_path / "empty").mkdir()
    for document in reports():
        (tmp_path / "reports" / f"{document.name}.txt").write_text(" ".join(document.words) + "\n")
    arguments = ["--model", str(tmp_path / "linker"), "--output", str(tmp_path / "links.html")]
    result = run.invoke(main, ["explain", "cross_document_coreference", str(tmp_path / "reports"), *arguments])
    assert result.exit_code == 0, result.output
    assert "looked at" in (tmp_path / "links.html").read_text()
    assert (tmp_path / "links.png").stat().st_size > 1000
    result = run.invoke(main, ["explain", "cross_document_coreference", str(tmp_path / "empty"), *arguments])
    assert result.exit_code == 2
    assert "the folder holds no file" in result.output


@pytest.mark.slow
@pytest.mark.parametrize(("name", "data"), [("tagging", "wnut17"), ("classification", "senti4sd")])
def test_masking_what_counts_most_on_a_trained_encoder(name: str, data: str, tmp_path: Path) -> None:
    """Fine-tuned for a minute on real data."""
    folder = Path(os.environ.get("SPANBERT_KERNELS_DATA", "none"))
    if not (folder.parent / "models" / "minilm").is_dir():
        pytest.skip("needs SPANBERT_KERNELS_DATA, with the models beside it")
    task = load(name)
    (path,) = (each for each in (folder / data).iterdir() if "train" in each.name and each.name[0] != ".")
    items = [item for item in task.read(path) if any(label != "O" for label, _, _ in task.marks(item))]
    random.Random(0).shuffle(items)
    model, tokenizer = task.build(items[:400], path, Start(str(folder.parent / "models" / "minilm")), 0)
    options = TrainingOptions(tmp_path, steps=60, batch_size=8, learning_rate=3e-4, quiet=True)
    task.fit(model, tokenizer, items[:400], options)
    falls = losses(task, model, tokenizer, items[400:440], limit=16, share=0.15)
    assert falls["most"] > 2 * abs(falls["drawn"]), falls


@pytest.mark.slow
def test_the_document_that_told_is_the_one_looked_at(tmp_path: Path) -> None:
    """Of three documents one names a side; the label of all is that side."""
    draw, found = random.Random(0), []
    for cluster in range(1200):
        side = draw.choice(("north", "south"))
        place = cluster % 3
        for i in range(3):
            text = f"ships in the {side} today" if i == place else f"we saw ships {'today ' * (cluster % 4)}"
            found.append(LabelledDocument(text, side, str(cluster), Path("file.jsonl"), 1))
    start = Start(size="tiny", vocabulary_size=60)
    tokenizer = start.tokenizer(document.text for document in found)
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    fields = {"cross_document_layers": [1], "cross_document_anchor": "first", **none}
    labels = {0: "north", 1: "south"}
    model = start.build(SpanBERTForSequenceClassification, tokenizer, 0, id2label=labels, **fields)
    options = TrainingOptions(tmp_path, steps=400, batch_size=32, learning_rate=1e-3, quiet=True)
    classification.train(model, tokenizer, found[:3000], options)
    assert classification.evaluate(model, tokenizer, found[3000:])["accuracy"] > 0.95
    for cluster, explained in enumerate(explain_classification(model, tokenizer, found[3000:]), start=1000):
        mean = explained.mean()
        assert mean is not None
        for i in {0, 1, 2} - {cluster % 3}:
            assert mean[i].argmax() == cluster % 3
