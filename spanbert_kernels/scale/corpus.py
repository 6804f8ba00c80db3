"""A corpus of any size as files of vectors, every document exactly once, whatever happens in between."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

from spanbert_kernels import __version__, extras
from spanbert_kernels.data import faults
from spanbert_kernels.data.sources import Source
from spanbert_kernels.scale.encoder import BATCH_TOKENS, Throughput, digest_of, file_digest
from spanbert_kernels.scale.local import encode_here
from spanbert_kernels.scale.scattered import ScatteredClusters
from spanbert_kernels.scale.shards import SUFFIX, ShardRecord, read_record
from spanbert_kernels.scale.units import InputFile, Shard, groups_of, input_files
from spanbert_kernels.scale.wanted import Wanted
from spanbert_kernels.scale.work import EncodingJob, ReadingPlan
from spanbert_kernels.tasks import atomic

MANIFEST, REJECTS = "manifest.json", "rejects.jsonl"
SHARD_DOCUMENTS = 8192
ENGINES = ("local", "ray")


@dataclass
class CorpusProgress:
    """How far an encoding is.

    Attributes:
        size: bytes of the input.
        read: of those whose vectors stand in their place.
        kept: documents of an earlier run.
        kept_size: bytes that they were read from.
        documents: of this run, whose files stand in their place.
        rejects: of both.
        counts: what went through each worker.
        begun: when the first document went through, on the clock of `time.monotonic`.
        ended: the same of the last.
        clusters: those whose documents do not stand in a row.
    """

    size: int
    read: int = 0
    kept: int = 0
    kept_size: int = 0
    documents: int = 0
    rejects: int = 0
    counts: dict[int, Throughput] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)
    ended: float = field(default_factory=time.monotonic)
    clusters: ScatteredClusters = field(default_factory=ScatteredClusters)

    def heard(self, worker: int, counts: Throughput, seconds: float = 0.0) -> None:
        """So much went through a worker, in so many seconds; 0 for one that is heard from its first document on."""
        self.ended = time.monotonic()
        self.begun = min(self.begun, self.ended - seconds) if self.counts else self.ended - seconds
        self.counts[worker] = counts

    @property
    def seconds(self) -> float:
        """From the first document to the last."""
        return max(self.ended - self.begun, 1e-9)

    @property
    def total(self) -> Throughput:
        """Of all workers."""
        return sum(self.counts.values(), Throughput())

    @property
    def left(self) -> float | None:
        """Seconds, if what is left goes as what was; None while nobody knows."""
        done = self.read - self.kept_size
        return self.seconds / done * (self.size - self.read) if done > 0 else None


Hear = Callable[[CorpusProgress], None]


@dataclass(frozen=True)
class Encoded:
    """What came of an encoding.

    Attributes:
        folder: where it is.
        manifest: what `manifest.json` says.
        progress: of this run.
    """

    folder: Path
    manifest: dict[str, Any]
    progress: CorpusProgress

    def first_rejects(self, count: int) -> list[dict[str, Any]]:
        """Of what `rejects.jsonl` says, so much."""
        path = self.folder / REJECTS
        if not path.is_file():
            return []
        with path.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in islice(lines, count)]


def encode(
    source: Source,
    model: str,
    folder: Path,
    wanted: Wanted,
    *,
    engine: str = "local",
    workers: int = 1,
    batch_tokens: int = BATCH_TOKENS,
    tokenizers: int = 1,
    shard_documents: int = SHARD_DOCUMENTS,
    whole_files: bool = False,
    precision: str = "float32",
    backend: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    spans_from: Path | None = None,
    hear: Hear = lambda progress: None,
) -> Encoded:
    """Encodes files to a folder of Parquet files, or goes on where an earlier call was cut off.

    Args:
        source: files and folders: plain text, JSON lines, Parquet, compressed or not.
        model: a folder, a hub name, "spanbert-base" or "spanbert-large".
        folder: for the vectors; new, empty, or of an earlier call with the same model that wanted the same.
        wanted: what is made of documents.
        engine: "local", processes on this machine, or "ray", Ray Data on a cluster that shares the folder.
        workers: models that work side by side.
        batch_tokens: tokens in a batch.
        tokenizers: processes of each worker that tokenise.
        shard_documents: documents in a file.
        whole_files: whether a file of plain text is one document; else a line is.
        precision: "float32", "bf16" or "fp16".
        backend: "auto" or "eager".
        device: where models run; by default GPUs if there are any.
        threads: of PyTorch, of each worker.
        spans_from: JSON lines with `id` and `spans`, for records that bring no spans.
        hear: of how far it is.

    Returns:
        What the manifest says, and how this run went.

    Raises:
        ValueError: the folder holds something else, or a value means nothing.
        OSError: a file cannot be read or written.
        WorkerDied: a worker is gone; the same call goes on.

    Warns:
        DataWarning: documents of a cluster do not stand in a row.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
    extras.require("pyarrow", "scale")
    files = input_files(source)
    digest = _digest(model, wanted, precision, whole_files, None if spans_from is None else file_digest(spans_from))
    _claim(folder, digest)
    job = EncodingJob(
        folder, model, wanted, digest, batch_tokens, precision, backend, device, tokenizers, threads, spans_from
    )
    progress = CorpusProgress(sum(file.size for file in files))
    records: dict[str, ShardRecord] = {}

    def take(record: ShardRecord) -> None:
        records[record.name] = replace(record, rejects=())  # which its file says, and memory need not hold
        progress.read += record.size
        progress.rejects += len(record.rejects)

    def kept(record: ShardRecord) -> None:
        take(record)
        progress.kept += record.documents
        progress.kept_size += record.size
        hear(progress)

    def heard(worker: int, counts: Throughput, seconds: float = 0.0) -> None:
        progress.heard(worker, counts, seconds)
        hear(progress)

    groups, reading = groups_of(files), ReadingPlan(shard_documents, whole_files)
    if engine == "ray":
        from spanbert_kernels.scale.on_ray import encode_on_ray

        job = replace(job, folder=folder.absolute(), spans_from=None if spans_from is None else spans_from.absolute())
        found = encode_on_ray(job, groups, reading, workers, progress.clusters.add, kept, heard)
    else:
        found = encode_here(job, _missing(job, groups, reading, progress.clusters.add, kept), workers, heard)
    for record in found:
        take(record)
        progress.documents += record.documents
        hear(progress)
    if wanted.clusters is not None and (message := progress.clusters.message(wanted.clusters)):
        faults.warn(f"{files[0].path if len(files) == 1 else f'{len(files):,} files'}: {message}")
    return _finished(job, files, records, progress, {"precision": precision, "whole_files": whole_files})


