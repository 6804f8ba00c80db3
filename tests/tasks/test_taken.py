"""Nothing vanishes in silence: what each task takes from its data, cuts and leaves out, in numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from spanbert_kernels import (
    SpanBERTForCoreference,
    SpanBERTForDependencyParsing,
    SpanBERTForExtraction,
    SpanBERTForQuestionAnswering,
    SpanBERTForRelations,
    SpanBERTForSequenceClassification,
    SpanBERTForSpanClassification,
    SpanBERTForTokenClassification,
    SpanBERTModel,
)
from spanbert_kernels.cli.explain import _explained
from spanbert_kernels.data.conll_coref import MarkedDocument, Mention
from spanbert_kernels.data.conll_ner import TaggedSentence
from spanbert_kernels.data.conllu import ParsedSentence
from spanbert_kernels.data.counts import TEST, TRAINING, Counts, tallying
from spanbert_kernels.data.labelled import LabelledDocument
from spanbert_kernels.data.squad import Question
from spanbert_kernels.tasks.base import load
from spanbert_kernels.tasks.generation import Collator, Generator, Pair, count_pairs, encode, loss
from spanbert_kernels.tasks.labels import label_fields
from spanbert_kernels.tasks.pretraining import blocks_of
from spanbert_kernels.tasks.relations import RelatedCluster
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions

POSITIONS, WIDTH = 16, 3
LONG = "ab" * 20  # in letters more than a window holds
FILE = Path("file")
START = Start(vocabulary_size=12)
TOKENIZER = START.tokenizer(["a b c . ? abab"])  # a letter a token
SMALL = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": POSITIONS,
    "max_span_width": WIDTH,
}


class BeforeTheTraining(Exception):
    """By then all is counted."""


def document(name: str, words: list[str], mentions: list[tuple[int, int, str, str]]) -> MarkedDocument:
    found = tuple(sorted((Mention(*each) for each in mentions), key=lambda m: (m.first, -m.last, m.kind, m.entity)))
    return MarkedDocument(name, tuple(words), found, FILE, tuple(range(1, len(words) + 1)))


WORDS = ["a"] * 12 + ["."] + ["b"] * 3 + [LONG]  # windows of 13, 3 and 1 words
MENTIONS = [
    (0, 0, "x", "1"),
    (0, 0, "x", "1"),  # twice
    (0, 0, "y", "2"),  # of the same words
    (2, 5, "x", "2"),  # four words
    (11, 13, "x", "1"),  # in two windows
    (14, 15, "y", "2"),
    (16, 16, "x", "3"),
]
DOCUMENTS = [document("k/1", WORDS, MENTIONS), document("k/2", ["c"], [])]


def question(text: str, context: str, answer: str | None) -> Question:
    answers = () if answer is None else ((answer, context.index(answer)),)
    return Question("q", text, context, answers, FILE)


def tagged(words: str, labels: str) -> TaggedSentence:
    return TaggedSentence(tuple(words.split()), tuple(labels.split()), FILE, 1)


def chain(count: int) -> ParsedSentence:
    return ParsedSentence(("a",) * count, tuple(range(count)), ("dep",) * count, FILE, 1)


CUT_WORD = {("word", "to its first 14 pieces"): 1}
LEFT_MENTIONS = {
    ("mention", "twice"): 1,
    ("mention", "wider than 3 words"): 1,
    ("mention", "across windows"): 1,
}
# Task, class of its model, its labels, data, what is taken, cut, and left out.
CASES: list[tuple[str, Any, list[str], list[Any], dict[str, int], dict[Any, int], dict[Any, int]]] = [
    (
        "tagging",
        SpanBERTForTokenClassification,
        ["O", "B-x", "I-x"],
        [tagged("a b c", "B-x I-x O"), tagged(f"a {LONG}", "B-x B-x")],
        {"sentence": 2, "entity": 3},
        CUT_WORD,
        {},
    ),
    (
        "nested",
        SpanBERTForSpanClassification,
        ["none", "x", "y"],
        DOCUMENTS,
        {"document": 2, "mention": 3},
        CUT_WORD,
        {**LEFT_MENTIONS, ("mention", "of the same words as another kind's"): 1},
    ),
    (
        "coreference",
        SpanBERTForCoreference,
        [],
        DOCUMENTS,
        {"document": 2, "mention": 3},
        CUT_WORD,
        {**LEFT_MENTIONS, ("mention", "of the same words as another entity's"): 1},
    ),
    (
        "cross_document_coreference",
        SpanBERTForCoreference,
        [],
        [tuple(DOCUMENTS)],
        {"document": 2, "mention": 3},
        CUT_WORD,
        {**LEFT_MENTIONS, ("mention", "of the same words as another entity's"): 1},
    ),
    (
        "relations",
        SpanBERTForRelations,
        ["none", "r"],
        [
            RelatedCluster(
                (document("k/1", WORDS, [*MENTIONS, (12, 13, "x", "4")]), DOCUMENTS[1]),
                frozenset([("1", "2", "r"), ("3", "1", "r"), ("4", "1", "r")]),
            )
        ],
        {"document": 2, "mention": 5, "relation": 2},
        CUT_WORD,
        {
            ("mention", "twice"): 1,
            ("mention", "across windows"): 2,
            ("relation", "of an entity whose mentions were left out"): 1,
        },
    ),
    (
        "classification",
        SpanBERTForSequenceClassification,
        ["x", "y"],
        [LabelledDocument("a b c", "x", None, FILE, 1), LabelledDocument("a " * 15, "y", None, FILE, 2)],
        {"document": 2},
        {("document", "to its first 14 tokens"): 1},
        {},
    ),
    (
        "parsing",
        SpanBERTForDependencyParsing,
        ["dep"],
        [chain(14), chain(15), chain(2)],
        {"sentence": 2},
        {},
        {("sentence", "longer than 16 tokens"): 1},
    ),
    (
        "question_answering",
        SpanBERTForQuestionAnswering,
        [],
        [
            question("a ?", "a b c", "b"),
            question("a " * 20, "a b c", "c"),
            question("?", "c " * 40, ("c " * 20).strip()),
            question("b ?", "a b c", None),
        ],
        {"question": 3},
        {("question", "to its first 6 tokens"): 1},
        {("question", "its answer fits in no window"): 1},
    ),
    (
        "extraction",
        SpanBERTForExtraction,
        [],
        [Pair("A ab. C ab.", ("a",), FILE, 1), Pair(f"{LONG} ab. {'A ' * 15}. C ab.", ("a",), FILE, 2)],
        {"document": 2, "sentence": 5},
        {**CUT_WORD, ("sentence", "to the words that fit in 14 pieces"): 2},
        {},
    ),
]


def model_of(kind: Any, labels: list[str]) -> Any:
    return START.build(kind, TOKENIZER, 0, **SMALL, **(label_fields(labels) if labels else {}))


def counted(run: Callable[[], Any], name: str) -> Counts:
    with tallying() as tally:
        run()
    assert list(tally.counts) == [name]
    return tally.counts[name]


@pytest.mark.parametrize(("task", "kind", "labels", "data", "taken", "cut", "left"), CASES, ids=[c[0] for c in CASES])
def test_training(
    task: str,
    kind: Any,
    labels: list[str],
    data: list[Any],
    taken: dict[str, int],
    cut: dict[Any, int],
    left: dict[Any, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = import_module(f"spanbert_kernels.tasks.{task}")

    def stop(*args: Any, **kwargs: Any) -> None:
        raise BeforeTheTraining

    monkeypatch.setattr("spanbert_kernels.tasks.base.fit", stop)

    def run() -> None:
        with pytest.raises(BeforeTheTraining):
            module.train(model_of(kind, labels), TOKENIZER, data, TrainingOptions(FILE))

    found = counted(run, TRAINING)
    assert (found.taken, +found.cut, +found.left) == (Counter(taken), Counter(cut), Counter(left))


@pytest.mark.parametrize(("task", "kind", "labels", "data", "taken", "cut", "left"), CASES, ids=[c[0] for c in CASES])
def test_evaluation(
    task: str,
    kind: Any,
    labels: list[str],
    data: list[Any],
    taken: dict[str, int],
    cut: dict[Any, int],
    left: dict[Any, int],
) -> None:
    """The same numbers; a question whose answer fits in no window is asked all the same."""
    module = import_module(f"spanbert_kernels.tasks.{task}")
    found = counted(lambda: module.evaluate(model_of(kind, labels), TOKENIZER, data), TEST)
    if task == "question_answering":
        taken, left = {"question": 4}, {}
    assert (found.taken, +found.cut, +found.left) == (Counter(taken), Counter(cut), Counter(left))


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], Path]:
    """A folder with a model of the class that was never trained."""
    folders: dict[Any, Path] = {}

    def write(kind: Any) -> Path:
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind.__name__)
            labels = ["O", "B-x", "I-x"] if kind is SpanBERTForTokenClassification else ["none", "x"]
            upper = {"cross_document_layers": [0], "cross_document_queries": "tokens", "cross_document_keys": "tokens"}
            fields = {**label_fields(labels), **(upper if kind is SpanBERTForRelations else {})}
            if kind in (SpanBERTForCoreference, SpanBERTForQuestionAnswering):
                fields = {}
            START.build(kind, TOKENIZER, 0, **SMALL, **fields).save_pretrained(folders[kind])
            TOKENIZER.save_pretrained(folders[kind])
        return folders[kind]

    return write


ROWS = ["# begin document k/1", "a\t(x-1)", "b\t(x-2)", *["a\t_"] * 8, f"{LONG}\t_", "# begin document k/2", "c\t_", ""]
MARKED = "\n".join(ROWS)
ASKED = json.dumps({"data": [{"paragraphs": [{"context": "a b", "qas": [{"id": "1", "question": "a " * 20}]}]}]})
# Task, class of its model, file and its text, what is said.
PREDICTIONS: list[tuple[str, Any, str, str, str]] = [
    (
        "tagging",
        SpanBERTForTokenClassification,
        "a.txt",
        f"a b\n\nc {LONG}\n",
        "took 2 sentences; cut 1 word (to its first 14 pieces)",
    ),
    ("parsing", SpanBERTForDependencyParsing, "a.txt", f"a b\n{'a ' * 15}\n", "took 1 sentence; left out 1 sentence "),
    ("nested", SpanBERTForSpanClassification, "a.conll", MARKED, "took 2 documents; cut 1 word "),
    ("coreference", SpanBERTForCoreference, "a.conll", MARKED, "took 2 documents; cut 1 word "),
    ("cross_document_coreference", SpanBERTForCoreference, "a.conll", MARKED, "took 2 documents; cut 1 word "),
    ("relations", SpanBERTForRelations, "a/documents.conll", MARKED, "took 2 documents, 2 mentions; cut 1 word "),
    (
        "classification",
        SpanBERTForSequenceClassification,
        "a.txt",
        f"a\n{'b ' * 20}\n",
        "took 2 documents; cut 1 document (to its first 14 tokens)",
    ),
    ("extraction", SpanBERTForExtraction, "a.txt", "A ab. B ab.\nC.\n", "took 2 documents, 3 sentences"),
    ("question_answering", SpanBERTForQuestionAnswering, "a.json", ASKED, "took 1 question; cut 1 question (to its "),
]


@pytest.mark.parametrize(("task", "kind", "name", "text", "said"), PREDICTIONS, ids=[case[0] for case in PREDICTIONS])
def test_predictions(
    task: str, kind: Any, name: str, text: str, said: str, tmp_path: Path, untrained: Callable[[Any], Path]
) -> None:
    """What is said is no part of what is predicted."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    heard: list[str] = []
    with tallying(heard.append):
        lines = list(load(task).predict(untrained(kind), path.parent if task == "relations" else path, "auto"))
    assert lines
    (line,) = heard
    assert line.startswith(f"Data: {said}")
    assert line not in lines


