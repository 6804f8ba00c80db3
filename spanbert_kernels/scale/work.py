"""What one worker does: it tokenises in other processes, encodes, and puts whole files of vectors in their place."""

from __future__ import annotations

import contextlib
import gc
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from spanbert_kernels.scale.processes import Channel, Pool
from spanbert_kernels.scale.shards import SUFFIX, ShardFile, ShardRecord, read_record
from spanbert_kernels.scale.tokenizing import Reject, TextRecord, TokenizedDocument, Tokenizing, read_spans
from spanbert_kernels.scale.units import InputFile, Shard, Unit, shards_of
from spanbert_kernels.scale.wanted import Wanted

if TYPE_CHECKING:
    from spanbert_kernels.scale.encoder import DocumentEncoder, Throughput

CHUNK, CHUNK_BYTES = 256, 1 << 20  # records that a process is given at once, and their bytes at most
Tokenized = tuple[list[TokenizedDocument], list[Reject]]


@dataclass(frozen=True)
class EncodingJob:
    """What every worker has to know: small, and made to be sent to processes.

    Attributes:
        folder: where the vectors go.
        model: its name.
        wanted: what is made of documents.
        digest: of model and wanted: files of another one are not this job's.
        batch_tokens, precision, backend, device: as in `DocumentEncoder`.
        tokenizers: processes that tokenise, of one worker; 0: it does so itself.
        threads: of PyTorch; None: its own choice.
        spans_from: a file with spans of records by name.
    """

    folder: Path
    model: str
    wanted: Wanted
    digest: str
    batch_tokens: int
    precision: str = "float32"
    backend: str = "auto"
    device: str | None = None
    tokenizers: int = 1
    threads: int | None = None
    spans_from: Path | None = None

    def encoder(self) -> DocumentEncoder:
        """The encoder, in this process."""
        import torch

        from spanbert_kernels.scale.encoder import DocumentEncoder
        from spanbert_kernels.tasks.progress import quiet_transformers

        quiet_transformers()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return DocumentEncoder(
            self.model,
            self.wanted,
            batch_tokens=self.batch_tokens,
            device=self.device,
            precision=self.precision,
            backend=self.backend,
        )


@dataclass(frozen=True)
class ReadingPlan:
    """How files are read.

    Attributes:
        documents: in a shard.
        whole_files: whether a file of plain text is one document.
    """

    documents: int
    whole_files: bool = False

    def shards(
        self, job: EncodingJob, number: int, group: Iterable[InputFile]
    ) -> Iterator[tuple[Shard, ShardRecord | None]]:
        """The shards of a group, each with the record of its file, where that was made of it by this job."""
        for shard in shards_of(number, group, self.documents, self.whole_files, job.wanted.clusters):
            record = read_record(job.folder / f"{shard.name}{SUFFIX}")
            same = record is not None and (record.job, record.source) == (job.digest, shard.digest)
            yield shard, record if same else None


@dataclass
class _Begun:
    """A shard on its way."""

    shard: Shard
    file: ShardFile
    rejects: list[Reject] = field(default_factory=list)
    tokenized: int = 0
    known: bool = False  # whether that is all of it

    @property
    def whole(self) -> bool:
        return self.known and self.file.documents == self.tokenized


