"""Input files as raw records: streamed, compressed or not, a shard at a time, each known by its hash."""

from __future__ import annotations

import contextlib
import hashlib
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.sources import Source, files_of
from spanbert_kernels.data.tables import stream_table
from spanbert_kernels.scale.streams import COMPRESSED, Lines, as_text, compression_of, in_utf8, opened

TEXT, JSON, LOST = "text", "json", "lost"  # of a unit: its data is a document, a JSON object, or why there is none
PARQUET, COMMAS, TABS = "parquet", "commas", "tabs"  # of a file, whose rows are JSON objects
SUFFIXES = {
    **dict.fromkeys((".txt", ".text"), TEXT),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), JSON),
    ".parquet": PARQUET,
    ".csv": COMMAS,
    ".tsv": TABS,
}
LONGEST = 1 << 26  # bytes of a record: what is longer is no document
GROUP = 1 << 26  # bytes of small files that are read one after the other
SHARD_BYTES = 1 << 24  # of raw records, where fewer than a shard's documents have them
_BLANKS = b" \t\r\n"
_UNREADABLE = (EOFError, zlib.error, lzma.LZMAError, OSError, UnicodeDecodeError, DataFault)
_UTF8 = b"\xef\xbb\xbf"


class Unit(NamedTuple):
    """A record as it stands in a file."""

    file: str
    line: int
    data: bytes
    kind: str = TEXT


@dataclass(frozen=True)
class InputFile:
    """A file of the input.

    Attributes:
        path: as it was named.
        size: in bytes.
        directory: that its name is read from, whoever reads it.
    """

    path: Path
    size: int
    directory: Path = Path()

    @property
    def place(self) -> Path:
        """Where it is."""
        return self.directory / self.path

    @property
    def kind(self) -> str:
        """What its name says that it holds."""
        name = self.path.name.lower()
        bare = name.removesuffix(compression) if (compression := compression_of(self.path)) else name
        return SUFFIXES.get(Path(bare).suffix, TEXT)


@dataclass(frozen=True)
class Shard:
    """Raw records that become one file of vectors.

    Attributes:
        name: of that file, without its suffix.
        units: the records.
        digest: of what they are and where they stand: another digest is another input.
        size: bytes read for them.
        clusters: the name of each run of documents of one cluster.
    """

    name: str
    units: tuple[Unit, ...]
    digest: str
    size: int
    clusters: tuple[str, ...] = ()


def input_files(source: Source) -> list[InputFile]:
    """The files that are named, and those in the folders that are.

    Raises:
        ValueError: a folder has no file of a kind that is read.
        OSError: there is no such file.
    """
    suffixes = [suffix + end for suffix in SUFFIXES for end in ("", *COMPRESSED)]
    return [InputFile(path, path.stat().st_size, Path.cwd()) for path in files_of(source, suffixes)]


def groups_of(files: Sequence[InputFile]) -> list[tuple[InputFile, ...]]:
    """Large files alone, small ones together in their order: what one reader reads from its beginning to its end.

    Example:
        >>> sizes = (10, 20, 1 << 30, 5)
        >>> groups = groups_of([InputFile(Path(f"{size}.txt"), size) for size in sizes])
        >>> [[file.size for file in group] for group in groups]
        [[10, 20], [1073741824], [5]]
    """
    groups: list[list[InputFile]] = []
    for file in files:
        if groups and sum(each.size for each in groups[-1]) + file.size <= GROUP:
            groups[-1].append(file)
        else:
            groups.append([file])
    return [tuple(group) for group in groups]


def shards_of(
    number: int, group: Iterable[InputFile], documents: int, whole_files: bool, cluster: str | None
) -> Iterator[Shard]:
    """The shards of a group, in order: the same ones whenever the same files are read.

    Args:
        number: of the group.
        group: its files.
        documents: records in a shard, fewer where they are long.
        whole_files: whether a file of plain text is one document; else a line is.
        cluster: the field that names a record's cluster, which no shard ends within.
    """
    units: list[Unit] = []
    clusters: list[str] = []
    size, made, read, before = 0, 0, 0, None
    meter = Meter()

    def shard() -> Shard:
        digest = hashlib.sha256()
        for unit in units:
            digest.update(f"{unit.file}\0{unit.line}\0{unit.kind}\0{len(unit.data)}\0".encode())
            digest.update(unit.data)
        name = f"part-{number:05d}-{made:05d}"
        return Shard(name, tuple(units), digest.hexdigest(), meter.read - read, tuple(clusters))

    for unit in (unit for file in group for unit in units_of(file, whole_files, meter)):
        own = None if cluster is None else _cluster(unit, cluster)
        full = len(units) >= documents or size + len(unit.data) > SHARD_BYTES
        if units and full and (own is None or own != before):
            yield shard()
            units, clusters, size, made, read = [], [], 0, made + 1, meter.read
        if own is not None and clusters[-1:] != [own]:
            clusters.append(own)
        before = own
        units.append(unit)
        size += len(unit.data)
    if units:
        yield shard()


