"""Summaries and translations: windows, batches, losses by hand, readers, learning, loading again."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from spanbert_kernels import accelerate, ops, restore
from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.parallel import Pair, read_aligned, read_sources
from spanbert_kernels.data.summaries import read_summarised
from spanbert_kernels.models import WindowedSpanBERTConfig, WindowedSpanBERTModel
from spanbert_kernels.tasks import generation, summarisation, translation
from spanbert_kernels.tasks.generation import Collator, Examples, Generator
from spanbert_kernels.tasks.span_training import SpanTraining
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions

COLLATOR = Collator(window=5, first=2, last=3, start=2, padding=0)
WORDS = {"red": "rot", "blue": "blau", "green": "grün", "house": "Haus", "tree": "Baum", "sea": "Meer"}


def pair(source: str, *targets: str) -> Pair:
    return Pair(source, targets, Path("file"), 1)


def example(tokens: int, labels: int) -> dict[str, np.ndarray]:
    return {"tokens": np.arange(10, 10 + tokens), "labels": np.arange(50, 50 + labels)}


def test_batches() -> None:
    batch = COLLATOR([example(4, 2), example(0, 1), example(3, 3)])
    assert batch["input_ids"].tolist() == [
        [2, 10, 11, 12, 3, 2, 13, 3, 0, 0],
        [2, 3, 0, 0, 0, 0, 0, 0, 0, 0],
        [2, 10, 11, 12, 3, 0, 0, 0, 0, 0],
    ]
    assert batch["attention_mask"].sum(1).tolist() == [8, 2, 5]
    assert batch["attention_mask"][0].tolist() == [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]
    assert batch["labels"].tolist() == [[50, 51, -100], [50, -100, -100], [50, 51, 52]]
    assert batch["decoder_input_ids"].tolist() == [[2, 50, 0], [2, 0, 0], [2, 50, 51]]


def test_span_training() -> None:
    whole = example(20, 9)
    for crop in ("input", "loss"):
        data = Examples([whole, example(3, 3)], SpanTraining(4, crop), 0)
        firsts = set()
        for epoch in range(30):
            data.set_epoch(epoch)
            batch = COLLATOR([data[0]])
            scored = (batch["labels"] >= 0)[0]
            assert int(scored.sum()) == (9 if crop == "input" else 4)
            assert len(data[0]["tokens"]) == (4 if crop == "input" else 20)
            assert batch["decoder_input_ids"][0].tolist() == [2, *range(50, 58)]
            firsts.add(int(data[0]["tokens"][0]) + int(scored.int().argmax()))
        assert len(firsts) > 3
        assert len(data[1]["tokens"]) == 3


@pytest.mark.parametrize("length", [12, 10, 3])
def test_windows_see_each_other(length: int) -> None:
    """As many rows of a cluster; without cross-document layers each window is as it is alone."""
    shape = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = WindowedSpanBERTConfig(
        vocab_size=30,
        window_length=4,
        cross_document_layers=[0],
        cross_document_queries="tokens",
        cross_document_keys="tokens",
        initializer_range=0.3,
        **shape,
    )
    torch.manual_seed(0)
    model = WindowedSpanBERTModel(config).eval()
    ids = torch.randint(5, 30, (2, length))
    mask = torch.ones_like(ids)
    mask[1, -1] = 0
    changed = ids.clone()
    changed[:, 0] = 4

    def far(rows: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(rows, mask)[0][:, 4:]

    torch.testing.assert_close(far(ids), far(changed))  # gates begin closed
    for layer in model.bert.encoder.layer[:1]:
        torch.nn.init.ones_(layer.cross_document.gate)
    if length > 4:
        assert float((far(ids) - far(changed)).abs().amax()) > 1e-3
    plain = far(ids)
    with ops.backends.record() as ran:
        report = accelerate(model)
        packed = far(ids)
        restore(model)
    assert report.calls == {"packed-inference": 1}, report
    assert any("cpu" in str(call) for call in ran)
    real = mask[:, 4:].bool()
    torch.testing.assert_close(packed[real], plain[real], atol=1e-5, rtol=1e-4)


def test_losses_by_hand(tmp_path: Path) -> None:
    pairs = [pair("red house", "rot Haus"), pair("blue", "blau", "rot")]
    texts = [" ".join([*WORDS, *WORDS.values()])] * 2
    tokenizer = Start(vocabulary_size=120).tokenizer(texts)
    generator = Generator.build(Start(size="tiny"), tokenizer, tokenizer, 0, pairs)
    size = len(tokenizer)
    counts = {"rot": 2, "Haus": 1, "blau": 1, "[SEP]": 3}
    assert all(len(tokenizer.tokenize(word)) == 1 for word in counts)
    wanted = -sum(math.log((counts[word] + 1) / (7 + size)) for word in ("rot", "Haus", "[SEP]")) / 3
    assert generation.unigram_loss(pairs, pairs[:1], generator) == pytest.approx(wanted)
    begin = generation.unigram_loss(pairs, pairs, generator)
    assert generation.loss(generator, pairs) == pytest.approx(begin, abs=0.1)
    assert begin < math.log(size) - 0.5
    assert generator.model.generation_config.min_new_tokens == 1
    one, two = (generation.loss(generator, [each]) for each in pairs)
    assert generation.loss(generator, pairs, backend="eager") == pytest.approx((3 * one + 4 * two) / 7, rel=1e-5)
    generator.model.generation_config.min_new_tokens = 5
    generator.model.save_pretrained(tmp_path / "model")
    generator.save(tmp_path / "model")
    (text,) = generation.write(Generator.load(tmp_path / "model"), ["red house"])
    assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) >= 5
    with pytest.raises(ValueError, match="there is no text"):
        generation.train(generator, [], TrainingOptions(tmp_path))


def test_smoothed_labels(tmp_path: Path) -> None:
    """A share of the loss is that of all tokens alike, which no model has below log(V)."""
    pairs = [pair("red house", "rot Haus")] * 4
    tokenizer = Start(vocabulary_size=60).tokenizer([" ".join([*WORDS, *WORDS.values()])] * 2)
    losses = []
    for share in (0.0, 0.1):
        generator = Generator.build(Start(size="tiny"), tokenizer, tokenizer, 0, pairs)
        options = TrainingOptions(tmp_path, steps=10, batch_size=4, learning_rate=1e-12, quiet=True)
        (loss,) = generation.train(generator, pairs, options, label_smoothing=share).values("loss")
        losses.append(loss)
    plain, smoothed = losses
    alike = (smoothed - 0.9 * plain) / 0.1
    assert math.log(len(tokenizer)) < alike < 1.2 * math.log(len(tokenizer))


def test_scores() -> None:
    pairs = [pair("The cat sat. It was red.", "the cat sat", "a dog")]
    assert summarisation.score(pairs, ["the cat sat"])["ROUGE-L"] == 1.0
    assert summarisation.score(pairs, ["the cat"])["ROUGE-1"] == pytest.approx(0.8)
    assert summarisation.lead(pairs)["ROUGE-2"] == 1.0
    long = [pair("a b c d", "one two three four five")]
    assert translation.score(long, ["one two three four five"])["BLEU"] == pytest.approx(100)
    assert translation.copied(long)["BLEU"] == 0.0
    chinese = [pair("so", "威尔士国民议会议员")]
    assert translation.score(chinese, ["威尔士国民议会"])["BLEU"] > 50


def test_readers(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"source": ["One.", "Two."], "target": ["T", "U"]}\n\n{"source": "One.", "target": "T"}\n')
    assert [(p.source, p.targets, p.line) for p in read_summarised(lines)] == [
        ("One. Two.", ("T", "U"), 1),
        ("One.", ("T",), 3),
    ]
    trees, empty = tmp_path / "b.conllu", "\t_" * 8
    trees.write_text(
        "# newdoc id = b\n# meta::summary1 = (human1) A man.\n# meta::summary2 = (some-model) No.\n# text = He came .\n"
        f"1\tHe{empty}\n\n# text = So .\n1\tSo{empty}\n"
    )
    (found,) = read_summarised([trees])
    assert (found.source, found.targets) == ("He came . So .", ("A man.",))
    for text, reason in (
        ('{"source": "a", "target": "b"}\n{', r"a\.jsonl, line 2: not JSON"),
        ('{"source": [], "target": "b"}', "line 1: a text or a list of texts is wanted under source or text, got"),
        ('{"source": "a"}', "under target or summary, got None; there is no target among source"),
        ("[1]", "line 1: a JSON object is wanted"),
    ):
        lines.write_text(text)
        with pytest.raises(DataFault, match=reason):
            read_summarised(lines)
    table = tmp_path / "a.csv"
    table.write_text("ID,Article,Summary,Translation\n1,One.,T,U\n")
    for read, wanted in ((read_summarised, "T"), (read_aligned, "U")):
        assert [(p.source, p.targets, p.line) for p in read(table)] == [("One.", (wanted,), 2)]
    assert [p.source for p in read_sources(table)] == [p.source for p in read_summarised(table, False)] == ["One."]
    lines.write_text('{"source": "a"}')
    with pytest.raises(
        DataFault, match="a text is wanted under target or translation, got None; there is no target among source"
    ):
        read_aligned(lines)
    trees.write_text("# newdoc id = b\n# text = He came .\n")
    with pytest.raises(DataFault, match="line 1: there is no summary"):
        read_summarised(trees)
    assert read_summarised(trees, targets=False)[0].source == "He came ."
    (tmp_path / "source.txt").write_text("one\ntwo\n")
    (tmp_path / "target.txt").write_text("eins\nzwei\ndrei\n")
    with pytest.raises(DataFault, match=r"source\.txt, line 2: 2 lines of source, 3 of target"):
        read_aligned(tmp_path)
    (tmp_path / "target.txt").write_text("eins\n \n")
    with pytest.raises(DataFault, match=r"target\.txt, line 2: an empty line"):
        read_aligned(tmp_path)
    (tmp_path / "target.txt").write_text("eins\nzwei\n")
    assert [p.targets for p in read_aligned(tmp_path)] == [("eins",), ("zwei",)]


@pytest.mark.slow
def test_translation_learns_and_is_loaded_again(tmp_path: Path) -> None:
    """Word by word, in turned order."""
    draw = random.Random(0)
    for part, count in (("train", 600), ("test", 40)):
        rows = [[draw.choice(list(WORDS)) for _ in range(4)] for _ in range(count)]
        (tmp_path / part).mkdir()
        (tmp_path / part / "source.txt").write_text("".join(" ".join(row) + "\n" for row in rows))
        target = (" ".join(WORDS[word] for word in reversed(row)) + "\n" for row in rows)
        (tmp_path / part / "target.txt").write_text("".join(target))
    start = Start(size="tiny", vocabulary_size=80)
    options = TrainingOptions(tmp_path / "model", steps=500, batch_size=32, learning_rate=2e-3, quiet=True)
    outcome = translation.TASK.train(tmp_path / "train", tmp_path / "test", start, options, None)
    assert outcome.training.paths["packed-training"] == 500
    assert outcome.scores["loss"] < 0.5 * outcome.baseline["loss"]
    assert outcome.scores["BLEU"] > 50 > outcome.baseline["BLEU"]
    again = translation.TASK.evaluate(tmp_path / "model", tmp_path / "test", "eager")
    assert again == pytest.approx(outcome.scores, rel=1e-3)
    lines = tmp_path / "lines.txt"
    lines.write_text("red house blue sea\n")
    (line,) = translation.TASK.predict(tmp_path / "model", lines, "auto")
    assert set(json.loads(line)["translation"].split()) <= set(WORDS.values())


@pytest.mark.slow
def test_summaries_of_several_windows(tmp_path: Path) -> None:
    """The word that counts stands behind the only "so", in one of three windows."""
    draw = random.Random(0)
    for part, count in (("train", 600), ("test", 40)):
        rows = []
        for _ in range(count):
            text = ["then"] * 300
            place, word = draw.randrange(299), draw.choice(list(WORDS))
            text[place : place + 2] = ["so", word]
            rows.append(json.dumps({"source": " ".join(text), "target": f"it is {word}"}) + "\n")
        (tmp_path / f"{part}.jsonl").write_text("".join(rows))
    start = Start(size="tiny", vocabulary_size=80)
    options = TrainingOptions(tmp_path / "model", steps=200, batch_size=16, learning_rate=1e-3, quiet=True)
    outcome = summarisation.TASK.train(tmp_path / "train.jsonl", tmp_path / "test.jsonl", start, options, None)
    assert outcome.scores["ROUGE-L"] > 0.9 > outcome.baseline["ROUGE-L"]
    assert outcome.scores["loss"] < outcome.baseline["loss"]
    assert summarisation.TASK.evaluate(tmp_path / "model", tmp_path / "test.jsonl", "auto") == outcome.scores