def test_an_explanation(tmp_path: Path, untrained: Callable[[Any], Path]) -> None:
    path = tmp_path / "a.txt"
    path.write_text(f"a\n{'b ' * 20}\n")
    heard: list[str] = []
    with tallying(heard.append):
        _explained("classification", untrained(SpanBERTForSequenceClassification), [path], 9, None)
    assert heard == ["Data: took 2 documents; cut 1 document (to its first 14 tokens)"]
    path.write_text("")
    for task, kind in ("classification", SpanBERTForSequenceClassification), ("nested", SpanBERTForSpanClassification):
        with pytest.raises(ValueError, match=r"a\.txt: there is nothing to predict for"):
            _explained(task, untrained(kind), [path], 9, None)


def test_texts_and_targets(tmp_path: Path) -> None:
    """Windows of a text are as long as the encoder's positions allow, and every token is read; targets are cut."""
    START.build(SpanBERTModel, TOKENIZER, 0, **SMALL).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    pairs = [Pair("a " * 40, ("b " * 127, "b " * 128), FILE, 1), Pair("b", ("c",), FILE, 2)]
    generator = Generator.build(Start(model=str(tmp_path)), TOKENIZER, TOKENIZER, 0, pairs)
    assert generator.model.encoder.config.window_length == POSITIONS
    assert Collator.of(generator).windows(encode(pairs, generator)[0]["tokens"])[1].sum() == 40 + 2 * 3
    with tallying() as tally:
        count_pairs(pairs, generator)
        assert loss(generator, pairs) > 0.0
    found = tally.counts["Data"]
    assert (found.taken, found.cut) == ({"text": 2}, {("target", "to its first 127 tokens"): 1})


def test_pretraining() -> None:
    with tallying() as tally:
        blocks_of(["a b . c a", "\u200b\x01", "b"], TOKENIZER, 5)
    found = tally.counts["Data"]
    assert found.taken == {"document": 2, "block": 3}
    assert found.left == {("document", "without a token"): 1}
