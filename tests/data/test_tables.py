"""Tables: headers in any order and case, delimiters that are found and not guessed, quotes."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.labelled import read_labelled


def read(tmp_path: Path, text: str, name: str = "a.csv", labels: bool = True) -> list[tuple[str, str, str | None]]:
    path = tmp_path / name
    path.write_text(text, newline="")
    return [(document.text, document.label, document.cluster) for document in read_labelled(path, labels)]


@pytest.mark.parametrize(
    "text",
    [
        "text,label\nGood,pos\nBad,neg\n",
        "Id,Text,Label\n1,Good,pos\n2,Bad,neg\n",
        "LABEL;TEXT\npos;Good\nneg;Bad\n",
        '"Label"\t"Text"\r\n"pos"\t"Good"\r\n"neg"\t"Bad"\r\n',
        " label , text ,rating\npos,Good,5\nneg,Bad,1\n",
        ",text,label\n0,Good,pos\n1,Bad,neg\n",
        "cluster,label,text\n,pos,Good\n,neg,Bad\n",
        "1,pos,Good\n2,neg,Bad\n",
        "t1;pos;Good\rt2;neg;Bad\r",
        "\ufefflabel,text\npos,Good\nneg,Bad",
        "\ufeffsep=;\r\nLABEL;TEXT\r\npos;Good\r\nneg;Bad\r\n",
        "LABEL;TEXT;\r\npos;Good;\r\n;;\r\n ; ;\r\nneg;Bad;\r\n;;\r\n",
    ],
)
def test_orders_cases_and_delimiters(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text) == [("Good", "pos", None), ("Bad", "neg", None)]


def test_a_delimiter_inside_cells(tmp_path: Path) -> None:
    wanted = [("Yes; no, and so", "pos", None), ("Bad, bad", "neg", None)]
    assert read(tmp_path, '1,pos,"Yes; no, and so"\n2,neg,"Bad, bad"\n') == wanted
    assert read(tmp_path, '1;pos;"Yes; no, and so"\n2;neg;Bad, bad\n') == wanted
    assert read(tmp_path, 'text,label\n"Yes; no, and so",pos\n"Bad, bad",neg\n') == wanted


def test_quotes_in_csv_and_in_tsv(tmp_path: Path) -> None:
    assert read(tmp_path, 'label,text\nx,"a ""b""\nc"\ny,nice "d"\n') == [
        ('a "b"\nc', "x", None),
        ('nice "d"', "y", None),
    ]
    text = 'id\tlabel\ttext\n1\tpos\t"Great film\n2\tneg\tso, "so"; so\n'
    assert read(tmp_path, text, "a.tsv") == [('"Great film', "pos", None), ('so, "so"; so', "neg", None)]


def test_a_cell_of_any_length(tmp_path: Path) -> None:
    before = csv.field_size_limit()
    assert len(read(tmp_path, f"label,text\nx,{'word ' * 60_000}\n")[0][0]) == 300_000
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "id,review,sentiment\n1,Good,pos\n",
            "line 1: .* names the columns text, label is wanted, got 'id', 'review',",
        ),
        ("review,sentiment\nGood,pos\n", "line 1: .* got 'review', 'sentiment'"),
        ("Nr;Meinung;Satz\n1;pos;Good\n2;neg;Bad\n", "line 1: .* got 'Nr', 'Meinung', 'Satz'"),
        ("Zeile;Wertung;Satz\n1;pos;A good film\n2;neg;A bad film\n", "line 1: .* got 'Zeile', 'Wertung', 'Satz'"),
        ("text,sentiment\nGood,pos\n", "line 1: .* got 'text', 'sentiment'"),
        ("1,Good film,pos\n2,Bad film,neg\n", "line 1: .* got '1', 'Good film', 'pos'"),
        ("Good,pos\nBad,neg\n", "line 1: .* got 'Good', 'pos'"),
        ("1,pos,Good,x\n2,neg,Bad,y\n", "line 1: .* got '1', 'pos', 'Good', 'x'"),
        ("text|label\nGood|pos\n", r"line 1: .* got 'text\|label'"),
        ("text,label,label\nGood,pos,neg\n", "line 1: column 'label' is there twice"),
        ("text,label\nGood,pos\nBad, very,neg\n", r"line 3: 2 columns are wanted \(text, label\), got 3"),
        ('text,label\nGood,pos\n"Bad,neg\nx,y\n', "line 3: quotes do not match in a row that begins here"),
        ('text,label\n"Good" film,pos\n', "line 2: quotes do not match"),
        ("1,pos;x;a\n2,neg;y;b\n", ""),
        ("text,label\nGood,\n", "line 2: a label is wanted, got ''"),
        ("text,label\n,pos\n", "line 2: a text is wanted, got ''"),
        ("sep=|\ntext|label\n|\nGood|\n", "line 4: a label is wanted, got ''"),
    ],
)
def test_what_is_not_clear_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    if not reason:
        assert read(tmp_path, text) == [("a", "x", None), ("b", "y", None)]
        return
    with pytest.raises(DataFault, match=f"a.csv, {reason}"):
        read(tmp_path, text)


def test_two_delimiters_that_both_fit(tmp_path: Path) -> None:
    with pytest.raises(DataFault, match=r"line 1: columns are separated by one of ',' ';', which is not clear"):
        read(tmp_path, "1,a;b;c,d\n2,e;f;g,h\n")


def test_labels_are_not_needed_to_predict(tmp_path: Path) -> None:
    assert [text for text, _, _ in read(tmp_path, "text\nGood\nBad\n", labels=False)] == ["Good", "Bad"]
    assert [text for text, _, _ in read(tmp_path, "TEXT;x\nGood;1\n", labels=False)] == ["Good"]
    assert [text for text, _, _ in read(tmp_path, "1,pos,Good\n", labels=False)] == ["Good"]
    with pytest.raises(DataFault, match="line 1: a first line that names the column text is wanted, got 'Good film'"):
        read(tmp_path, "Good film\nBad film\n", labels=False)
    with pytest.raises(DataFault, match=r"plain text is wanted here, \.conll files"):
        read(tmp_path, "Good\tO\n", "a.conll", labels=False)
