"""Mentions in CoNLL-U: CorefUD's and GUM's Entity brackets."""

from __future__ import annotations

from pathlib import Path

import pytest

from spanbert_kernels.data.conll_coref import Mention
from spanbert_kernels.data.corefud import read_entities
from spanbert_kernels.data.counts import tallying
from spanbert_kernels.data.entities import read_marked, read_nested
from spanbert_kernels.data.faults import DataFault

HEADER = "# global.Entity = eid-etype-head-other\n"


def conllu(*rows: tuple[str, str, str]) -> str:
    """Rows of ID, form and MISC."""
    return "".join(f"{number}\t{form}" + "\t_" * 7 + f"\t{misc}\n" for number, form, misc in rows) + "\n"


def read(tmp_path: Path, text: str) -> list[tuple[str, tuple[str, ...], tuple[Mention, ...]]]:
    path = tmp_path / "a.conllu"
    path.write_text(text)
    return [(document.name, document.words, document.mentions) for document in read_entities(path)]


def test_corefud(tmp_path: Path) -> None:
    text = (
        "# newdoc id = one\n"
        + HEADER
        + "# sent_id = 1\n"
        + conllu(("1", "Anna", "Entity=(e1-person-1-(e2-person-1-x:y)"), ("2", "Smith", "SpaceAfter=No|Entity=e1)"))
        + conllu(("1", "saw", "_"), ("2", "her", "Entity=(e1-person-1-)(e3)"))
        + "# newdoc id = two\n"
        + conllu(("1", "Yes", "Entity=(e4--1-)"))
    )
    text = text.replace("(e1-person-1-(e2-person-1-x:y)", "(e1-person-1-x(e2-person-1-x:y)")
    assert read(tmp_path, text) == [
        (
            "one",
            ("Anna", "Smith", "saw", "her"),
            (
                Mention(0, 1, "person", "e1"),
                Mention(0, 0, "person", "e2"),
                Mention(3, 3, "", "e3"),
                Mention(3, 3, "person", "e1"),
            ),
        ),
        ("two", ("Yes",), (Mention(0, 0, "", "e4"),)),
    ]


def test_gum(tmp_path: Path) -> None:
    """The header lists GRP first, and its names may hold hyphens."""
    text = (
        "# newdoc id = GUM_x\n# global.Entity = GRP-etype-infstat-salience-centering-minspan-link-identity\n"
        + conllu(("1", "The", "Entity=(1-place-new-nnnnn-cf1*-2-coref-San_Juan-Puerto"), ("2", "city", "Entity=1)"))
    )
    assert read(tmp_path, text) == [("GUM_x", ("The", "city"), (Mention(0, 1, "place", "1"),))]


def test_what_has_no_words_is_left_out_and_counted(tmp_path: Path) -> None:
    text = HEADER + conllu(
        ("1", "He", "Entity=(e1[1/2]-person-1-)"),
        ("1.1", "_", "Entity=(e2-person-1-)"),
        ("2", "left", "_"),
        ("2.1", "_", "Entity=(e4-person-1-"),
        ("3-4", "zur", "_"),
        ("3", "zu", "Entity=e4)"),
        ("4", "der", "Entity=(e1[2/2]-person-1-)"),
    )
    with tallying() as tally:
        assert read(tmp_path, text) == [("a", ("He", "left", "zu", "der"), (Mention(2, 2, "person", "e4"),))]
    left = tally.counts["Data"].left
    assert left == {("part", "of a discontinuous mention"): 2, ("mention", "of an empty node alone"): 1}


def test_a_folder_with_the_same_in_columns(tmp_path: Path) -> None:
    (tmp_path / "a.conllu").write_text(HEADER + conllu(("1", "Anna", "Entity=(e1-person-1-)")))
    assert [document.path.name for document in read_marked(tmp_path)] == ["a.conllu"]
    (tmp_path / "a.conll").write_text("Anna\t(e1)\n")
    assert [document.path.name for document in read_marked(tmp_path)] == ["a.conll"]
    (tmp_path / "b.jsonl").write_text('{"text": "Anna", "entities": []}\n')
    assert [document.path.name for document in read_nested(tmp_path)] == ["a.conll"]
    assert len(read_nested([tmp_path / "a.conllu", tmp_path / "b.jsonl"])) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (conllu(("1", "a", "Entity=(e1-person-1-)")), "line 1: no line '# global.Entity = eid-etype-...' above says"),
        (HEADER + conllu(("1", "a", "Entity=(e1")), "line 2: a mention of 'e1' is never closed"),
        (HEADER + conllu(("1", "a", "Entity=e1)")), r"line 2: 'e1\)' closes a mention that is not open"),
        (HEADER + conllu(("1", "a", "Entity=e1")), "line 2: 'e1' is not made of brackets"),
        ("# global.Entity = etype\n" + conllu(("1", "a", "Entity=(x)")), "line 2: the entity of 'x' is wanted"),
        ("# newdoc id = a\n\n# newdoc id = b\n" + conllu(("1", "a", "_")), "line 1: a document without words"),
    ],
)
def test_what_does_not_parse(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(DataFault, match=f"a.conllu, {reason}"):
        read(tmp_path, text)
