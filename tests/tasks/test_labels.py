"""Labels of data that a model does not have, and labels that are called like something of the package's own."""

from __future__ import annotations

import re
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from spanbert_kernels import (
    SpanBERTForDependencyParsing,
    SpanBERTForRelations,
    SpanBERTForSequenceClassification,
    SpanBERTForSpanClassification,
    SpanBERTForTokenClassification,
)
from spanbert_kernels.data.conll_coref import MarkedDocument, Mention
from spanbert_kernels.data.conll_ner import TaggedSentence
from spanbert_kernels.data.conllu import ParsedSentence, write_tree
from spanbert_kernels.data.counts import TEST, tallying
from spanbert_kernels.data.faults import DataFault, DataWarning
from spanbert_kernels.data.labelled import LabelledDocument
from spanbert_kernels.tasks import nested, parsing, relations, tagging
from spanbert_kernels.tasks.labels import label_fields, labels_of, listed, warn_of_unknown
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions

FILE = Path("test.file")
TOKENIZER = Start(vocabulary_size=30).tokenizer(["a b c"])
SMALL = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


def marked(*kinds: str) -> MarkedDocument:
    mentions = tuple(Mention(i, i, kind, str(i)) for i, kind in enumerate(kinds))
    return MarkedDocument("d", ("a",) * len(kinds), mentions, FILE, tuple(range(5, 5 + len(kinds))))


CASES: list[tuple[str, Any, list[str], list[Any], str]] = [
    (
        "tagging",
        SpanBERTForTokenClassification,
        ["O", "B-x", "I-x"],
        [TaggedSentence(("a", "b", "c"), ("B-x", "B-y", "I-y"), FILE, 6)],
        "test.file, line 7: the model does not know B-y, I-y, only O, B-x, I-x: 2 labels are missed",
    ),
    (
        "nested",
        SpanBERTForSpanClassification,
        ["none", "x"],
        [marked("x", "y"), marked("y")],
        "test.file, line 6: the model does not know y, only x: 2 labels are missed",
    ),
    (
        "classification",
        SpanBERTForSequenceClassification,
        ["x", "z"],
        [LabelledDocument("a", "y", None, FILE, 7), LabelledDocument("b", "x", None, FILE, 8)],
        "test.file, line 7: the model does not know y, only x, z: 1 label is missed",
    ),
    (
        "parsing",
        SpanBERTForDependencyParsing,
        ["root"],
        [ParsedSentence(("a", "b"), (0, 1), ("root", "dep"), FILE, 6)],
        "test.file, line 7: the model does not know dep, only root: 1 label is missed",
    ),
]


@pytest.mark.parametrize(("task", "kind", "labels", "data", "wanted"), CASES, ids=[case[0] for case in CASES])
def test_a_label_of_the_test_data_alone_is_a_miss(
    task: str, kind: Any, labels: list[str], data: list[Any], wanted: str
) -> None:
    """It is said once, and no score is 1, whatever the model finds."""
    module = import_module(f"spanbert_kernels.tasks.{task}")
    model = Start().build(kind, TOKENIZER, 0, **SMALL, **label_fields(labels))
    with pytest.warns(DataWarning) as heard:
        scores = module.evaluate(model, TOKENIZER, data)
    assert [str(each.message) for each in heard] == [wanted]
    assert all(0.0 <= value < 1.0 for name, value in scores.items() if name not in ("precision", "UAS"))


@pytest.mark.parametrize(("task", "kind", "labels", "data", "wanted"), CASES, ids=[case[0] for case in CASES])
def test_a_label_that_the_model_lacks_is_not_learnt(
    task: str, kind: Any, labels: list[str], data: list[Any], wanted: str
) -> None:
    """File, line and label are those of the warning where it is a miss."""
    place, first, known = re.findall(r"^(.*): the model does not know (\S+?),.* only (.*): \d", wanted)[0]
    model = Start().build(kind, TOKENIZER, 0, **SMALL, **label_fields(labels))
    with pytest.raises(DataFault, match=f"{place}: unknown label {first}; the model has {known}$"):
        import_module(f"spanbert_kernels.tasks.{task}").train(model, TOKENIZER, data, TrainingOptions(FILE))