class Worker:
    """Encodes shards, one after the other, without waiting between them.

    Args:
        job: what to do.
    """

    def __init__(self, job: EncodingJob) -> None:
        self.job, self.encoder = job, job.encoder()
        given = {} if job.spans_from is None else read_spans(job.spans_from)
        self._pool = TokenizerProcesses(replace(self.encoder.tokenizing, given=given), job.tokenizers)
        gc.collect()  # what loading has left, before `run` hides it

    def end(self) -> None:
        """Ends its processes."""
        self._pool.end()

    @property
    def counts(self) -> Throughput:
        """What went through the encoder so far."""
        return self.encoder.counts

    def run(self, shards: Iterable[Shard], beat: Callable[[], None] = lambda: None) -> Iterator[ShardRecord]:
        """The shards' records, each when its file stands in its place.

        Args:
            shards: in the order that their files will be written.
            beat: called now and then.

        Raises:
            WorkerDied: a process that tokenises is gone.
            CannotWrite: a file cannot be written to its end.
        """
        with _out_of_sight():
            yield from self._run(shards, beat)

    def _run(self, shards: Iterable[Shard], beat: Callable[[], None]) -> Iterator[ShardRecord]:
        begun: deque[_Begun] = deque()

        def begin(shard: Shard) -> _Begun:
            wanted = self.job.wanted
            file = ShardFile(self.job.folder, shard.name, self.encoder.columns, wanted.half, wanted.rows != "documents")
            begun.append(_Begun(shard, file))
            return begun[-1]

        try:
            for document, vectors in self.encoder.encoded(_documents(shards, begin, self._pool)):
                document.place.file.add(document, vectors)
                while begun and begun[0].whole:
                    yield self._committed(begun.popleft())
                beat()
            while begun:
                yield self._committed(begun.popleft())
        except BaseException:
            for each in begun:
                each.file.abandon()
            raise

    def _committed(self, each: _Begun) -> ShardRecord:
        shard = each.shard
        return each.file.commit(self.job.digest, shard.name, shard.digest, shard.size, tuple(each.rejects))


@contextlib.contextmanager
def _out_of_sight() -> Iterator[None]:
    """What is there by now is nothing that the garbage collector looks through for documents.

    It would do so whenever many are under way, and the libraries' objects are far more: 0.2 s each time.
    """
    others = gc.get_freeze_count()
    gc.freeze()
    try:
        yield
    finally:
        if not others:
            gc.unfreeze()


def _documents(
    shards: Iterable[Shard], begin: Callable[[Shard], _Begun], pool: TokenizerProcesses
) -> Iterator[TokenizedDocument]:
    """The documents of shards, tokenised ahead."""
    ahead: deque[tuple[_Begun, bool, Callable[[], Tokenized]]] = deque()

    def first() -> Iterator[TokenizedDocument]:
        state, last, result = ahead.popleft()
        found, rejects = result()
        state.rejects += rejects
        state.tokenized += len(found)
        state.known = last
        for document in found:
            yield document._replace(place=state, record=_of_shard(document.record, state.shard.name))

    for shard in shards:
        state = begin(shard)
        chunks = list(_chunks(shard.units))
        for number, chunk in enumerate(chunks, start=1):
            ahead.append((state, number == len(chunks), pool.submit(chunk)))
            while len(ahead) > pool.ahead:
                yield from first()
    while ahead:
        yield from first()


def _of_shard(record: TextRecord, shard: str) -> TextRecord:
    """With a cluster that no other shard has: what a vector is made of does not depend on who has which shards."""
    return record if record.cluster is None else record._replace(cluster=f"{shard} {record.cluster}")


def _chunks(units: Iterable[Unit]) -> Iterator[list[Unit]]:
    chunk: list[Unit] = []
    size = 0
    for unit in units:
        if chunk and (len(chunk) >= CHUNK or size + len(unit.data) > CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(unit)
        size += len(unit.data)
    if chunk:
        yield chunk


class TokenizerProcesses:
    """Processes that tokenise, ahead of who asks for the results.

    Args:
        tokenizing: how.
        processes: how many; 0: none, this process does it when it needs the result.
    """

    def __init__(self, tokenizing: Tokenizing, processes: int) -> None:
        self.tokenizing, self.ahead = tokenizing, 2 * processes
        self._pool = (
            Pool(f"{__name__}:tokenize", tokenizing, processes, "a process that tokenises") if processes else None
        )

    def end(self) -> None:
        """Ends them."""
        if self._pool is not None:
            self._pool.end()

    def submit(self, units: list[Unit]) -> Callable[[], Tokenized]:
        """Begins with some records; the call of what it gives waits for them."""
        return partial(self.tokenizing.run, units) if self._pool is None else self._pool.submit(units)


def tokenize(tokenizing: Tokenizing, channel: Channel) -> None:
    """What a process that tokenises does."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there are as many processes as are wanted
    while True:
        channel.send(tokenizing.run(channel.receive()))
