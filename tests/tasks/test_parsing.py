"""The parser: trees from files, the best tree, span training, learning."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from spanbert_kernels import SpanBERTForDependencyParsing
from spanbert_kernels.data.conllu import ParsedSentence, in_cycle, read_trees, write_tree
from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.tasks import parsing
from spanbert_kernels.tasks.span_training import SpanTraining
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions

SENTENCE = "the captain of the ferry leaves the captain ."  # the second of the grammar
NOUNS, VERBS = ("ferry", "captain", "storm", "harbour"), ("sees", "leaves", "meets")


def row(number: str, word: str, head: str, relation: str) -> str:
    return f"{number}\t{word}\t_\t_\t_\t_\t{head}\t{relation}\t_\t_\n"


def grammar(count: int) -> str:
    """`the N (of the N)? V the N .` in CoNLL-U."""
    blocks = []
    for i in range(count):
        a, b, c = NOUNS[i % 4], NOUNS[(i // 4) % 4], NOUNS[(i // 2 + 1) % 4]
        verb = VERBS[i % 3]
        if i % 2:
            words, heads = f"the {a} of the {b} {verb} the {c} .", [2, 6, 5, 5, 2, 0, 8, 6, 6]
            relations = "det nsubj case det nmod root det obj punct"
        else:
            words, heads = f"the {a} {verb} the {c} .", [2, 3, 0, 5, 3, 3]
            relations = "det nsubj root det obj punct"
        blocks.append(write_tree(tuple(words.split()), heads, relations.split()))
    return "\n".join(blocks)


def read(tmp_path: Path, text: str) -> list[ParsedSentence]:
    path = tmp_path / "trees.conllu"
    path.write_text(text)
    return read_trees(path)


def test_words_alone_are_read(tmp_path: Path) -> None:
    text = (
        "# text = don't\n" + row("1-2", "don't", "_", "_") + row("1", "do", "2", "aux") + row("2", "n't", "0", "root")
        + row("2.1", "go", "_", "_") + "\r\n\n" + row("1", "Yes", "0", "root")
    )  # fmt: skip
    first, second = read(tmp_path, text)
    assert (first.words, first.heads, first.relations, first.line) == (("do", "n't"), (2, 0), ("aux", "root"), 3)
    assert (second.words, second.line) == (("Yes",), 8)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("1\tYes\n", 1, "10 columns are wanted, got 2"),
        (row("2", "Yes", "0", "root"), 1, "word 1 is wanted, got '2'"),
        (row("1", "Yes", "2", "root"), 1, "head '2' is not another word"),
        (row("1", "Yes", "1", "root"), 1, "head '1' is not another word"),
        (row("1", "Yes", "x", "root"), 1, "head 'x' is not another word"),
        (row("1", "Yes", "0", "_"), 1, "there is no relation"),
        ("\n" + row("1", "a", "0", "root") + row("2", "b", "0", "root"), 2, "a sentence has one root, this one has 2"),
        (row("1", "a", "0", "root") + row("2", "b", "3", "x") + row("3", "c", "2", "x"), 2, "word 2 depends on itself"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, line: int, reason: str) -> None:
    with pytest.raises(DataFault, match=f"trees.conllu, line {line}: {reason}"):
        read(tmp_path, text)


@pytest.mark.parametrize("words", [1, 2, 3, 4])
def test_the_best_tree_is_the_best_of_all(words: int) -> None:
    generator = np.random.default_rng(words)
    trees = [
        heads
        for heads in itertools.product(range(words + 1), repeat=words)
        if heads.count(0) == 1 and all(h != i for i, h in enumerate(heads, 1)) and in_cycle(list(heads)) is None
    ]
    for _ in range(20):
        scores = generator.normal(size=(words + 1, words + 1))
        scores[1:, 0] += generator.choice([0.0, 3.0])  # then the best tree has several roots
        best = max(trees, key=lambda heads: sum(scores[i, h] for i, h in enumerate(heads, 1)))
        assert parsing.best_tree(scores) == list(best)


def example(tmp_path: Path) -> tuple[dict[str, Any], Any]:
    sentences = read(tmp_path, grammar(2))
    tokenizer = Start(vocabulary_size=200).tokenizer([SENTENCE, SENTENCE])
    relations = ["case", "det", "nmod", "nsubj", "obj", "punct", "root"]
    return parsing.encode(sentences, tokenizer, relations, 64)[1], tokenizer


def test_examples_and_span_training(tmp_path: Path) -> None:
    whole, tokenizer = example(tmp_path)
    pieces = tokenizer.convert_ids_to_tokens(whole["input_ids"].tolist())
    assert [pieces[c] for c in whole["word_starts"]] == ["[CLS]", *SENTENCE.split()]
    first, last = int(whole["word_starts"][2]), int(whole["word_starts"][6])
    span = slice(first, last)  # captain of the ferry
    loss = parsing.show(whole, span, "loss")
    np.testing.assert_array_equal(loss["input_ids"], whole["input_ids"])
    assert loss["heads"].tolist() == [-100, -100, 6, 5, 5, 2, -100, -100, -100, -100]
    cut = parsing.show(whole, span, "input")
    pieces = tokenizer.convert_ids_to_tokens(cut["input_ids"].tolist())
    assert [pieces[c] for c in cut["word_starts"]] == ["[CLS]", "captain", "of", "the", "ferry"]
    assert cut["heads"].tolist() == [-100, -100, 4, 4, 1]
    assert (cut["labels"] >= 0).tolist() == [False, False, True, True, True]


def test_it_learns_and_is_loaded_again(tmp_path: Path) -> None:
    sentences = read(tmp_path, grammar(48))
    start = Start(size="tiny", vocabulary_size=200)
    tokenizer = start.tokenizer(" ".join(sentence.words) for sentence in sentences)
    relations = dict(enumerate(sorted({relation for sentence in sentences for relation in sentence.relations})))
    model = start.build(SpanBERTForDependencyParsing, tokenizer, 0, id2label=relations, num_hidden_layers=1)
    options = TrainingOptions(tmp_path / "model", steps=80, batch_size=12, learning_rate=3e-3, quiet=True)
    training = parsing.train(model, tokenizer, sentences, options, SpanTraining(6, "loss"))
    assert training.paths["packed-training"] == 80
    scores = parsing.evaluate(model, tokenizer, sentences)
    assert scores["LAS"] > 0.95
    assert parsing.left_neighbour(sentences, sentences)["UAS"] < 0.3
    assert parsing.TASK.evaluate(tmp_path / "model", sentences[0].path, "eager") == scores
    plain = tmp_path / "plain.txt"
    plain.write_text("the storm of the harbour meets the captain .\n\nthe ferry sees the storm .\n")
    lines = parsing.TASK.predict(tmp_path / "model", plain, "auto", "columns")
    (tmp_path / "found.conllu").write_text("".join(f"{line}\n" for line in lines))
    found = read_trees(tmp_path / "found.conllu")
    assert found[0].heads == (2, 6, 5, 5, 2, 0, 8, 6, 6)
    assert " ".join(found[1].words) == "the ferry sees the storm ."


def test_a_new_head_on_an_encoder(tmp_path: Path) -> None:
    """What the checkpoint lacks begins as in a new model, not with what lies in memory."""
    start = Start(size="tiny", vocabulary_size=40)
    tokenizer = start.tokenizer(["the ferry"])
    model = start.build(SpanBERTForDependencyParsing, tokenizer, 0)
    model.bert.save_pretrained(tmp_path)
    loaded = SpanBERTForDependencyParsing.from_pretrained(tmp_path, num_labels=5)
    assert not loaded.arc.weight.any()
    assert loaded.relation.weight.shape == (5, 129, 129)
    assert torch.equal(loaded.bert.embeddings.word_embeddings.weight, model.bert.embeddings.word_embeddings.weight)


def test_bad_input(tmp_path: Path) -> None:
    sentences = read(tmp_path, grammar(2))
    tokenizer = Start(vocabulary_size=60).tokenizer(["ab cd"])
    assert parsing.encode(sentences, tokenizer, sorted({r for s in sentences for r in s.relations}), 7) == []
    model = Start(size="tiny").build(SpanBERTForDependencyParsing, tokenizer, 0)
    with pytest.raises(ValueError, match="word_starts"):
        model(torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(ValueError, match="heads and labels come together"):
        model(torch.zeros(1, 4, dtype=torch.long), word_starts=torch.zeros(1, 1), heads=torch.zeros(1, 1))
    with pytest.raises(ValueError, match="there is no sentence"):
        parsing.train(model, tokenizer, [], TrainingOptions(tmp_path))