def related(folder: Path, rows: str) -> Path:
    folder.mkdir()
    (folder / "documents.conll").write_text("# begin document x/1\nAnna\t(1)\nmet\t_\nBoris\t(2)\n")
    (folder / "relations.tsv").write_text(rows)
    return folder


@pytest.fixture(scope="module")
def relater(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was never trained."""
    folder = tmp_path_factory.mktemp("relations")
    model = Start().build(SpanBERTForRelations, TOKENIZER, 0, **SMALL, **label_fields(["none", "met"]))
    model.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


def test_relations_of_the_test_data_alone_and_none(tmp_path: Path, relater: Path) -> None:
    """One that is called none is an annotated negative: no relation, and no miss."""
    data = related(tmp_path / "data", "2\t1\tnone\n1\t2\tknows\n1\t2\tknows\n")
    with pytest.warns(DataWarning) as heard, tallying() as tally:
        scores = relations.TASK.evaluate(relater, data, "auto")
    known = "relations.tsv, line 2: the model does not know knows, only met: 1 label is missed"
    assert [str(each.message).rsplit("/", 1)[-1] for each in heard] == [known]
    assert scores["recall"] == 0.0
    assert tally.counts[TEST].taken["relation"] == 1
    assert +tally.counts[TEST].left == {("relation", "called none"): 1, ("relation", "twice"): 1}
    (cluster,) = relations.read_related(data)
    assert relations.TASK.labels_in([cluster]) == ["none", "knows"]


def test_every_type_has_both_labels() -> None:
    """Though the training data begin each entity, or go on with each, alone."""
    one = TaggedSentence(("a", "b", "c"), ("B-x", "O", "I-y"), FILE, 1)
    assert tagging.TASK.labels_in([one]) == ["O", "B-x", "B-y", "I-x", "I-y"]
    assert tagging.TASK.labels_in([TaggedSentence(("a",), ("B-x-y",), FILE, 1)]) == ["O", "B-x-y", "I-x-y"]


@pytest.mark.parametrize("kind", ["none", "(none)", "O", "_", "LABEL_0", "B-x"])
def test_a_type_may_be_called_as_it_likes(kind: str) -> None:
    """Nothing of what the package calls no mention is taken for a type."""
    documents = [marked("x", kind, "none")]
    labels = nested.TASK.labels_in(documents)
    assert len(set(labels)) == len(labels) == len({"x", kind, "none"}) + 1
    model = Start().build(SpanBERTForSpanClassification, TOKENIZER, 0, **SMALL, **label_fields(labels))
    assert labels_of(model) == labels
    (window,) = nested.windows_of(documents, TOKENIZER, labels, 40)
    assert [labels[i] for i in window["labels"]] == ["x", kind, "none"]
    assert 0 not in window["labels"]


def test_many_labels_are_cut() -> None:
    many = [f"label{i}" for i in range(30)]
    assert listed(many).endswith("label11 and 18 more")
    with pytest.warns(DataWarning, match=r"f, line 3: the model does not know label0, .*: 30 labels are missed"):
        warn_of_unknown(((label, Path("f"), 3) for label in many), ["x"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_unknown([("x", Path("f"), 3)], ["x"])


def test_sentences_too_long_to_parse(tmp_path: Path) -> None:
    """They are in the output, without a tree, and each of their words counts as wrong."""
    fields = {**SMALL, **label_fields(["dep", "root"]), "max_position_embeddings": 6}
    model = Start().build(SpanBERTForDependencyParsing, TOKENIZER, 0, **fields)
    short, long = (ParsedSentence(("a",) * n, tuple(range(n)), ("root", *["dep"] * (n - 1)), FILE, 1) for n in (2, 7))
    trees = parsing.parse(model, TOKENIZER, [long, short])
    assert trees[0] == ([parsing.NOT_PARSED] * 7, ["_"] * 7)
    assert len(trees[1][0]) == 2
    with pytest.warns(DataWarning, match=r"test\.file: no sentence is short enough for the model to find"):
        assert parsing.evaluate(model, TOKENIZER, [long]) == {"UAS": 0.0, "LAS": 0.0}
    written = write_tree(long.words, *trees[0])
    assert written.splitlines()[0] == "1\ta\t_\t_\t_\t_\t_\t_\t_\t_"
    with pytest.raises(ValueError, match=r"test\.file: no sentence is short enough for the model to train on"):
        parsing.train(model, TOKENIZER, [long], TrainingOptions(tmp_path))
