"""Readers: one file's text in, named documents out."""

from __future__ import annotations

import json

import pytest

from spanbert_kernels.data.columns import ColumnRow, word_column
from spanbert_kernels.data.documents import (
    NotADocument,
    Reader,
    read_columns,
    read_conllu,
    read_json,
    read_plain,
    read_rows,
    sniff,
)


def read(reader: Reader, content: str, complaints: int = 0) -> list[tuple[str, str]]:
    heard: list[str] = []
    documents = list(reader(content, "stem", heard.append))
    assert len(heard) == complaints, heard
    return documents


def conllu(*rows: tuple[str, ...]) -> str:
    """Rows of (id, form) or (id, form, misc) as CoNLL-U."""
    lines = ["\t".join((row[0], row[1], *"_" * 7, row[2] if len(row) > 2 else "_")) for row in rows]
    return "\n".join(lines) + "\n\n"


def test_plain_text_is_one_document() -> None:
    assert read(read_plain, "One.\n\nTwo.") == [("stem", "One.\n\nTwo.")]


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"text": "One."}, "One."),
        ({"source": ["One.", "Two."]}, "One. Two."),
        ({"sentences": [["One", "."], ["Two", "."]]}, "One . Two ."),
        ({"tokens": ["One", "."], "label": 1}, "One ."),
        ({"tokenized_text": ["One", "."], "ner": [[0, 0, "number"]]}, "One ."),
        ({"text": None, "abstract": "One."}, "One."),
        ({"ID": 3.5, "BODY": "One."}, "One."),
        ({"Comment": "One."}, "One."),
        ({"text": "Line one\u2028still one\x85and on"}, "Line one\u2028still one\x85and on"),
    ],
)
def test_json_takes_the_first_field_that_holds_text(record: dict[str, object], text: str) -> None:
    one = json.dumps(record, ensure_ascii=False)
    two = json.dumps({"text": "Other."})
    assert read(read_json, one) == [("stem 1", text)]
    assert read(read_json, f"{one}\n\n{two}\n") == [("stem 1", text), ("stem 2", "Other.")]
    assert read(read_json, f"[{one}, {two}]") == [("stem 1", text), ("stem 2", "Other.")]


def test_json_records_are_named_by_themselves() -> None:
    content = '{"id": 7, "text": "a"}\n{"title": "Ships", "text": "b"}\n{"id": null, "text": "c"}'
    assert read(read_json, content) == [("7", "a"), ("Ships", "b"), ("stem 3", "c")]


def test_a_bad_json_line_is_named_and_the_others_are_read() -> None:
    heard: list[str] = []
    content = '{"text": "a"}\n{"text": "b"\nnot json\n{"text": "c"}'
    assert [text for _, text in read_json(content, "stem", heard.append)] == ["a", "c"]
    assert len(heard) == 1
    assert heard[0].startswith("line 2 is not JSON: ")
    assert heard[0].endswith("and 1 more line")


def test_json_nested_too_deeply_is_a_bad_line() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    assert read(read_json, f'{{"text": "a"}}\n{deep}', complaints=1) == [("stem 1", "a")]


@pytest.mark.parametrize("content", ['{"label": 1}', "[1, 2]", '"words"', "[]", '[{"text": 3}]'])
def test_json_without_text_is_no_document(content: str) -> None:
    with pytest.raises(NotADocument, match="no record with a field text"):
        read(read_json, content)


def test_a_table_is_a_document_a_row() -> None:
    """Under a name of its own, or of its line."""
    assert read(read_rows, "ID;TEXT\n7;One.\n;Two.\n") == [("7", "One."), ("stem 3", "Two.")]
    with pytest.raises(NotADocument, match=r"is no table of texts \(line 1: .* got 'ID', 'Remark'"):
        read(read_rows, "ID;Remark\n7;One.\n")


def test_conllu_prefers_the_text_comment_and_names_documents() -> None:
    content = (
        "# newdoc id = first\n# text = Can't stop.\n"
        + conllu(("1", "Ca"), ("2", "n't"), ("3", "stop"), ("4", "."))
        + "# newdoc\n# text_en = no\n# text = Two.\n"
        + conllu(("1", "Two"), ("2", "."))
        + conllu(("1", "Three"))
    )
    assert read(read_conllu, content) == [("first", "Can't stop."), ("stem 2", "Two.\nThree")]


def test_conllu_forms_are_joined_as_they_were_written() -> None:
    """A multiword token stands for its words, an empty node is not in the text, SpaceAfter=No joins."""
    content = conllu(
        ("1-2", "vámonos", "SpaceAfter=No"),
        ("1", "vamos"),
        ("2", "nos"),
        ("3", ",", "Gloss=x|SpaceAfter=No"),
        ("3.1", "elided"),
        ("4", "dijo"),
    )
    assert read(read_conllu, content) == [("stem", "vámonos,dijo")]


