"""CoNLL-U: what the parser takes, and what is checked beside it. Trees are tested with the task that learns them."""

from __future__ import annotations

from pathlib import Path

import pytest

from spanbert_kernels.data.conllu import parse_sentences, read_trees
from spanbert_kernels.data.faults import DataFault

EMPTY = "\t_" * 8


def test_tokens_comments_and_names() -> None:
    text = f"# newdoc id = d\n# text = He left.\n# x\n1\tHe{EMPTY}\n2\tleft{EMPTY}\n\n\n# newdoc\n\n"
    text += f"1-2\tzur{EMPTY}\n1\tzu{EMPTY}\n2\tder{EMPTY}\n"
    first, second, third = parse_sentences(text, Path("a"))
    assert (first.new_document, first.text(), first.line) == ("d", "He left.", 1)
    assert (second.new_document, second.tokens, second.text()) == ("", (), "")
    assert (third.new_document, third.text(), [token.form for token in third.words]) == (None, "zur", ["zu", "der"])
    assert [token.line for token in third.tokens] == [10, 11, 12]


def test_two_spaces_do_not_begin_a_column() -> None:
    (sentence,) = parse_sentences("1\tNew  York\t_\t_\t_\t_\t0\troot\t_\tGloss=a  b\n", Path("a"))
    assert (sentence.tokens[0].head, sentence.tokens[0].relation, sentence.tokens[0].misc) == ("0", "root", "Gloss=a b")


def test_an_empty_last_cell() -> None:
    (sentence,) = parse_sentences("1\ta\t_\t_\t_\t_\t_\t_\t_\t\n", Path("a"))
    assert sentence.tokens[0].misc == "_"


def test_lines_of_words_between_other_tokens(tmp_path: Path) -> None:
    path = tmp_path / "a.conllu"
    path.write_text(f"# x\n1\ta\t_\t_\t_\t_\t0\troot\t_\t_\n1.1\tb{EMPTY}\n2\tc\t_\t_\t_\t_\t1\tdep\t_\t_\n")
    (tree,) = read_trees(path)
    assert [tree.line_of(word) for word in (0, 1)] == [2, 4]


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        (f"1\ta{EMPTY}\n3\tb{EMPTY}\n", 2, "word 2 is wanted, got '3'"),
        (f"1\ta{EMPTY}\nx\tb{EMPTY}\n", 2, "'x' is not a valid ID"),
        (f"1\ta{EMPTY}\n3-2\tb{EMPTY}\n", 2, "'3-2' is not a valid ID"),
        (f"1\ta{EMPTY}\n_\tb{EMPTY}\n", 2, "an ID and a form are wanted"),
        (f"1\ta{EMPTY}\n2\t{EMPTY}\n", 2, "an ID and a form are wanted"),
        (f"{'9' * 5000}\ta{EMPTY}\n", 1, ""),
        ("1\ta\n", 1, "10 columns are wanted, got 2"),
        ("1 a _ _ _ _ 0 root _ _\n", 1, "10 columns are wanted, got 1"),
    ],
)
def test_what_does_not_parse(text: str, line: int, reason: str) -> None:
    with pytest.raises(DataFault, match=f"a, line {line}: .*{reason}"):
        list(parse_sentences(text, Path("a")))


def test_a_head_that_is_no_number(tmp_path: Path) -> None:
    path = tmp_path / "a.conllu"
    for head in ("_", "01", "²", "9" * 5000, "-1", "1"):
        path.write_text(f"1\ta\t_\t_\t_\t_\t{head}\troot\t_\t_\n")
        with pytest.raises(DataFault, match=f"line 1: head '{head}' is not another word"):
            read_trees(path)
