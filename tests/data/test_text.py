"""Bytes as text: what is decoded, what is refused and where, and that nothing else decodes or splits."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from spanbert_kernels.data.faults import NotAFile, NotText
from spanbert_kernels.data.text import cells_of, decode, encodable, lines_of, read_text, words_of

PACKAGE = Path(__file__).resolve().parents[2] / "spanbert_kernels"
# White space to Unicode and to str.split or str.splitlines, and text to every format here
ODD = ("\u00a0", "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e", "\u3000", "\u2003")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(encoding: str) -> None:
    assert decode("Zoë\n𝄞".encode(encoding), Path("a")) == "Zoë\n𝄞"


@pytest.mark.parametrize("order", ["le", "be"])
def test_utf_16_in_both_orders(order: str) -> None:
    assert decode("\ufeffZoë\r\nß".encode(f"utf-16-{order}"), Path("a")) == "Zoë\r\nß"


@pytest.mark.parametrize(
    ("data", "line", "reason"),
    [
        ("JØrgen".encode("latin-1"), 1, "not UTF-8 text (byte 1 is 0xd8)"),
        ("a\nb\r\nc\rJØ".encode("latin-1"), 4, "not UTF-8 text (byte 8 is 0xd8)"),
        ("a\u2028\x85b\nØ".encode() + b"\xff", 2, "not UTF-8 text (byte 10 is 0xff)"),
        (b"\xef\xbb\xbfa\n\xe9", 2, "not UTF-8 text (byte 5 is 0xe9)"),
        ("“a”".encode("cp1252"), 1, "not UTF-8 text (byte 0 is 0x93)"),
        ("日本".encode("shift-jis"), 1, "not UTF-8 text (byte 0 is 0x93)"),
        (b"a\xed\xa0\xbd", 1, "not UTF-8 text (byte 1 is 0xed)"),  # half a surrogate pair
        ("Zoe".encode("utf-16-le"), 1, "binary (character 1 is NUL)"),
        ("a\nbc".encode("utf-32"), 1, "binary (character 0 is NUL)"),
        (b"a\nb\0", 2, "binary (character 3 is NUL)"),
        ("a\nb".encode("utf-16") + b"c", 2, "not UTF-16 text (byte 8 is 0x63)"),
    ],
)
def test_what_is_refused(data: bytes, line: int, reason: str) -> None:
    with pytest.raises(NotText) as raised:
        decode(data, Path("file"))
    assert str(raised.value) == f"file, line {line}: {reason}"


@pytest.mark.parametrize(
    ("begin", "said"),
    [
        (b"PK\x03\x04\x14\x00", "is a ZIP archive, as files of Word, Excel and LibreOffice are: save its text"),
        (b"%PDF-1.7\n", "is a PDF: save its text as plain text"),
        (b"{\\rtf1\\ansi Yes.}", "is rich text"),
        (b"\x1f\x8b\x08\x00", "is compressed: unpack it"),
    ],
)
def test_text_in_another_form(begin: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(begin)
    with pytest.raises(NotAFile, match=rf"a\.txt {said}"):
        read_text(tmp_path / "a.txt")


@pytest.mark.parametrize("odd", ODD)
def test_only_what_the_format_says_separates(odd: str) -> None:
    assert lines_of(f"a{odd}b\rc\r\nd\ne") == [f"a{odd}b", "c", "d", "e"]
    assert words_of(f" a{odd}b  c\td ") == [f"a{odd}b", "c", "d"]
    assert cells_of(f"{odd}a {odd}\tb") == [f"{odd}a {odd}", "b"]
    assert cells_of(f"{odd} b") == [odd, "b"]


def test_half_a_surrogate_pair() -> None:
    assert encodable("a\ud83db\udc00") == "a?b?"
    assert encodable("𝄞") == "𝄞"


def loose_reading(source: str) -> Iterator[str]:
    """Calls that split at what Unicode calls white space, replace what they cannot decode, or read for themselves."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        plain = isinstance(node.func, ast.Attribute)
        if name == "splitlines" or (plain and name in ("split", "rsplit") and not node.args and not node.keywords):
            yield f"{node.lineno}: {name}"
        if (plain and name in ("read_text", "read_bytes")) or name == "open":
            yield f"{node.lineno}: {name}"
        for keyword in node.keywords:
            if keyword.arg == "errors" and name == "decode" and ast.unparse(keyword.value) == "'replace'":
                yield f"{node.lineno}: errors='replace'"


def test_the_check_finds_loose_reading() -> None:
    for source in ("a.split()", "a.splitlines()", "path.read_text()", "path.read_bytes()", "open(path)"):
        assert list(loose_reading(source)), source
    assert list(loose_reading("b.decode('utf-8', errors='replace')"))
    assert not list(loose_reading("a.split('|'); read_text(path)"))


def test_readers_read_and_split_in_one_place() -> None:
    allowed = {"text.py": ["read_bytes"], "memory.py": ["read_text", "read_text"]}  # of memory.py: files of the system
    for path in sorted((PACKAGE / "data").glob("*.py")):
        found = [each.split(": ")[1] for each in loose_reading(path.read_text())]
        assert found == allowed.get(path.name, []), path.name
