"""A program: one measurement, alone in its process, whose memory is its own; prints a JSON line at the end.

python -m corpus_encoding.one_measurement '{"what": "encode", "corpus": "documents.jsonl", ...}'
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from transformers import AutoModel

from spanbert_kernels import accelerate
from spanbert_kernels.models.tokenization import load_tokenizer
from spanbert_kernels.scale import Wanted, encode
from spanbert_kernels.scale.batching import filled
from spanbert_kernels.scale.corpus import CorpusProgress
from spanbert_kernels.scale.encoder import BATCH_TOKENS, Throughput, around
from spanbert_kernels.tasks.progress import quiet_transformers

from . import stages

MEGABYTE = 1e6
SHARDS = 20  # files of vectors: that of a worker which ends first shows, where there are too few


@dataclass(frozen=True)
class AskedMeasurement:
    """What is to be measured.

    Attributes:
        what: a key of `MEASURES`.
        corpus: JSON lines.
        documents: in it.
        model: a folder.
        engine, workers: as in `encode`.
        threads: of PyTorch in all; 0: its own choice.
    """

    what: str
    corpus: str
    documents: int
    model: str
    engine: str = "local"
    workers: int = 1
    threads: int = 0


@dataclass
class MemorySamples:
    """Resident memory at the start, at each tenth of the documents, and at the end.

    Attributes:
        documents: in all.
        samples: documents done, seconds since the first, megabytes of this process, and of it and those it started.
    """

    documents: int
    samples: list[tuple[int, float, float, float]] = field(default_factory=list)

    def hear(self, progress: CorpusProgress) -> None:
        """Takes a sample where it is time."""
        done = progress.total.documents
        if not self.samples or done * 10 // self.documents > self.samples[-1][0] * 10 // self.documents:
            self.take(done, progress.seconds)

    def take(self, done: int, seconds: float) -> None:
        """Takes a sample."""
        own = psutil.Process()
        others = 0
        for each in own.children(recursive=True):
            try:
                others += each.memory_info().rss
            except psutil.NoSuchProcess:
                continue
        resident = own.memory_info().rss
        sample = (done, round(seconds, 2), round(resident / MEGABYTE, 1), round((resident + others) / MEGABYTE, 1))
        self.samples.append(sample)


def figures(seconds: float, counts: Throughput) -> dict[str, Any]:
    """What went through in so many seconds."""
    return {
        "seconds": round(seconds, 3),
        "documents/s": round(counts.documents / seconds, 1),
        "tokens/s": round(counts.tokens / seconds),
        "padding": round(counts.saved, 4),
        "empty": round(counts.empty, 4),
    }


def encoded(asked: AskedMeasurement) -> dict[str, Any]:
    """`encode`, with its memory over time."""
    memory = MemorySamples(asked.documents)
    threads = max(1, asked.threads // asked.workers) or None if asked.threads else None
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found = encode(
            [Path(asked.corpus)],
            asked.model,
            Path(folder) / "vectors",
            Wanted(),
            engine=asked.engine,
            workers=asked.workers,
            shard_documents=max(1, asked.documents // SHARDS),
            threads=threads,
            hear=memory.hear,
        )
        if found.manifest["documents"] != asked.documents or found.manifest["rejects"]:
            raise RuntimeError(f"{asked.documents:,} documents became {found.manifest['documents']:,}")
        written = sum(path.stat().st_size for path in found.folder.glob("*.parquet"))
    wall = time.perf_counter() - begin
    memory.take(asked.documents, found.progress.seconds)
    return {
        **figures(found.progress.seconds, found.progress.total),
        "wall seconds": round(wall, 3),
        "bytes written": written,
        "memory": memory.samples,
    }


def bare(asked: AskedMeasurement) -> dict[str, Any]:
    """The accelerated model alone, over the batches that `encode` makes, which lie ready."""
    if asked.threads:
        torch.set_num_threads(asked.threads)
    tokenizer = load_tokenizer(asked.model)
    before, behind = around(tokenizer)
    with Path(asked.corpus).open(encoding="utf-8") as stream:
        texts = [json.loads(line)["text"] for line in stream]
    pieces = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    documents = [np.concatenate([before, np.array(each.ids, np.int32), behind]) for each in pieces]
    batches: list[dict[str, Any]] = []
    counts = Throughput()
    for batch in filled(documents, len, BATCH_TOKENS):
        lengths = np.array([len(each) for each in batch])
        offsets = torch.from_numpy(np.concatenate([[0], lengths.cumsum()])).int()
        batches.append(
            {
                "input_ids": torch.from_numpy(np.concatenate(batch)).long()[None],
                "position_ids": torch.from_numpy(np.concatenate([np.arange(each) for each in lengths]))[None],
                "cu_seq_lens_q": offsets,
                "cu_seq_lens_k": offsets,
                "max_length_q": int(lengths.max()),
                "max_length_k": int(lengths.max()),
            }
        )
        total = int(lengths.sum())
        counts += Throughput(len(batch), total, len(batch) * int(lengths.max()), max(total, BATCH_TOKENS))
    model = AutoModel.from_pretrained(asked.model, add_pooling_layer=False).eval()
    report = accelerate(model)
    with torch.inference_mode():
        begin = time.perf_counter()
        for each in batches:
            model(**each)
        seconds = time.perf_counter() - begin
    if report.last_path != "packed-inference":
        raise RuntimeError(f"the model took the path {report.last_path}")
    return figures(seconds, counts)


def by_stage(asked: AskedMeasurement) -> dict[str, Any]:
    """What a document costs beside the model."""
    found = stages.measured(Path(asked.corpus), asked.model)
    return {"stages": {name: round(value, 3) for name, value in found.items()}}


MEASURES = {"encode": encoded, "bare": bare, "stages": by_stage}


def main() -> None:
    """Measures what the first argument asks for."""
    asked = AskedMeasurement(**json.loads(sys.argv[1]))
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no result
    quiet_transformers()
    found = MEASURES[asked.what](asked)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({**found, "peak MB": round(peak), "threads": torch.get_num_threads()}), file=out, flush=True)


def arguments(asked: AskedMeasurement) -> list[str]:
    """The command that measures it."""
    return [sys.executable, "-m", "corpus_encoding.one_measurement", json.dumps(asdict(asked))]


if __name__ == "__main__":
    main()
