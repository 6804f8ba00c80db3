"""From raw records to token ids and places of spans. Processes that do this load neither PyTorch nor transformers."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spanbert_kernels.data.faults import DataFault
from spanbert_kernels.data.jsonl import parse_value, read_records, with_text
from spanbert_kernels.data.records import seen
from spanbert_kernels.data.splitting import sentences_in, words_in
from spanbert_kernels.data.text import encodable
from spanbert_kernels.scale.units import JSON, LOST, Unit, cluster_name
from spanbert_kernels.scale.wanted import Wanted

Integers = NDArray[np.int32]
NAMES = ("id", "_id", "doc_id", "document_id", "name", "title", "url")  # what records call their own name
NO_SPANS: Mapping[str, Any] = {}
FIRST, LAST, START, END = range(4)  # columns of `TokenizedDocument.spans`


class Reject(NamedTuple):
    """A record that has no vector, and why."""

    file: str
    line: int
    reason: str


class TextRecord(NamedTuple):
    """A document as it stands in the input.

    Attributes:
        name: what the record calls itself, or file and line.
        text: of the document.
        cluster: what its cluster is called; None without.
        spans: the first character and the one behind the last of each; None without.
    """

    name: str
    text: str
    cluster: str | None = None
    spans: tuple[tuple[int, int], ...] | None = None


class Placed(NamedTuple):
    """A record and where it comes from."""

    place: Any
    file: str
    line: int
    record: TextRecord


class TokenizedDocument(NamedTuple):
    """A document ready for the encoder.

    Attributes:
        place: where it stands in what was read; who made it says how.
        file: of the input.
        line: in that file, or the row.
        record: what stood there; its text is "" where no row needs it.
        pieces: int32 `[n]`, token ids without special tokens.
        spans: int32 `[S, 4]`: first piece, last piece, first character, the character behind the last; None for
            vectors of whole documents.
    """

    place: Any
    file: str
    line: int
    record: TextRecord
    pieces: Integers
    spans: Integers | None

    @property
    def rows(self) -> int:
        """Vectors that it gets."""
        return 1 if self.spans is None else len(self.spans)


@dataclass(frozen=True)
class Tokenizing:
    """How records are read and tokenised: small, and made to be sent to processes.

    Attributes:
        tokenizer: a fast tokenizer as JSON.
        wanted: what is to be made of documents.
        given: spans of records by name, for those that bring none.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> made = Tokenizer(models.WordLevel({"[UNK]": 0, "It": 1, "rains": 2, ".": 3}, "[UNK]"))
        >>> made.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> found, rejects = Tokenizing(made.to_str(), Wanted("spans", width=1)).run([Unit("a.txt", 1, b"It rains.")])
        >>> found[0].pieces.tolist(), found[0].spans.tolist()
        ([1, 2, 3], [[0, 0, 0, 2], [1, 1, 3, 8], [2, 2, 8, 9]])
    """

    tokenizer: str
    wanted: Wanted = field(default_factory=Wanted)
    given: Mapping[str, Any] = field(default_factory=dict)

    def run(
        self, units: Sequence[Unit], places: Iterable[Any] | None = None
    ) -> tuple[list[TokenizedDocument], list[Reject]]:
        """The documents of raw records, and those that give none.

        Args:
            units: raw records.
            places: of each; their numbers by default.
        """
        rejects: list[Reject] = []
        taken: list[Placed] = []
        for place, unit in zip(range(len(units)) if places is None else places, units, strict=True):
            try:
                taken.append(Placed(place, unit.file, unit.line, parsed(unit, self.wanted, self.given)))
            except (ValueError, RecursionError) as error:
                reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
                rejects.append(Reject(unit.file, unit.line, reason))
        found, more = self.tokenized(taken)
        order = {(unit.file, unit.line): number for number, unit in enumerate(units)}
        return found, sorted(rejects + more, key=lambda reject: order[reject.file, reject.line])

    def tokenized(self, taken: Sequence[Placed]) -> tuple[list[TokenizedDocument], list[Reject]]:
        """The same of records that were read."""
        found, rejects = [], []
        for (place, file, line, record), pieces, spans in zip(
            taken, *self._encoded([each.record for each in taken]), strict=True
        ):
            if not len(pieces):
                rejects.append(Reject(file, line, "the text has no token"))
                continue
            if spans is not None and record.spans is not None and len(spans) < len(record.spans):
                kept = {(int(row[START]), int(row[END])) for row in spans}
                lost = next(span for span in record.spans if span not in kept)
                rejects.append(Reject(file, line, f"span {list(lost)} holds no token"))
                continue
            own = TextRecord(record.name, "", record.cluster) if spans is None else record
            found.append(TokenizedDocument(place, file, line, own, pieces, spans))
        return found, rejects

    def _encoded(self, records: Sequence[TextRecord]) -> tuple[list[Integers], list[Integers | None]]:
        tokenizer, texts = _tokenizer(self.tokenizer), [record.text for record in records]
        if self.wanted.rows == "documents":
            made = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            return [np.array(each.ids, dtype=np.int32) for each in made], [None] * len(made)
        pieces: list[Integers] = []
        spans: list[Integers | None] = []
        for record, each in zip(records, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
            pieces.append(np.array(each.ids, dtype=np.int32))
            offsets = np.array(each.offsets, dtype=np.int32).reshape(-1, 2)
            spans.append(_placed(self._characters(record), offsets))
        return pieces, spans

    def _characters(self, record: TextRecord) -> NDArray[np.int32]:
        """The spans that are wanted of a record, `[S, 2]` characters."""
        if self.wanted.rows == "sentences":
            found: list[tuple[int, int]] = [(own[0][0], own[-1][1]) for own in sentences_in(record.text)]
        elif self.wanted.width is None:
            found = list(record.spans or ())
        else:
            words = np.array(words_in(record.text), dtype=np.int32).reshape(-1, 2)
            first, last = enumerated(len(words), self.wanted.width)
            return np.stack([words[first, 0], words[last, 1]], 1)
        return np.array(found, dtype=np.int32).reshape(-1, 2)


def enumerated(words: int, width: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last words of all spans of up to `width` words, by their first word.

    Example:
        >>> [each.tolist() for each in enumerated(3, 2)]
        [[0, 0, 1, 1, 2], [0, 1, 1, 2, 2]]
    """
    first = np.repeat(np.arange(words), width)
    last = first + np.tile(np.arange(width), words)
    inside = last < words
    return first[inside], last[inside]