def _digest(model: str, wanted: Wanted, precision: str, whole_files: bool, spans: str | None) -> str:
    """Of all that goes into the vectors."""
    values = [digest_of(model), wanted.known(), precision, whole_files, spans]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _claim(folder: Path, digest: str) -> None:
    """Makes the folder one of this job, without what an earlier process left half done.

    Raises:
        ValueError: it holds something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / MANIFEST
    if manifest.is_file():
        try:
            known = json.loads(manifest.read_text(encoding="utf-8"))["job"]
        except (ValueError, KeyError, TypeError):
            known = None
        if known != digest:
            raise ValueError(
                f"{folder} holds vectors of another model, or others than are wanted now: give another folder"
            )
    elif any(each for each in folder.iterdir() if not each.name.endswith(atomic.PARTIAL)):
        raise ValueError(f"{folder} is not empty, and no encoding began there: give another folder")
    _clear(folder)
    if not manifest.is_file():
        atomic.write_text(manifest, json.dumps({"job": digest, "complete": False}))


def _clear(folder: Path) -> None:
    """Takes away what processes that died have left half written."""
    for each in folder.glob(f".*{atomic.PARTIAL}"):
        each.unlink(missing_ok=True)


def _missing(
    job: EncodingJob,
    groups: Sequence[tuple[InputFile, ...]],
    reading: ReadingPlan,
    runs: Callable[[Sequence[str]], None],
    kept: Callable[[ShardRecord], None],
) -> Iterator[Shard]:
    """The shards whose files are not there."""
    for number, group in enumerate(groups):
        for shard, record in reading.shards(job, number, group):
            runs(shard.clusters)
            if record is None:
                yield shard
            else:
                kept(record)


def _finished(
    job: EncodingJob,
    files: Sequence[InputFile],
    records: dict[str, ShardRecord],
    progress: CorpusProgress,
    more: dict[str, Any],
) -> Encoded:
    """Writes what is said of the whole."""
    folder = job.folder
    _clear(folder)  # of workers that Ray began anew
    for path in folder.glob(f"part-*{SUFFIX}"):
        if path.name.removesuffix(SUFFIX) not in records:  # of an input that was longer
            path.unlink()
    ordered = [records[name] for name in sorted(records)]
    rejects = _write_rejects(folder, ordered)
    total = {name: sum(getattr(record, name) for record in ordered) for name in ("documents", "rows", "tokens")}
    manifest = {
        "job": job.digest,
        "complete": True,
        "model": job.model,
        "wanted": job.wanted.known(),
        **more,
        **total,
        "rejects": sum(rejects),
        **({} if job.wanted.clusters is None else {"scattered_clusters": progress.clusters.count}),
        "inputs": [{"file": str(file.path), "bytes": file.size} for file in files],
        "shards": [
            {
                "file": f"{record.name}{SUFFIX}",
                "sha256": file_digest(folder / f"{record.name}{SUFFIX}"),
                "source_sha256": record.source,
                **{name: getattr(record, name) for name in total},
                "rejects": own,
            }
            for record, own in zip(ordered, rejects, strict=True)
        ],
        "versions": _versions(),
    }
    atomic.write_text(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False))
    return Encoded(folder, manifest, progress)


def _write_rejects(folder: Path, records: Sequence[ShardRecord]) -> list[int]:
    """Records that gave no vector, in the order of the input, a file of vectors after the other; how many each has."""
    path, counts = folder / REJECTS, []
    with atomic.new_text(path) as lines:
        for record in records:
            whole = read_record(folder / f"{record.name}{SUFFIX}")
            own = () if whole is None else whole.rejects
            lines.writelines(f"{json.dumps(reject._asdict(), ensure_ascii=False)}\n" for reject in own)
            counts.append(len(own))
    if not any(counts):
        path.unlink()
    return counts


def _versions() -> dict[str, str]:
    found = {"spanbert-kernels": __version__, "python": sys.version.split()[0]}
    for name in ("torch", "transformers", "tokenizers", "pyarrow", "ray"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
