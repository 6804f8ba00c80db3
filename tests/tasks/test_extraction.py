"""Extractive summaries: sentences and their places, windows, the loss, span training, learning."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spanbert_kernels import SpanBERTForExtraction
from spanbert_kernels.data.parallel import Pair
from spanbert_kernels.data.summaries import read_summarised
from spanbert_kernels.models.extraction import TEMPERATURE
from spanbert_kernels.tasks import extraction, summarisation
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions
from spanbert_kernels.tasks.windows import limit

FILE = Path("file")
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
SOURCE = "Dr. Li went to Oslo.  It rained! Nobody was there, she wrote."
TOKENIZER = Start(vocabulary_size=80).tokenizer([SOURCE] * 2)


def pair(source: str, *targets: str) -> Pair:
    return Pair(source, targets, FILE, 1)


def texts(found: Pair) -> list[str]:
    return [extraction.text_of(found, [(own[0][0], own[-1][1])]) for own in extraction.sentences_of(found)]


def built(**fields: Any) -> Any:
    return Start().build(SpanBERTForExtraction, TOKENIZER, 0, **SMALL, **fields).eval()


def test_sentences_are_those_of_the_file_or_of_plain_text(tmp_path: Path) -> None:
    assert texts(pair(SOURCE)) == ["Dr. Li went to Oslo.", "It rained!", "Nobody was there, she wrote."]
    path = tmp_path / "a.jsonl"
    given = ["It rains. Go", "home. ", "Now"]
    rows = ({"source": given, "target": "x"}, {"source": " ".join(given), "target": "x"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    apart, one = read_summarised(path)
    assert texts(apart) == ["It rains. Go", "home.", "Now"]
    assert texts(one) == ["It rains.", "Go home.", "Now"]
    word = "1\tx" + "\t_" * 4 + "\t0\troot\t_\t_\n"
    (tmp_path / "b.conllu").write_text(f"# text = It rains. Go\n{word}\n# text = home.\n{word}")
    (annotated,) = read_summarised(tmp_path / "b.conllu", targets=False)
    assert texts(annotated) == ["It rains. Go", "home."]


def test_windows_hold_whole_sentences() -> None:
    """The row, first and last word of each lead to its pieces; one that is too long ends with a word that fits."""
    long = f"She said {'very ' * 30}much. {SOURCE}"
    length = 16
    (example,) = extraction.encode([pair(long)], TOKENIZER, length)
    rows, bounds = extraction.windows_of(example)
    assert len(rows) > 2
    assert all(len(row["input_ids"]) <= length for row in rows)
    assert example["cut"] == 1
    seen = []
    for row, first, last in bounds.tolist():
        ids, starts = rows[row]["input_ids"], [*rows[row]["word_starts"], len(rows[row]["input_ids"]) - 1]
        seen.append(TOKENIZER.decode(ids[starts[first] : starts[last + 1]]).replace(" ##", ""))
    plain = [TOKENIZER.decode(TOKENIZER(text, add_special_tokens=False)["input_ids"]) for text in texts(pair(long))]
    assert seen[1:] == plain[1:]
    assert plain[0].startswith(seen[0])
    assert len(example["words"]) == bounds[:, 2].sum() - bounds[:, 1].sum() + len(bounds)
    batch = extraction.collate([example, *extraction.encode([pair(SOURCE)], TOKENIZER, length)])
    assert batch["cu_sentences"].tolist() == [0, 4, 7]
    assert batch["sentences"][4, 0] == len(rows)


def test_the_loss_is_that_of_each_document() -> None:
    """All of its windows share a softmax; a sentence without a gain has no part; the batch changes nothing."""
    model, length = built(), 16
    pairs = [pair(SOURCE * 3, "It rained!"), pair(SOURCE, "Li was there"), pair("It rained. So.", "So")]
    examples = extraction.encode(pairs, TOKENIZER, length)
    examples[1]["gains"][1] = extraction.NO_PART
    examples[2]["gains"][:] = extraction.NO_PART
    whole = model(**extraction.collate(examples))
    logits = whole.logits.detach()
    assert len(extraction.windows_of(examples[0])[0]) > 1
    wanted, before = [], 0
    for example in examples:
        alone = model(**extraction.collate([example]))
        own = logits[before : before + len(alone.logits)]
        torch.testing.assert_close(alone.logits, own, rtol=1e-4, atol=1e-5)
        before += len(own)
        there = example["gains"] >= 0
        shares = torch.from_numpy(example["gains"][there] / TEMPERATURE).softmax(-1)
        wanted.append(float(-(shares * own[there].log_softmax(-1)).sum()) if there.any() else 0.0)
        assert float(alone.loss.detach()) == pytest.approx(wanted[-1], rel=1e-4)
    assert float(whole.loss.detach()) == pytest.approx(np.mean(wanted), rel=1e-4)
    (gradient,) = torch.autograd.grad(whole.loss, whole.logits)
    assert (gradient == 0).nonzero()[:, 0].tolist() == [len(whole.logits) - 4, *range(before - 2, before)]


def test_how_many_sentences_summarise_best() -> None:
    two = pair("The mayor left. It rained. Boats sank today.", "The mayor left and boats sank.")
    assert extraction.text_of(two, extraction.greedily(two)) == "The mayor left. Boats sank today."
    one = replace(two, targets=("It rained", "nothing"))
    assert extraction.text_of(one, extraction.greedily(one)) == "It rained."
    assert extraction.commonest_count([two, one, two]) == 2
    assert extraction.commonest_count([two, one]) == 1
    assert extraction.commonest_count([replace(two, targets=("Zoë",))]) == 1
    model = built(picked_sentences=2)
    (found,) = extraction.extract(model, TOKENIZER, [two])
    assert found == tuple(sorted(found))
    assert len(found) == 2
    (short,) = extraction.extract(model, TOKENIZER, [pair("Alone.")])
    assert short == ((0, 6),)
    assert extraction.extract(model, TOKENIZER, []) == []


@pytest.mark.parametrize("crop", ["input", "loss"])
def test_span_training(crop: str) -> None:
    (example,) = extraction.encode([pair(SOURCE, "It rained")], TOKENIZER, 64)
    starts = example["word_starts"]
    span = slice(int(starts[4]), int(starts[8]))  # Oslo . It rained
    shown = extraction.show(example, span, crop)
    if crop == "loss":
        assert shown["input_ids"] is example["input_ids"]
        assert (shown["gains"] >= 0).tolist() == [True, True, False]
        return
    assert TOKENIZER.decode(shown["input_ids"][1:-1]) == "Oslo. It rained"
    assert shown["sentences"].tolist() == [[0, 1], [2, 3]]
    assert shown["gains"].tolist() == example["gains"][:2].tolist()
    rows, bounds = extraction.windows_of(shown)
    assert bounds.tolist() == [[0, 0, 1], [0, 2, 3]]
    assert [len(row["word_starts"]) for row in rows] == [4]
    for begin in range(1, len(example["input_ids"]) - 3):  # wherever it begins, words are there
        again = extraction.show(example, slice(begin, begin + 2), "input")
        assert 1 <= len(again["word_starts"]) <= 3
        extraction.windows_of(again)


TOPICS = ("The ferry sank.", "A captain slept.", "One storm came.", "The harbour burned.", "Some gulls cried.")


def documents(folder: Path, count: int) -> Path:
    """What is told of a ferry or of gulls is the summary, wherever it stands."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(count):
        own = [TOPICS[i] for i in draw.permutation(4)]
        own[own.index(TOPICS[0])] = TOPICS[4 * (number % 2)]
        rows.append({"source": " ".join(own), "target": TOPICS[4 * (number % 2)].lower()})
    path = folder / "reports.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_it_learns_and_is_loaded_again(tmp_path: Path) -> None:
    path = documents(tmp_path, 24)
    pairs = read_summarised(path)
    start = Start(size="tiny", vocabulary_size=100)
    model, tokenizer = extraction.TASK.build(pairs, path, start, 0)
    assert model.config.picked_sentences == 1
    limit(model.config, 16)  # of a document some windows
    options = TrainingOptions(tmp_path / "model", steps=30, batch_size=8, learning_rate=3e-3, quiet=True)
    training = extraction.train(model, tokenizer, pairs, options)
    assert training.paths["packed-training"] == 30
    scores = extraction.evaluate(model, tokenizer, pairs)
    assert scores["ROUGE-L"] == 1.0
    assert summarisation.lead(pairs)["ROUGE-L"] < 0.6
    assert extraction.TASK.evaluate(tmp_path / "model", path, "eager") == scores
    found = [json.loads(line) for line in extraction.TASK.predict(tmp_path / "model", path, "auto")]
    for each, own in zip(found, pairs, strict=True):
        (sentence,) = each["sentences"]
        assert each["summary"].lower() == own.targets[0]
        assert each["text"][sentence["start"] : sentence["end"]] == sentence["text"] == each["summary"]
    columns = extraction.TASK.predict(tmp_path / "model", path, "auto", "columns")
    assert [json.loads(line)["target"] for line in columns] == [each["summary"] for each in found]
    claims = extraction.TASK.explain(*extraction.TASK.load(tmp_path / "model"), pairs[:2])
    for claim, each in zip(claims, found, strict=False):
        assert claim.label == each["summary"]
        assert " ".join(claim.words[i] for i in claim.about) == each["summary"].replace(".", " .")
        assert claim.probability is not None
        assert claim.probability > 0.5


def test_bad_input(tmp_path: Path) -> None:
    model = built()
    with pytest.raises(ValueError, match="one is None"):
        model(torch.zeros(1, 4, dtype=torch.long), word_starts=torch.zeros(1, 1))
    with pytest.raises(ValueError, match="there is no document to train on"):
        extraction.train(model, TOKENIZER, [], TrainingOptions(tmp_path))
    with pytest.raises(ValueError, match="file: no document has two sentences to train on"):
        extraction.train(model, TOKENIZER, [pair("One alone.", "One")], TrainingOptions(tmp_path))
