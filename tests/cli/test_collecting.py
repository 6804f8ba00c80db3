"""From paths to documents: what is read, skipped, passed over, and met twice."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from spanbert_kernels.cli.collecting import collect, default_documents

Write = Callable[..., Path]
Texts = Callable[..., list[tuple[str, str]]]


def reasons(*paths: Path) -> dict[str, str]:
    """File name -> why it was skipped, from paths that give no document."""
    collection = collect(paths)
    assert collection.documents == []
    return {path.name: reason for path, reason in collection.skipped}


def test_the_default_documents_are_read_without_a_warning() -> None:
    collection = default_documents()
    assert len(collection.documents) == 14
    assert (collection.skipped, collection.faults, collection.passed_over) == ([], [], [])
    assert collection.duplicates == 0


def test_byte_order_mark_and_windows_line_ends(write: Write, texts: Texts) -> None:
    plain = write("a.txt", b"\xef\xbb\xbfOne.\r\nTwo.")
    lines = write("b.jsonl", b'\xef\xbb\xbf{"text": "Three."}\r\n{"text": "Four."}\r\n')
    columns = write("c.conll", b"\xef\xbb\xbf#begin document (d)\r\n1\tSix\t_\r\n2\tseven\t_\r\n\r\n#end document\r\n")
    conllu = write("e.conllu", ("# newdoc id = e\r\n1\tEight" + "\t_" * 8 + "\r\n\r\n").encode())
    assert [text.split() for _, text in texts(plain)] == [["One.", "Two."]]
    assert [text for _, text in texts(lines)] == ["Three.", "Four."]
    assert texts(columns) == [("d", "Six seven")]
    assert texts(conllu) == [("e", "Eight")]
    table = write("f.csv", "ID;TEXT\r\n1;Nine.\r\n2;Ten.\r\n".encode("utf-16"))
    assert texts(table) == [("1", "Nine."), ("2", "Ten.")]
    assert texts(write("g.tsv", "1\tEleven\tB-X\tO\n2\tmen\tO\tO\n")) == [("g", "Eleven men")]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b" \n\r\n\t", "is empty"),
        (b"\x7fELF\x00\x00\x01", "is binary (character 4 is NUL)"),
        ("caf\xe9 au lait".encode("latin-1"), "is not UTF-8 text (byte 3 is 0xe9)"),
        ("text".encode("utf-16-le"), "is binary (character 1 is NUL)"),
        ("text".encode("utf-16")[:-1], "is not UTF-16 text (byte 8 is 0x74)"),
    ],
)
@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.conllu", "x.conll", "x"])
def test_files_that_cannot_be_read_are_skipped_with_the_reason(
    write: Write, name: str, content: bytes, reason: str
) -> None:
    path = write(name, content)
    assert reasons(path) == {name: reason}


def test_the_rest_of_a_folder_is_read(write: Write, tmp_path: Path) -> None:
    write("a.txt", "One.")
    write("b.txt", b"\0")
    write("c.txt", "")
    write("deep/er/d.txt", "Two.")
    collection = collect([tmp_path])
    assert [document.text for document in collection.documents] == ["One.", "Two."]
    assert [path.name for path, _ in collection.skipped] == ["b.txt", "c.txt"]


def test_permission_denied(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read everything, so the refusal is staged."""
    path = write("secret.txt", "One.")
    read_bytes = Path.read_bytes

    def refuse(self: Path) -> bytes:
        if self == path:
            raise PermissionError(13, "Permission denied")
        return read_bytes(self)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert reasons(path) == {"secret.txt": "cannot be read (Permission denied)"}