def _placed(spans: NDArray[np.int32], offsets: NDArray[np.int32]) -> Integers:
    """Spans of characters with the pieces that they touch in front; without those that touch none."""
    first = np.searchsorted(offsets[:, 1], spans[:, 0], side="right")  # the first piece that ends behind their start
    last = np.searchsorted(offsets[:, 0], spans[:, 1], side="left") - 1  # the last that starts before their end
    rows = np.stack([first, last, spans[:, 0], spans[:, 1]], 1).astype(np.int32)
    return rows[first <= last]


def parsed(unit: Unit, wanted: Wanted, given: Mapping[str, Any] = NO_SPANS) -> TextRecord:
    """The record of a raw unit.

    Raises:
        ValueError: it is none; the message says why, without file and line.

    Example:
        >>> parsed(Unit("a.jsonl", 3, b'{"ID": 7, "Body": "It rains."}', JSON), Wanted())
        TextRecord(name='7', text='It rains.', cluster=None, spans=None)
    """
    if unit.kind == LOST:
        raise ValueError(unit.data.decode("utf-8", "replace"))
    try:
        text = unit.data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"not UTF-8 text (byte {error.start:,} of the record is 0x{unit.data[error.start]:02x})"
        ) from None
    if "\0" in text:
        raise ValueError(f"binary (character {text.index(chr(0)):,} of the record is NUL)")
    if unit.kind != JSON:
        if wanted.clusters is not None:
            raise ValueError(f"plain text has no field {wanted.clusters!r} that names its cluster: give JSON lines")
        return record_of({"text": text}, replace(wanted, text=None), f"{unit.file}:{unit.line}", given)
    try:
        value = parse_value(text)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object is wanted, got {json.dumps(value, ensure_ascii=False)[:40]!r}")
    return record_of(value, wanted, f"{unit.file}:{unit.line}", given)


def record_of(value: dict[str, Any], wanted: Wanted, name: str, given: Mapping[str, Any] = NO_SPANS) -> TextRecord:
    """The record that fields make; `name` is its name where it has none."""
    named = with_text(value)
    text = named.get("text") if wanted.text is None else value.get(wanted.text)
    if not isinstance(text, str):
        called = "text" if wanted.text is None else wanted.text
        if text is not None:
            raise ValueError(f"{called} is no text: {text!r:.40}")
        raise ValueError(f"no field {called!r} that holds text{seen(value, called)}")
    own = next((named[key] for key in NAMES if isinstance(named.get(key), (str, int))), name)
    cluster = None
    if wanted.clusters is not None:
        cluster = cluster_name(value.get(wanted.clusters))
        if cluster is None:
            raise ValueError(f"no field {wanted.clusters!r} that names its cluster")
    spans: tuple[tuple[int, int], ...] | None = None
    if wanted.rows == "spans" and wanted.width is None:
        spans = tuple(_spans_of(named.get("spans", given.get(str(own))), len(text)))
    return TextRecord(encodable(str(own)), encodable(text), cluster, spans)


def _spans_of(given: Any, length: int) -> Iterator[tuple[int, int]]:
    if not isinstance(given, (list, tuple)):
        raise ValueError("no field 'spans' that lists spans as [first character, character behind the last]")
    for each in given:
        pair = (each.get("start"), each.get("end")) if isinstance(each, dict) else each
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(n, int) for n in pair)):
            raise ValueError(f"a span is [first character, character behind the last], got {each!r:.40}")
        start, end = pair
        if not 0 <= start < end <= length:
            raise ValueError(f"span [{start}, {end}] is outside of the text of {length:,} characters, or empty")
        yield start, end


def read_spans(path: Path) -> dict[str, Any]:
    """Spans by the names of records: of JSON lines with `id` and `spans`.

    Raises:
        DataFault: a line has none.
        OSError: the file cannot be read.
    """
    found = {}
    for line, fields in read_records(path):
        if "id" not in fields or "spans" not in fields:
            raise DataFault(path, line, "an object with 'id' and 'spans' is wanted")
        found[str(fields["id"])] = fields["spans"]
    return found


@functools.lru_cache(maxsize=2)
def _tokenizer(text: str) -> Any:
    from tokenizers import Tokenizer

    made = Tokenizer.from_str(text)
    made.no_truncation()
    made.no_padding()
    return made