def _cluster(unit: Unit, name: str) -> str | None:
    try:
        return cluster_name(json.loads(unit.data)[name])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def cluster_name(value: Any) -> str | None:
    """What a cluster is called that a field names; None where it names none.

    Example:
        >>> cluster_name(7), cluster_name("7"), cluster_name([7])
        ('7', '7', None)
    """
    return str(value) if isinstance(value, (str, int)) else None


class Meter:
    """How many bytes of some files have been read, before they were decompressed."""

    def __init__(self) -> None:
        self.before = 0
        self.here: Callable[[], int] = int

    @property
    def read(self) -> int:
        """Of all of them."""
        return self.before + self.here()

    @contextlib.contextmanager
    def reading(self, file: InputFile, here: Callable[[], int]) -> Iterator[None]:
        """While it lasts, `here` says how far in the file it is; then all of it is read."""
        self.here = here
        try:
            yield
        finally:
            self.before, self.here = self.before + file.size, int


def units_of(file: InputFile, whole_files: bool, meter: Meter) -> Iterator[Unit]:
    """The records of a file; what cannot be read of it is a unit that says why, and its end.

    Raises:
        OSError: the file cannot be opened.
    """
    name, kind, line = str(file.path), file.kind, 0
    if kind == PARQUET:
        yield from _rows(file, meter)
        return
    with file.place.open("rb") as raw, opened(raw, file.path) as stream, meter.reading(file, raw.tell):
        try:
            if kind in (COMMAS, TABS):
                text = as_text(stream)  # kept, since what it reads from is closed with it
                for line, fields in stream_table(iter(text), file.path, kind == TABS):
                    lost = isinstance(fields, str)
                    data = (
                        fields.encode() if isinstance(fields, str) else json.dumps(fields, ensure_ascii=False).encode()
                    )
                    yield Unit(name, line, data, LOST if lost else JSON)
                return
            lines = in_utf8(stream)
            for line, data in _lines(lines, kind == TEXT and whole_files):
                if len(data) > LONGEST:
                    yield Unit(name, line, f"longer than {LONGEST:,} bytes".encode(), LOST)
                elif data.strip(_BLANKS):
                    yield Unit(name, line, data.rstrip(b"\r\n"), kind)
        except _UNREADABLE as error:
            line, said = (error.line - 1, error.reason) if isinstance(error, DataFault) else (line, str(error))
            reason = f"the rest of the file cannot be read: {said or type(error).__name__}"
            yield Unit(name, line + 1, reason.encode(), LOST)


def _lines(stream: Lines, whole: bool) -> Iterator[tuple[int, bytes]]:
    """Lines and their numbers, or all as one; of a line that is too long a part that says so."""
    number = 0
    while data := stream.read(LONGEST + 1) if whole else stream.readline(LONGEST + 1):
        number += 1
        if number == 1:
            data = data.removeprefix(_UTF8)
        yield number, data
        while len(data) > LONGEST and not data.endswith(b"\n"):
            data = stream.read(LONGEST + 1) if whole else stream.readline(LONGEST + 1)


def _rows(file: InputFile, meter: Meter) -> Iterator[Unit]:
    """The rows of a Parquet file as JSON objects, whose line is the row, from 1 on."""
    import pyarrow
    from pyarrow import parquet

    name, number = str(file.path), 0
    try:
        table = parquet.ParquetFile(file.place)
        simple = [field.name for field in table.schema_arrow if _is_simple(field.type)]
        rows = max(table.metadata.num_rows, 1)
        with meter.reading(file, lambda: file.size * number // rows):
            for batch in table.iter_batches(batch_size=256, columns=simple):
                for row in batch.to_pylist():
                    number += 1
                    yield Unit(name, number, json.dumps(row, ensure_ascii=False).encode("utf-8", "replace"), JSON)
    except (pyarrow.ArrowException, OSError) as error:
        reason = f"the rest of the file cannot be read: {str(error).splitlines()[0]}"
        yield Unit(name, number + 1, reason.encode(), LOST)


def _is_simple(kind: Any) -> bool:
    """Whether a column may say something of a document: text, an integer, or spans."""
    from pyarrow import types

    text = types.is_string(kind) or types.is_large_string(kind)
    listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return text or types.is_integer(kind) or (listed and not types.is_floating(kind.value_type))
