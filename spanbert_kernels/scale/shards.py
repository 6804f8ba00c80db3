"""Files of vectors: Parquet, there whole or not at all, each of which says what it was made of."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spanbert_kernels.scale.tokenizing import END, START, Reject, TokenizedDocument
from spanbert_kernels.tasks import atomic

if TYPE_CHECKING:
    from numpy.typing import NDArray

SUFFIX = ".parquet"
KEY = b"spanbert_kernels"  # of a file's own metadata: what it was made of
VECTOR = "vector.list.element"  # Parquet's own path of the numbers, which no compression makes smaller
ROW_GROUP = 1 << 23  # bytes of vectors that are kept before they are written


@dataclass(frozen=True)
class ShardRecord:
    """What a file of vectors says of itself.

    Attributes:
        name: of the file, without its suffix.
        job: of the model and of what is wanted.
        source: of the raw records.
        size: bytes that were read for it.
        documents: in it.
        rows: vectors in it.
        tokens: that were encoded for it, special ones not counted.
        rejects: records that gave none.
    """

    name: str
    job: str
    source: str
    size: int
    documents: int
    rows: int
    tokens: int
    rejects: tuple[Reject, ...] = ()

    def to_json(self) -> bytes:
        """As bytes for a file's metadata."""
        return json.dumps({**asdict(self), "rejects": [list(reject) for reject in self.rejects]}).encode()

    @classmethod
    def from_json(cls, data: bytes) -> ShardRecord:
        """Of what `to_json` gave."""
        values = json.loads(data)
        return cls(**{**values, "rejects": tuple(Reject(*reject) for reject in values["rejects"])})


def read_record(path: Path) -> ShardRecord | None:
    """What a file of vectors says of itself; None where it is not there, not whole, or of somebody else."""
    import pyarrow
    from pyarrow import parquet

    try:
        metadata = parquet.read_metadata(path).metadata or {}
        return ShardRecord.from_json(metadata[KEY])
    except (FileNotFoundError, KeyError, ValueError, TypeError, pyarrow.ArrowException):
        return None


class ShardFile:
    """A file of vectors that is being written, beside its place until it is whole.

    Args:
        folder: where it will stand.
        name: its name, without the suffix.
        columns: numbers in a vector.
        half: whether they are of 16 bits.
        spans: whether rows are spans, with their characters and texts.
    """

    def __init__(self, folder: Path, name: str, columns: int, half: bool, spans: bool) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self.schema, self.columns, self.spans = schema_of(columns, half, spans), columns, spans
        self._open = contextlib.ExitStack()
        aside = self._open.enter_context(atomic.new_file(folder / f"{name}{SUFFIX}"))
        compression = {
            VECTOR if name == "vector" else name: "none" if name == "vector" else "zstd" for name in self.schema.names
        }
        texts = [field.name for field in self.schema if pa.types.is_string(field.type)]
        self._writer = self._open.enter_context(
            parquet.ParquetWriter(
                aside, self.schema, compression=compression, use_dictionary=texts, write_statistics=texts
            )
        )
        self._waiting: list[tuple[TokenizedDocument, NDArray[Any]]] = []
        self._bytes = 0
        self.documents = self.rows = self.tokens = 0

    def add(self, document: TokenizedDocument, vectors: NDArray[Any]) -> None:
        """The next document and its vectors `[rows, columns]`."""
        self._waiting.append((document, vectors))
        self._bytes += vectors.nbytes
        self.documents += 1
        self.rows += len(vectors)
        self.tokens += len(document.pieces)
        if self._bytes >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if not self._waiting:
            return
        documents, vectors = [document for document, _ in self._waiting], [each for _, each in self._waiting]
        counts = [len(each) for each in vectors]
        of_row = np.repeat(np.arange(len(documents)), counts)
        values = {
            "id": pa.array([document.record.name for document in documents], pa.string()).take(of_row),
            "file": pa.array([document.file for document in documents], pa.string()).take(of_row),
            "line": np.repeat([document.line for document in documents], counts),
            "tokens": np.repeat([len(document.pieces) for document in documents], counts),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(vectors).reshape(-1)), self.columns),
        }
        if self.spans:
            spans = [document.spans for document in documents if document.spans is not None]
            places = np.concatenate(spans)[:, [START, END]]
            texts = (document.record.text for document in documents for _ in range(document.rows))
            values["start"], values["end"] = places[:, 0], places[:, 1]
            values["text"] = [text[start:end] for text, (start, end) in zip(texts, places.tolist(), strict=True)]
        arrays = [
            each if isinstance(each := values[field.name], pa.Array) else pa.array(each, field.type)
            for field in self.schema
        ]
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self.schema))
        self._waiting, self._bytes = [], 0

    def commit(self, job: str, name: str, source: str, size: int, rejects: tuple[Reject, ...]) -> ShardRecord:
        """Puts the whole file in its place, with what it was made of."""
        record = ShardRecord(name, job, source, size, self.documents, self.rows, self.tokens, rejects)
        self._flush()
        self._writer.add_key_value_metadata({KEY: record.to_json()})
        self._open.close()
        return record

    def abandon(self) -> None:
        """Leaves nothing of it."""
        error = RuntimeError("abandoned")
        with contextlib.suppress(RuntimeError):
            self._open.__exit__(type(error), error, None)


def schema_of(columns: int, half: bool, spans: bool) -> Any:
    """The columns of a file of vectors."""
    import pyarrow as pa

    fields = [("id", pa.string()), ("file", pa.string()), ("line", pa.int64()), ("tokens", pa.int32())]
    if spans:
        fields += [("start", pa.int32()), ("end", pa.int32()), ("text", pa.string())]
    number = pa.float16() if half else pa.float32()
    return pa.schema([*fields, ("vector", pa.list_(number, columns))])
