"""Plain text in sentences and words, and where they stand in the file."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from spanbert_kernels.data.faults import DataFault, NotText
from spanbert_kernels.data.plain import paragraphs_of
from spanbert_kernels.data.splitting import sentences_in, words_in
from spanbert_kernels.data.stream import blocks_of
from spanbert_kernels.data.text import STANDARD_INPUT, standard_input
from spanbert_kernels.data.words import read_documents, read_sentences


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I can't, she'd've gone\u2019s", "I ca n't , she 'd 've gone \u2019s"),
        ("WON'T it's Jones' o'clock", "WO N'T it 's Jones ' o ' clock"),
        ("well-known (e.g. Dr. A. Li)...", "well - known ( e.g. Dr. A. Li ) ..."),
        ("$3.50 at 12:30 on 2026-11-29, 50%!!", "$ 3.50 at 12:30 on 2026-11-29 , 50 % !!"),
        ("see https://a.org/b?c=d, me@a-b.org @zoe #tag", "see https://a.org/b?c=d , me@a-b.org @zoe #tag"),
        ("l'ami qu\u2019il dell'arte", "l' ami qu\u2019 il dell' arte"),
        ("\u6771\u4eac\u3067A4\u3002", "\u6771 \u4eac \u3067 A4 \u3002"),
        (
            "\u0939\u093f\u0928\u094d\u0926\u0940 cafe\u0301 10\u00a0km",
            "\u0939\u093f\u0928\u094d\u0926\u0940 cafe\u0301 10 km",
        ),
        ("\x07 \ufffd \U0001f600\U0001f600", "\x07 \ufffd \U0001f600\U0001f600"),
    ],
)
def test_words(text: str, words: str) -> None:
    places = words_in(text)
    assert [text[start:end] for start, end in places] == words.split(" ")
    between = [text[end:start] for (_, end), (start, _) in zip([(0, 0), *places], places, strict=False)]
    assert not "".join(between).strip()


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("It rained. We left! Did you? \u201cYes.\u201d They did.", 5),
        ("Dr. Li met J. Smith at 3.30 p.m. on Jan. 3.", 1),
        ("We saw it (etc.) and more... and left.", 1),
        ("\u4ed6\u4f86\u4e86\u3002\u6211\u5011\u8d70\u4e86\uff01", 2),
        ("No end", 1),
        ("", 0),
    ],
)
def test_sentences(text: str, count: int) -> None:
    found = list(sentences_in(text))
    assert len(found) == count
    assert [place for own in found for place in own] == words_in(text)


def test_lines_that_were_broken_are_put_together() -> None:
    words = ("harbour " * 40).split()
    width, lines = 60, [""]
    for word in words:
        if len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    wrapped = "\n".join(lines)
    assert [text for *_, text in paragraphs_of(f"{wrapped}\n\nThe end.\n")] == [wrapped, "The end."]
    assert len(paragraphs_of("\n".join(f"Line {i} is what one person said." for i in range(9)))) == 9


def test_characters_are_those_of_the_file(tmp_path: Path) -> None:
    text = "  Anna left. Boris stayed.\r\n\r\nThen\tClara came.\r\n"
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    sentences = read_sentences(path)
    assert [(s.line, " ".join(s.words)) for s in sentences] == [
        (1, "Anna left ."),
        (1, "Boris stayed ."),
        (3, "Then Clara came ."),
    ]
    for each in sentences:
        assert each.located is not None
        assert each.located.start is not None
        shifted = [(start + each.located.start, end + each.located.start) for start, end in each.located.places]
        assert tuple(text[start:end] for start, end in shifted) == each.words
    (document,) = read_documents(path)
    assert document.located is not None
    assert tuple(text[start:end] for start, end in document.located.places) == document.words
    assert document.lines == (1,) * 6 + (3,) * 4


class Trickle(io.BytesIO):
    """Gives a few bytes at a time, as a pipe may."""

    def read1(self, size: int | None = -1) -> bytes:
        return self.read(7)


@pytest.mark.parametrize("stream", [io.BytesIO, Trickle])
def test_standard_input_comes_in_whole_lines(stream: type[io.BytesIO]) -> None:
    text = "It rains.\r\nZo\u00eb left.\n\nNo end"
    blocks = list(blocks_of(stream(text.encode()), by_line=True))
    assert "".join(block for block, _ in blocks) == text
    assert blocks[-1] == ("No end", 4)
    assert len(blocks) > 2 or stream is io.BytesIO
    for whole in ("Anna\tB-x\nleft\tO\n", '[{"text":\n "a"}]\n', '{\n"text": "a"}\n'):
        assert [block for block, _ in blocks_of(stream(whole.encode()), by_line=True)] == [whole]
    assert len(list(blocks_of(stream(b'{"text": "a"}\n{"text": "b"}'), by_line=True))) == 2
    assert [block for block, _ in blocks_of(stream(text.encode()), by_line=False)] == [text]


def test_standard_input_names_its_lines() -> None:
    with pytest.raises(NotText, match=r"-, line 3: not UTF-8"):
        list(blocks_of(Trickle(b"It rains.\nIt snows.\nZo\xeb\n"), by_line=True))
    wrong = pytest.raises(DataFault, match=r"-, line 6: a JSON object is wanted")
    with standard_input('{"text": "a"}\n3\n', first=5), wrong:
        read_sentences(STANDARD_INPUT)
    with standard_input("It rains.", first=8):
        assert read_sentences(STANDARD_INPUT)[0].line == 8
