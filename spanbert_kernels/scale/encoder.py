"""An accelerated encoder that makes vectors of documents: for the command, and for people's own pipelines."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from spanbert_kernels import ops
from spanbert_kernels.acceleration import AccelerationReport, accelerate
from spanbert_kernels.acceleration.families import family_of
from spanbert_kernels.models import SpanBERTModel
from spanbert_kernels.models.checkpoints import resolve_model
from spanbert_kernels.models.encoders import kind_for
from spanbert_kernels.models.tokenization import load_tokenizer
from spanbert_kernels.nn.packing import Packing, recall
from spanbert_kernels.scale.batching import filled
from spanbert_kernels.scale.tokenizing import END, FIRST, LAST, START, Placed, TokenizedDocument, Tokenizing, record_of
from spanbert_kernels.scale.wanted import Wanted, usual

BATCH_TOKENS = 8192
PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Vectors = NDArray[Any]  # [rows, columns]


@dataclass
class Throughput:
    """What went through an encoder.

    Attributes:
        documents: of them.
        tokens: that were computed, special ones counted.
        padded: tokens that the same batches have where each document is filled up to the longest.
        room: tokens that there was room for.
    """

    documents: int = 0
    tokens: int = 0
    padded: int = 0
    room: int = 0

    def __add__(self, other: Throughput) -> Throughput:
        return Throughput(*(own + more for own, more in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def saved(self) -> float:
        """The share of the padded batches that was padding."""
        return 1 - self.tokens / self.padded if self.padded else 0.0

    @property
    def empty(self) -> float:
        """The share of the room that stayed empty."""
        return 1 - self.tokens / self.room if self.room else 0.0


@dataclass(frozen=True)
class _Windows:
    """The documents of a cluster, or one document, with special tokens."""

    documents: tuple[TokenizedDocument, ...]
    windows: tuple[tuple[NDArray[np.int32], ...], ...]
    tokens: int


class DocumentEncoder:
    """Makes vectors of texts with an accelerated encoder; batches of columns in, batches of columns out.

    It is what `ray.data.Dataset.map_batches` takes as a class, and `datasets.Dataset.map(batched=True)` as an object.
    It is sent to processes as its arguments, and loads its model there.

    Args:
        model: a folder, a hub name, "spanbert-base" or "spanbert-large"; of any family that `accelerate` knows.
        wanted: what is to be made of documents; by default vectors as the model's own files say.
        batch_tokens: tokens in a batch; documents of a larger one go alone.
        device: where the model runs; a GPU if there is one.
        precision: "float32", "bf16" or "fp16", of its weights.
        backend: "eager" is transformers' own path, to check against.
        options: fields of `Wanted`, in the place of `wanted`'s.

    Raises:
        OSError: there is no such model.
        ValueError: it is of no known family, or cannot do what is wanted.

    Example:
        >>> import tempfile
        >>> from transformers import BertConfig, BertModel, BertTokenizer
        >>> words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "it", "rains"])}
        >>> config = BertConfig(vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     BertModel(config).save_pretrained(folder)
        ...     _ = BertTokenizer(vocab=words).save_pretrained(folder)
        ...     encoder = DocumentEncoder(folder)
        >>> encoder({"text": ["It rains", "rains"]})["vector"].shape
        (2, 8)
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        wanted: Wanted | None = None,
        *,
        batch_tokens: int = BATCH_TOKENS,
        device: str | None = None,
        precision: str = "float32",
        backend: str = "auto",
        **options: Any,
    ) -> None:
        name = os.fspath(model)
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        if backend not in ("auto", "eager"):
            raise ValueError(f"backend must be auto or eager, got {backend!r}")
        if unknown := options.keys() - Wanted.__dataclass_fields__.keys():
            raise TypeError(f"DocumentEncoder takes no {sorted(unknown)[0]!r}")
        wanted = Wanted.of({**(usual(name) if wanted is None else wanted.known()), **options})
        self._made_of = (name, wanted, batch_tokens, device, precision, backend)
        self.wanted, self.batch_tokens = wanted, batch_tokens
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        kind = kind_for(SpanBERTModel, name)
        self.model = load_without_pooler(kind, name).to(self.device, PRECISIONS[precision]).eval()
        self.tokenizer = load_tokenizer(name)
        self.length = min(wanted.max_length or self.model.config.positions, self.model.config.positions)
        if wanted.clusters is not None and not self.model.config.cross_document_layers:
            raise ValueError(f"{name} has no cross-document layers, so that clusters={wanted.clusters!r} says nothing")
        self.before, self.behind = around(self.tokenizer)
        self.report: AccelerationReport | None = None if backend == "eager" else accelerate(self.model)
        self.tokenizing = Tokenizing(self.tokenizer.backend_tokenizer.to_str(), wanted)
        self.counts = Throughput()

    def __reduce__(self) -> Any:
        return _made, self._made_of

    @property
    def columns(self) -> int:
        """Numbers in a vector."""
        return self.wanted.columns(self.model.config.hidden_size)

    @property
    def dtype(self) -> type[np.floating[Any]]:
        """Of the vectors."""
        return np.float16 if self.wanted.half else np.float32

    def __call__(self, batch: Any) -> Any:
        """The batch with a column `vector`.

        Args:
            batch: columns by name (of lists or arrays), or a pandas DataFrame; a column holds text, one may hold names
                (`id`), one the clusters, one the spans.

        Returns:
            The same kind: of documents all columns and the vectors; of sentences and spans a row each, with `id`,
            `start` and `end` (characters), `text` and `vector`.

        Raises:
            ValueError: a row holds no text, or no token; the message says which.
        """
        columns = batch if isinstance(batch, Mapping) else {name: batch[name].tolist() for name in batch.columns}
        found = self._of_columns(columns, len(next(iter(columns.values()), ())))
        if isinstance(batch, Mapping):
            return found
        return type(batch)({name: list(values) if name == "vector" else values for name, values in found.items()})

    def _of_columns(self, columns: Mapping[str, Any], rows: int) -> dict[str, Any]:
        records = []
        for number in range(rows):
            value = {name: _plain(column[number]) for name, column in columns.items()}
            try:
                records.append(Placed(number, "row", number, record_of(value, self.wanted, str(number))))
            except ValueError as error:
                raise ValueError(f"row {number}: {error}") from None
        documents, rejects = self.tokenizing.tokenized(records)
        if rejects:
            raise ValueError(f"row {rejects[0].line}: {rejects[0].reason}")
        if self.wanted.clusters is not None:
            first = {document.record.cluster: document.place for document in reversed(documents)}
            documents.sort(key=lambda document: first[document.record.cluster])
        pairs = sorted(self.encoded(documents), key=lambda pair: pair[0].place)
        if self.wanted.rows == "documents":
            vectors = np.concatenate([vectors for _, vectors in pairs]) if pairs else self._no_vectors()
            return {**columns, "vector": vectors}
        return self._exploded(pairs)

    def _exploded(self, pairs: Sequence[tuple[TokenizedDocument, Vectors]]) -> dict[str, Any]:
        names, texts = [], []
        places = [np.zeros((0, 4), np.int32)]
        for document, _ in pairs:
            assert document.spans is not None
            places.append(document.spans)
            for start, end in document.spans[:, [START, END]].tolist():
                names.append(document.record.name)
                texts.append(document.record.text[start:end])
        spans = np.concatenate(places)
        vectors = np.concatenate([vectors for _, vectors in pairs]) if pairs else self._no_vectors()
        return {"id": names, "start": spans[:, START], "end": spans[:, END], "text": texts, "vector": vectors}

    def _no_vectors(self) -> Vectors:
        return np.zeros((0, self.columns), self.dtype)

    def encoded(self, documents: Iterable[TokenizedDocument]) -> Iterator[tuple[TokenizedDocument, Vectors]]:
        """The documents in their order, each with its vectors `[rows, columns]`."""
        waiting: dict[int, list[tuple[TokenizedDocument, Vectors]]] = {}
        given = 0
        for batch in filled(enumerate(self._items(documents)), lambda item: item[1].tokens, self.batch_tokens):
            vectors = iter(self._vectors([item for _, item in batch]))
            for number, item in batch:
                waiting[number] = [(document, next(vectors)) for document in item.documents]
            while given in waiting:
                yield from waiting.pop(given)
                given += 1

    def _items(self, documents: Iterable[TokenizedDocument]) -> Iterator[_Windows]:
        own: list[TokenizedDocument] = []
        for document in documents:
            if own and (document.record.cluster is None or document.record.cluster != own[0].record.cluster):
                yield self._windows(own)
                own = []
            own.append(document)
        if own:
            yield self._windows(own)

    def _windows(self, documents: Sequence[TokenizedDocument]) -> _Windows:
        kept = tuple(map(self._cut, documents))
        windows = tuple(tuple(self._own_windows(document.pieces)) for document in kept)
        return _Windows(kept, windows, sum(len(window) for own in windows for window in own))

    def _cut(self, document: TokenizedDocument) -> TokenizedDocument:
        """Without what stands behind the first window, where that is not wanted."""
        room = self.length - len(self.before) - len(self.behind)
        if not self.wanted.cut or len(document.pieces) <= room:
            return document
        spans = document.spans
        if spans is not None:
            spans = spans[spans[:, LAST] < room]
        return document._replace(pieces=document.pieces[:room], spans=spans)

    def _own_windows(self, pieces: NDArray[np.int32]) -> Iterator[NDArray[np.int32]]:
        """As few windows as there is room for, of about one length."""
        room = self.length - len(self.before) - len(self.behind)
        count = -(-len(pieces) // room)
        bounds = [0, len(pieces)] if count == 1 else np.linspace(0, len(pieces), count + 1).astype(int).tolist()
        for start, end in pairwise(bounds):
            yield np.concatenate([self.before, pieces[start:end], self.behind])

    @torch.inference_mode()
    def _vectors(self, items: Sequence[_Windows]) -> list[Vectors]:
        """The vectors of each document of a batch, in order."""
        documents = [document for item in items for document in item.documents]
        windows = [window for item in items for own in item.windows for window in own]
        of_document = [len(own) for item in items for own in item.windows]
        clusters = None
        if self.wanted.clusters is not None:
            clusters = [number for number, item in enumerate(items) for own in item.windows for _ in own]
        lengths = np.array([len(window) for window in windows])
        hidden = self._states(windows, lengths, clusters)
        self._count(len(documents), lengths)
        ends = np.concatenate([[0], lengths.cumsum()])[np.concatenate([[0], np.cumsum(of_document)])]  # of documents
        if self.wanted.rows == "documents":
            spans = np.stack([ends[:-1], ends[1:]], 1)
        else:
            hidden, spans = self._of_pieces(hidden, lengths, documents)
        pooled = self._pooled(hidden, spans)
        bounds = np.cumsum([0, *(document.rows for document in documents)]).tolist()
        return [pooled[start:end] for start, end in pairwise(bounds)]

    def _of_pieces(
        self, hidden: Tensor, lengths: NDArray[np.int64], documents: Sequence[TokenizedDocument]
    ) -> tuple[Tensor, NDArray[np.int64]]:
        """The states without those of special tokens, and the spans among them, ends excluded."""
        keep = np.ones(int(lengths.sum()), dtype=bool)
        ends = lengths.cumsum()
        for offset in range(len(self.before)):
            keep[ends - lengths + offset] = False
        for offset in range(len(self.behind)):
            keep[ends - 1 - offset] = False
        starts = np.cumsum([0, *(len(document.pieces) for document in documents)])
        spans = [
            document.spans[:, [FIRST, LAST]].astype(np.int64) + start
            for document, start in zip(documents, starts, strict=False)
            if document.spans is not None
        ]
        found = np.concatenate(spans)
        found[:, 1] += 1
        return hidden.index_select(0, torch.from_numpy(np.flatnonzero(keep)).to(hidden.device)), found

    def _pooled(self, hidden: Tensor, spans: NDArray[np.int64]) -> Vectors:
        given: Any = list(self.wanted.parts)
        vectors = ops.span_pool(hidden, torch.from_numpy(spans).to(hidden.device), given, end_inclusive=False)
        if self.wanted.normalize:
            vectors = normalize(vectors.float(), dim=-1)
        return vectors.to(torch.float16 if self.wanted.half else torch.float32).cpu().numpy()

    def _count(self, documents: int, lengths: NDArray[np.int64]) -> None:
        total = int(lengths.sum())
        self.counts.documents += documents
        self.counts.tokens += total
        self.counts.padded += len(lengths) * int(lengths.max())
        self.counts.room += max(total, self.batch_tokens)

    def _states(
        self, windows: Sequence[NDArray[np.int32]], lengths: NDArray[np.int64], clusters: list[int] | None
    ) -> Tensor:
        """The last hidden states of all windows, one after the other, `[T, H]`."""
        if self.report is None or clusters is not None:
            return self._padded(windows, lengths, clusters)
        ids = torch.from_numpy(np.concatenate(windows)).long()
        offsets = torch.from_numpy(np.concatenate([[0], lengths.cumsum()])).int()
        given: dict[str, Any] = {"input_ids": ids[None].to(self.device)}
        if "position_ids" in self.model.family.inputs:
            places = Packing.from_offsets(offsets, None, len(ids)).places() + self._first_position
            given["position_ids"] = places[None].to(self.device)
        offsets, longest = offsets.to(self.device), int(lengths.max())
        output = self.model(
            **given, cu_seq_lens_q=offsets, cu_seq_lens_k=offsets, max_length_q=longest, max_length_k=longest
        )
        return output.last_hidden_state[0]

    @property
    def _first_position(self) -> int:
        """The position of a document's first token."""
        family = family_of(self.model)
        return 0 if family is None or family.positions == "column" else self.model.embeddings.padding_idx + 1

    def _padded(
        self, windows: Sequence[NDArray[np.int32]], lengths: NDArray[np.int64], clusters: list[int] | None
    ) -> Tensor:
        longest = int(lengths.max())
        if clusters is None and len(windows) > 1 and longest * len(windows) > self.batch_tokens:
            return self._padded_by_length(windows, lengths)
        ids = np.full((len(windows), longest), self.tokenizer.pad_token_id or 0, dtype=np.int64)
        for row, window in zip(ids, windows, strict=True):
            row[: len(window)] = window
        mask = torch.from_numpy((np.arange(longest) < lengths[:, None]).astype(np.int64)).to(self.device)
        more = {} if clusters is None else {"cluster_ids": torch.tensor(clusters, device=self.device)}
        states = self.model(torch.from_numpy(ids).to(self.device), mask, **more).last_hidden_state
        known = recall(states, mask)
        if known is not None:
            return known[0]
        return Packing.from_mask(mask, len(windows), longest, self.device).pack(states)

    def _padded_by_length(self, windows: Sequence[NDArray[np.int32]], lengths: NDArray[np.int64]) -> Tensor:
        """The same in batches that have room for their padding."""
        found: list[Any] = [None] * len(windows)
        order = np.argsort(lengths, kind="stable").tolist()
        while order:
            count = 1
            while count < len(order) and int(lengths[order[count]]) * (count + 1) <= self.batch_tokens:
                count += 1
            chosen, order = order[:count], order[count:]
            states = self._padded([windows[place] for place in chosen], lengths[chosen], None)
            for place, own in zip(chosen, states.split(lengths[chosen].tolist()), strict=True):
                found[place] = own
        return torch.cat(found)


def _made(
    name: str, wanted: Wanted, batch_tokens: int, device: str | None, precision: str, backend: str
) -> DocumentEncoder:
    return DocumentEncoder(name, wanted, batch_tokens=batch_tokens, device=device, precision=precision, backend=backend)


def load_without_pooler(kind: Any, name: str) -> Any:
    """The encoder of a checkpoint, without the head and the pooler that it may have."""
    from spanbert_kernels.models.damage import loading

    with loading(name):
        return kind.from_pretrained(name, add_pooling_layer=False)


def around(tokenizer: Any) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """The special tokens before and behind a text."""
    empty = tokenizer("", verbose=False)["input_ids"]
    one = tokenizer("a", verbose=False)["input_ids"]
    before = next((place for place, (a, b) in enumerate(zip(empty, one, strict=False)) if a != b), len(empty))
    return np.array(empty[:before], dtype=np.int32), np.array(empty[before:], dtype=np.int32)


def digest_of(model: str) -> str:
    """What tells a model from another: a hash of a folder's files, or a hub's own of the commit.

    Raises:
        OSError: there is no such model.
    """
    resolved = resolve_model(model)
    folder = Path(resolved)
    if not folder.is_dir():
        from transformers import PreTrainedConfig

        values, _ = PreTrainedConfig.get_config_dict(resolved)
        return f"{resolved}@{values.get('_commit_hash')}"
    digest = hashlib.sha256()
    for path in sorted(
        each for each in folder.iterdir() if each.suffix in (".json", ".safetensors", ".bin", ".txt", ".model")
    ):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        digest.update(file_digest(path).encode())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while data := stream.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    """Of numpy's and Arrow's scalars and arrays, Python's own."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value
