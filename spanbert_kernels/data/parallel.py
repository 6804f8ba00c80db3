"""Reads texts that translate each other, and texts to translate."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from spanbert_kernels.data import kinds, records
from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.plain import read_lines
from spanbert_kernels.data.sources import Source, files_of, paths_of
from spanbert_kernels.data.text import lines_of, read_text

SOURCE, TARGET = "source.txt", "target.txt"


@dataclass(frozen=True)
class Pair:
    """A text and what is wanted of it, one text or several alternatives; and where it comes from.

    Attributes:
        sentences: of the source, a space between two, where its file has them apart.
    """

    source: str
    targets: tuple[str, ...]
    path: Path
    line: int
    sentences: tuple[str, ...] = field(default=(), compare=False)


def read_aligned(source: Source) -> list[Pair]:
    """Lines of `source.txt` and `target.txt` in a folder, or records that have both; of files, folders or several.

    Raises:
        DataFault: there are not as many lines in both, or one is empty on one side.
        OSError: a file cannot be read.
    """
    return [pair for path in paths_of(source) for pair in (_of_folder(path) if path.is_dir() else _records(path))]


def _of_folder(folder: Path) -> list[Pair]:
    if any((folder / name).is_file() for name in (SOURCE, TARGET)):
        return _aligned(folder)
    try:
        files = files_of(folder, records.SUFFIXES)
    except ValueError as error:
        raise ValueError(f"{error}, nor {SOURCE} and {TARGET}") from None
    return [pair for path in files for pair in _records(path)]


def _records(path: Path, targets: bool = True) -> list[Pair]:
    found = []
    wanted = f"records of source and target, or a folder with {SOURCE} and {TARGET},"
    with kinds.only(path, (kinds.JSON, kinds.TABLE), wanted):
        for line, fields in records.read_named(path):
            texts: list[str] = []
            for name, other in (("source", "text"), ("target", "translation"))[: 1 + targets]:
                text = fields.get(name, fields.get(other))
                if not isinstance(text, str) or not text.strip():
                    got = f"got {text!r}"[:60] + records.seen(fields, name)
                    raise DataFault(path, line, f"a text is wanted under {name} or {other}, {got}")
                texts.append(text.strip())
            found.append(Pair(texts[0], tuple(texts[1:]), path, line))
    return found


def _aligned(folder: Path) -> list[Pair]:
    source, target = folder / SOURCE, folder / TARGET
    sides = [lines_of(read_text(path).rstrip("\r\n")) for path in (source, target)]
    if len(sides[0]) != len(sides[1]):
        shorter = source if len(sides[0]) < len(sides[1]) else target
        raise DataFault(shorter, min(map(len, sides)), f"{len(sides[0])} lines of source, {len(sides[1])} of target")
    found = []
    for number, (text, wanted) in enumerate(zip(*sides, strict=True), start=1):
        for path, line in ((source, text), (target, wanted)):
            if not line.strip():
                raise DataFault(path, number, "an empty line")
        found.append(Pair(text.strip(), (wanted.strip(),), source, number))
    return found


def read_sources(source: Source) -> list[Pair]:
    """Texts to translate: records, the lines of plain files, or of `source.txt` where a folder has one.

    Args:
        source: a file, a folder, or several of them.

    Raises:
        DataFault: a file of annotated data.
        OSError: a file cannot be read.
    """
    named = [path / SOURCE if (path / SOURCE).is_file() else path for path in paths_of(source)]
    files = files_of(named, (*kinds.TEXTS, *records.SUFFIXES))
    return [pair for path in files for pair in (_records(path, False) if records.holds_records(path) else _lines(path))]


def _lines(path: Path) -> list[Pair]:
    return [Pair(text, (), path, line) for line, text in read_lines(path)]
