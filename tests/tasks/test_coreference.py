"""Coreference: scores worked out by hand, windows, span training, what the loss wants, learning."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from spanbert_kernels import SpanBERTConfig, SpanBERTForCoreference
from spanbert_kernels.data.conll_coref import MarkedDocument, Mention, read_marked
from spanbert_kernels.tasks import coreference
from spanbert_kernels.tasks.span_training import SpanTraining
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions

NAMES = ("Anna", "Boris", "Clara", "David")


def document(text: str, mentions: list[tuple[int, int, str]]) -> MarkedDocument:
    words = tuple(text.split())
    found = tuple(Mention(first, last, "", entity) for first, last, entity in mentions)
    return MarkedDocument("d", words, found, Path("file.conll"), tuple(range(1, len(words) + 1)))


def entities(*groups: str) -> set[coreference.Entity]:
    """`entities("ab", "c")`: mentions of a word each."""
    return {frozenset((ord(word), ord(word)) for word in group) for group in groups}


def test_scores() -> None:
    """The example of Pradhan et al. 2014, Scoring Coreference Partitions of Predicted Mentions, worked out by hand."""
    mentions = [(ord(word), ord(word), group) for group in ("abc", "defg") for word in group]
    key = document("", mentions)
    scores = coreference.score([key], [entities("ab", "cd", "fghi")])
    b3 = 2 / (1 / ((4 / 3 + 1 / 3 + 1 / 4 + 1) / 7) + 1 / ((2 + 0.5 + 0.5 + 1) / 8))
    ceafe = 2 * (0.8 + 0.5) / (2 + 3)
    assert scores == pytest.approx({"MUC": 0.4, "B3": b3, "CEAFe": ceafe, "CoNLL F1": (0.4 + b3 + ceafe) / 3})
    assert coreference.score([key], [coreference.gold(key)])["CoNLL F1"] == 1.0
    assert coreference.score([key], [set()])["CoNLL F1"] == 0.0
    apart = coreference.score([key, key], [coreference.gold(key), set()])  # the same words of another document
    assert apart["CEAFe"] == pytest.approx(2 / 3)
    alone = coreference.singletons([key], [coreference.gold(key)])
    assert (alone["MUC"], alone["B3"] < 1) == (0.0, True)


def story(seed: int) -> MarkedDocument:
    """Names that come again, each an entity."""
    draw = random.Random(seed)
    words: list[str] = []
    mentions = []
    for _ in range(6):
        name = draw.choice(NAMES)
        words += ["then"] * draw.randrange(3)
        mentions.append((len(words), len(words), name))
        words += [name, "left", "."]
    return document(" ".join(words), mentions)


def write(path: Path, documents: list[MarkedDocument]) -> Path:
    """With a bracket for every mention of a word."""
    text = ""
    for each in documents:
        marks = {mention.first: f"({mention.entity})" for mention in each.mentions}
        rows = (f"{i}\t{word}\t{marks.get(i, '_')}\n" for i, word in enumerate(each.words))
        text += f"# begin document d\n{''.join(rows)}# end document\n"
    path.write_text(text)
    return path


def test_windows() -> None:
    long = document("Anna left . Boris left . Anna of Oslo", [(0, 0, "a"), (3, 3, "b"), (6, 8, "a"), (2, 3, "x")])
    tokenizer = Start(vocabulary_size=60).tokenizer([" ".join(long.words)] * 2)
    example = coreference.encode(long, tokenizer, 5)
    assert example["starts"] == [0, 3, 6]
    assert example["mentions"].tolist() == [[0, 0, 0], [1, 0, 0], [2, 0, 2]]
    assert example["entities"].tolist() == [0, 1, 0]
    batch = coreference.collate([example, coreference.encode(long, tokenizer, 64)])
    assert batch["documents"].tolist() == [0, 0, 0, 1]
    assert batch["mentions"][3:].tolist() == [[3, 0, 0], [3, 3, 3], [3, 6, 8], [3, 2, 3]]
    assert len(set(batch["entities"].tolist())) == 2 + 3
    part = coreference.encode(long, tokenizer, 5, (4, 8))
    assert [len(window["word_starts"]) for window in part["windows"]] == [0, 2, 2]
    assert [len(window["input_ids"]) for window in part["windows"]] == [5, 5, 5]
    assert part["mentions"].tolist() == []


def test_span_training() -> None:
    told = story(0)
    tokenizer = Start(vocabulary_size=60).tokenizer([" ".join(told.words)] * 2)
    for crop in ("input", "loss"):
        data = coreference.Documents([told], tokenizer, 64, SpanTraining(8, crop), 0)
        seen = set()
        for epoch in range(40):
            data.set_epoch(epoch)
            example = data[0]
            word_starts = example["windows"][0]["word_starts"]
            assert len(word_starts) == 8
            assert all(last < 8 for _, _, last in example["mentions"])
            assert len(example["windows"][0]["input_ids"]) == (10 if crop == "input" else len(told.words) + 2)
            seen.add((int(word_starts[0]), tuple(example["windows"][0]["input_ids"].tolist())))
        assert len(seen) > 3
    assert coreference.Documents([told], tokenizer, 64, SpanTraining(800), 0)[0]["mentions"].shape == (6, 3)


def model_of(**fields: Any) -> SpanBERTForCoreference:
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return SpanBERTForCoreference(SpanBERTConfig(vocab_size=30, max_span_width=3, **shape, **fields)).eval()


def test_the_loss_is_its_definition() -> None:
    model = model_of(max_antecedents=3, kept_spans_share=0.8)
    torch.nn.init.normal_(model.mention_hidden.weight)
    ids, word_starts = torch.randint(30, (2, 7)), torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, -1, -1]])
    mentions = torch.tensor([[0, 0, 0], [0, 2, 3], [1, 0, 1], [1, 2, 2], [0, 0, 4]])
    entities = torch.tensor([0, 1, 0, 1, 0])
    output = model(ids, word_starts=word_starts, mentions=mentions, entities=entities)
    gold = {(0, 0): 0, (2, 3): 1, (5, 6): 0, (7, 7): 1}
    spans = [(a, b) for row in ((0, 5), (5, 8)) for a in range(*row) for b in range(a, min(a + 3, row[1]))]
    plan = model(ids, word_starts=word_starts)
    kept = [tuple(span) for span in plan.spans.tolist()]
    assert len(kept) == 7
    earlier, scores = recorded(model, ids, word_starts)
    total = 0.0
    for i, span in enumerate(kept):
        own = [s.exp().item() for s in scores[i]]
        right = [
            value for j, value in zip(earlier[i].tolist(), own, strict=True)
            if value > 0 and span in gold and gold.get(kept[j]) == gold[span]
        ]  # fmt: skip
        total -= torch.tensor((sum(right) or 1.0) / (1.0 + sum(own))).log().item()
    all_scores = mention_scores(model, ids, word_starts)
    wanted = torch.tensor([float(span in gold) for span in spans])
    found = torch.nn.functional.binary_cross_entropy_with_logits(all_scores, wanted, reduction="sum").item() / 8
    assert output.loss.item() == pytest.approx(found + total / 7, rel=1e-4)


def recorded(model: SpanBERTForCoreference, *inputs: torch.Tensor) -> Any:
    """What `_antecedents` gives."""
    kept: list[Any] = []
    original = model._antecedents
    model._antecedents = lambda *args: kept.append(original(*args)) or kept[-1]  # type: ignore[method-assign,func-returns-value]
    with torch.no_grad():
        model(inputs[0], word_starts=inputs[1])
    del model._antecedents
    return kept[0]


def mention_scores(model: SpanBERTForCoreference, ids: torch.Tensor, word_starts: torch.Tensor) -> torch.Tensor:
    """Of all spans in their order: those that are kept when all are."""
    share = model.config.kept_spans_share
    model.config.kept_spans_share = 100.0
    with torch.no_grad():
        from spanbert_kernels import ops

        pruned = ops.prune_spans
        ops.prune_spans = lambda spans, *_, **__: torch.arange(len(spans))
        try:
            return model(ids, word_starts=word_starts).scores
        finally:
            ops.prune_spans = pruned
            model.config.kept_spans_share = share


def test_antecedents_stay_in_their_document() -> None:
    model = model_of(kept_spans_share=1.0)
    torch.nn.init.constant_(model.mention_score.bias, 9.0)  # every link pays
    ids, word_starts = torch.randint(30, (3, 5)), torch.tensor([[1, 2, 3]] * 3)
    together = model(ids, word_starts=word_starts)
    apart = model(ids, word_starts=word_starts, documents=torch.tensor([0, 0, 1]))
    alone = model(ids[2:], word_starts=word_starts[2:])
    last = apart.spans[:, 0] >= 6
    first = int(last.nonzero()[0])
    assert (together.antecedents[first:] >= 0).all()
    assert apart.antecedents[first] == -1
    torch.testing.assert_close(apart.scores[last], alone.scores)
    torch.testing.assert_close(
        apart.antecedents[last] - first, alone.antecedents - (alone.antecedents < 0).long() * first
    )


def test_bad_input(tmp_path: Path) -> None:
    model = model_of()
    with pytest.raises(ValueError, match="word_starts"):
        model(torch.ones(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="come together"):
        model(
            torch.ones(1, 3, dtype=torch.long), word_starts=torch.ones(1, 1, dtype=torch.long), entities=torch.ones(1)
        )
    with pytest.raises(ValueError, match="there is no document"):
        coreference.train(model, None, [], TrainingOptions(tmp_path))  # type: ignore[arg-type]


@pytest.mark.slow
def test_it_learns_and_is_loaded_again(tmp_path: Path) -> None:
    """Which names are the same, and that a name alone is a mention, too."""
    train, test = (
        write(tmp_path / f"{n}.conll", [story(i) for i in r]) for n, r in (("a", range(100)), ("b", range(100, 130)))
    )
    start = Start(size="tiny", vocabulary_size=60)
    options = TrainingOptions(tmp_path / "model", steps=300, batch_size=8, learning_rate=1e-3, quiet=True)
    outcome = coreference.TASK.train(train, test, start, options, None)
    assert outcome.training.paths["packed-training"] == 300
    assert outcome.scores["CoNLL F1"] > 0.9
    assert outcome.baseline["CoNLL F1"] < 0.6
    assert coreference.TASK.evaluate(tmp_path / "model", test, "eager") == pytest.approx(outcome.scores)
    plain = tmp_path / "plain.txt"
    plain.write_text("Anna left .\nthen Boris left .\nthen Anna left .\n")
    (line,) = coreference.TASK.predict(tmp_path / "model", plain, "auto")
    first, *_, last = (mention for mention in json.loads(line)["mentions"] if mention["text"] == "Anna")
    assert (first["start"], last["start"], first["entity"]) == (0, 35, last["entity"])
    assert read_marked(test)[0].mentions == story(100).mentions