def test_conllu_without_documents_is_cut_every_ten_sentences() -> None:
    content = "".join(conllu(("1", f"s{number}")) for number in range(23))
    names, texts = zip(*read(read_conllu, content), strict=True)
    assert names == ("stem 1", "stem 2", "stem 3")
    assert [text.split("\n")[0] for text in texts] == ["s0", "s10", "s20"]
    assert texts[2] == "s20\ns21\ns22"


@pytest.mark.parametrize("row", ["no tabs here", "x\tword" + "\t_" * 8, "1"])
def test_conllu_with_another_kind_of_row_is_no_document(row: str) -> None:
    with pytest.raises(NotADocument, match=r"is not CoNLL-U \(line 3: "):
        read(read_conllu, conllu(("1", "a")) + row + "\n")


def test_columns_with_document_marks() -> None:
    content = (
        "#begin document (news/one); part 000\n"
        "news/one\t0\t0\tA\tDT\nnews/one\t0\t1\tship\tNN\n\nnews/one\t0\t0\tsails\tVB\n\n#end document\n"
        "#begin document (news/one); part 001\nnews/one\t1\t0\tNow\tRB\n#end document\n"
    )
    assert read(read_columns, content) == [("news/one", "A ship\nsails"), ("news/one part 1", "Now")]


def test_columns_of_one_named_document() -> None:
    content = "# begin document GUM_x\n1\tA\t(1)\n2\tship\t_\n\n1\tIt\t(1)\n# end document\n"
    assert read(read_columns, content) == [("GUM_x", "A ship\nIt")]


def test_an_empty_document_name_gives_the_files() -> None:
    content = "# begin document\n1\tA\t_\n2\tship\t_\n# end document\n"
    assert read(read_columns, content) == [("stem", "A ship")]


def test_columns_with_docstart() -> None:
    content = (
        "-DOCSTART- -X- O O\n\nEU NNP I-NP I-ORG\nrejects VBZ I-VP O\n\n-DOCSTART- -X- O O\n\nPeter NNP I-NP I-PER\n"
    )
    assert read(read_columns, content) == [("stem 1", "EU rejects"), ("stem 2", "Peter")]


def test_a_hash_may_be_a_word_in_a_column() -> None:
    assert read(read_columns, "we\tO\n#\tO\n1\tO\n#tag\tO\n") == [("stem", "we # 1 #tag")]
    assert read(read_columns, "# a comment\nwe\tO\nsail\tO\n") == [("stem", "we sail")]


def test_columns_without_marks_are_cut_every_ten_sentences() -> None:
    documents = read(read_columns, "".join(f"word{number}\tO\nend\tO\n\n" for number in range(12)))
    assert [(name, text.count("\n") + 1) for name, text in documents] == [("stem 1", 10), ("stem 2", 2)]


@pytest.mark.parametrize(
    ("rows", "column"),
    [
        ([["a", "O"], ["b", "O"]], 0),
        ([["d", "1", "a"], ["d", "2", "b"], ["d", "3", "c"]], 2),
        ([["1", "one"], ["2", "two"]], 1),
    ],
)
def test_the_word_column_neither_counts_nor_repeats(rows: list[list[str]], column: int) -> None:
    assert word_column([ColumnRow(1, tuple(cells)) for cells in rows]) == column


def test_no_column_of_words() -> None:
    with pytest.raises(NotADocument, match="no column of words"):
        read(read_columns, "1\tx\n2\tx\n3\tx\n")
    with pytest.raises(NotADocument, match="fewer than two columns"):
        read(read_columns, "one\ntwo\n")


@pytest.mark.parametrize(
    ("content", "reader"),
    [
        ('{"text": "a"}\n', read_json),
        (' [{"text": "a"}]', read_json),
        (conllu(("1", "a"), ("2", "b")), read_conllu),
        ("# comment\n" + conllu(("1-2", "a"), ("1", "b")), read_conllu),
        ("#begin document (x)\na b\n", read_columns),
        ("-DOCSTART- O\n\nEU NNP\n", read_columns),
        ("EU\tORG\nrejects\tO\n", read_columns),
        ("The ship\tsails today\nat noon\tagain\n", read_plain),
        ("Some text.\nMore of it.\n", read_plain),
        ("\n \n", read_plain),
    ],
)
def test_sniffing(content: str, reader: Reader) -> None:
    assert sniff(content) is reader
