"""What is found beside what is wanted: numbers by groups, and errors with their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spanbert_kernels.data.conll_coref import MarkedDocument, Mention
from spanbert_kernels.data.conll_ner import TaggedSentence
from spanbert_kernels.data.conllu import ParsedSentence
from spanbert_kernels.data.labelled import LabelledDocument
from spanbert_kernels.data.squad import Question
from spanbert_kernels.tasks import comparison
from spanbert_kernels.tasks.relations import RelatedCluster

FILE = Path("file")
WORDS = ("Anna", "met", "Bob", "Smith", "and", "she", "left")
MENTIONS = (Mention(0, 0, "person", "a"), Mention(2, 3, "person", "b"), Mention(5, 5, "person", "a"))
DOCUMENT = MarkedDocument("d", WORDS, MENTIONS, FILE, tuple(range(10, 17)))
OTHER = MarkedDocument("e", ("Bob", "Smith"), (Mention(0, 1, "person", "b"),), FILE, (20, 21))
TAGS = TaggedSentence(WORDS, ("B-person", "O", "B-person", "I-person", "O", "O", "O"), FILE, 4)
TREE = ParsedSentence(WORDS[:3], (2, 0, 2), ("nsubj", "root", "obj"), FILE, 4)
RELATED = RelatedCluster((DOCUMENT, OTHER), frozenset([("a", "b", "knows")]))
# Task, item, what is found, by what: groups as (name, wanted, found, right).
GROUPS: list[tuple[str, Any, Any, str, list[tuple[str, int, int, int]]]] = [
    ("tagging", TAGS, ["B-person", "O", "B-place", *"OOOO"], "type", [("person", 2, 1, 1), ("place", 0, 1, 0)]),
    ("tagging", TAGS, ["B-person", "O", "B-place", *"OOOO"], "length", [("1", 1, 2, 1), ("2", 1, 0, 0)]),
    (
        "nested",
        DOCUMENT,
        {(0, 0, "person"), (2, 6, "event")},
        "length",
        [("1", 2, 1, 1), ("2", 1, 0, 0), ("5 to 8", 0, 1, 0)],
    ),
    ("coreference", DOCUMENT, [frozenset([(0, 0), (2, 3), (5, 5)])], "distance", [("2", 0, 2, 0), ("5 to 8", 1, 0, 0)]),
    ("coreference", DOCUMENT, [frozenset([(0, 0), (5, 5)])], "type", [("person", 1, 1, 1)]),
    (
        "cross_document_coreference",
        (DOCUMENT, OTHER),
        [frozenset([(2, 3), (7, 8)])],
        "length",
        [("1", 1, 0, 0), ("2", 1, 1, 1)],
    ),
    ("relations", RELATED, {("a", "b", "knows"): 0.9}, "distance", [("2", 1, 1, 1)]),
    ("relations", RELATED, {("b", "a", "knows"): 0.9}, "type", [("knows", 1, 1, 0)]),
    (
        "classification",
        LabelledDocument("a b c", "x", None, FILE, 1),
        ("y", 0.9),
        "type",
        [("x", 1, 0, 0), ("y", 0, 1, 0)],
    ),
    ("classification", LabelledDocument("a b c", "x", None, FILE, 1), ("x", 0.9), "length", [("3", 1, 1, 1)]),
    (
        "parsing",
        TREE,
        ([2, 0, 1], ["nsubj", "root", "obj"]),
        "distance",
        [("1", 2, 1, 1), ("2", 0, 1, 0), ("none", 1, 1, 1)],
    ),
    (
        "question_answering",
        Question("q", "Whom did Anna meet?", " ".join(WORDS), (("Bob Smith", 9), ("Bob", 9)), FILE),
        "the bob",
        "length",
        [("1", 1, 1, 1)],
    ),
    ("question_answering", Question("q", "So?", "a b", (), FILE), "b", "type", [("other", 1, 1, 0)]),
]


@pytest.mark.parametrize(("task", "item", "found", "by", "groups"), GROUPS)
def test_groups(task: str, item: Any, found: Any, by: str, groups: list[tuple[str, int, int, int]]) -> None:
    got = comparison.grouped(task, by, [item], [found])
    assert [(each.name, each.wanted, each.found, each.right) for each in got] == groups


def test_errors_have_their_places() -> None:
    """What overlaps is one error, with the words around it and the line of its first word."""
    document = MarkedDocument(
        "d",
        ("x",) * 30 + WORDS,
        tuple(Mention(m.first + 30, m.last + 30, m.kind, m.entity) for m in MENTIONS),
        FILE,
        tuple(range(1, 38)),
    )
    (item,) = comparison.compared("nested", [document], [{(33, 33, "place"), (2, 2, "person"), (35, 35, "person")}])
    extra, missed, other = comparison.errors(item)
    assert (extra.wanted, extra.found and extra.found.text, extra.line) == (None, "person: x", 3)
    assert (missed.wanted and missed.wanted.text, missed.found, missed.line) == ("person: Anna", None, 31)
    assert (other.wanted and other.wanted.text, other.found and other.found.text) == (
        "person: Bob Smith",
        "place: Smith",
    )
    assert (other.first, other.line, " ".join(other.words[-5:])) == (22, 33, "Bob Smith and she left")


def test_what_a_task_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="tagging cannot be grouped by distance, only by type or length"):
        comparison.check("tagging", "distance", False)
    with pytest.raises(ValueError, match="what translation writes is a text"):
        comparison.check("translation", "length", True)
    comparison.check("translation", "length", False)