def test_a_folder_that_cannot_be_listed_is_skipped(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("open/a.txt", "One.")
    locked = write("locked/b.txt", "Two.").parent
    scandir = os.scandir

    def refuse(path: str) -> object:
        if Path(path) == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    collection = collect([tmp_path])
    assert [document.text for document in collection.documents] == ["One."]
    assert collection.skipped == [(locked, "cannot be read (Permission denied)")]


def test_paths_that_lead_nowhere(write: Write, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    file = write("file.txt", "One.")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert reasons(tmp_path / "missing") == {"missing": "does not exist"}
    assert reasons(file / "below") == {"below": "does not exist"}
    assert reasons(tmp_path / "empty") == {"empty": "the folder holds no files"}
    assert "cannot be read" in reasons(loop)["loop"]
    assert "cannot be read" in next(iter(reasons(tmp_path / ("n" * 300)).values()))
    assert reasons(Path("/dev/zero")) == {"zero": "is a device, not a file"}


def test_notes_and_other_kinds_of_files_are_passed_over_in_folders_alone(write: Write, tmp_path: Path) -> None:
    names = ["LICENSE.txt", "README.md", "ATTRIBUTION.md", "requirements.txt", "bert-vocab.txt", "CHANGES.rst"]
    names += ["script.py", "table.csv", "page.html", "records.json", "image.png"]
    for name in names:
        write(name, '{"numbers": [1]}' if name == "records.json" else f"Text of {name}.")
    write("licensing_dispute.txt", "A document.")
    write(".hidden.txt", "Not seen.")
    write(".git/config.txt", "Not seen.")
    collection = collect([tmp_path])
    assert [document.name for document in collection.documents] == ["licensing_dispute"]
    assert sorted(path.name for path, _ in collection.passed_over) == sorted(names)
    assert collection.skipped == []
    named = collect([tmp_path / "README.md", tmp_path / "page.html"])
    assert [document.name for document in named.documents] == ["README", "page"]


def test_markdown_beside_corpora_is_a_note(write: Write, tmp_path: Path, texts: Texts) -> None:
    write("splits.md", "Which is which.")
    assert texts(tmp_path) == [("splits", "Which is which.")]
    write("a.conll", "EU\tORG\nrejects\tO\n")
    assert texts(tmp_path) == [("a", "EU rejects")]


def test_order_and_names(write: Write, tmp_path: Path, texts: Texts) -> None:
    for name in ("b/2.txt", "b/1.txt", "a/3.txt", "0.txt"):
        write(name, name)
    assert texts(tmp_path) == [("0", "0.txt"), ("3", "a/3.txt"), ("1", "b/1.txt"), ("2", "b/2.txt")]
    assert [text for _, text in texts(tmp_path / "b", tmp_path / "0.txt")] == ["b/1.txt", "b/2.txt", "0.txt"]


def test_a_text_met_twice_counts_once_whatever_its_format(write: Write, tmp_path: Path) -> None:
    write("a.txt", "A ship sails.")
    write("b.conll", "#begin document (x)\n1\tA\t_\n2\tship\t_\n3\tsails\t_\n4\t.\t_\n")
    write("c.txt", "Another text.")
    collection = collect([tmp_path, tmp_path / "c.txt"])
    assert [document.name for document in collection.documents] == ["a", "c"]
    assert collection.duplicates == 2


def test_a_bad_line_is_a_fault_and_its_file_is_used(write: Write) -> None:
    path = write("a.jsonl", '{"text": "One."}\n{"text"\n')
    collection = collect([path])
    assert [document.text for document in collection.documents] == ["One."]
    [(where, fault)] = collection.faults
    assert where == path
    assert fault.startswith("line 2 is not JSON")
    assert collection.skipped == []


def test_json_lines_without_a_good_line_are_skipped_with_the_first_bad_one(write: Write) -> None:
    reason = reasons(write("a.jsonl", "not json\n"))["a.jsonl"]
    assert reason.startswith("line 1 is not JSON")
    assert reason.endswith("no record with a field text, document, article, source")


def test_half_a_surrogate_pair_is_replaced(write: Write, texts: Texts) -> None:
    path = write("a.json", '{"id": "\\ud800", "text": "One \\udc00 two."}')
    assert texts(path) == [("?", "One ? two.")]


def test_unknown_suffix(write: Write, tmp_path: Path) -> None:
    """Named by the user any text is read; met in a folder only what is told by its content."""
    write("notes.xyz", "Some text.")
    write("data.xyz", '{"text": "A record."}')
    assert [document.text for document in collect([tmp_path]).documents] == ["A record."]
    assert [document.text for document in collect([tmp_path / "notes.xyz"]).documents] == ["Some text."]
