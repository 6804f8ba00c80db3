"""What a document costs the processors beside the model, stage by stage: a process's own time, on one thread.

On a GPU the model is fast, and these are what is left: they say how many GPUs one reader, and how much of a GPU one
worker, keeps busy.
"""

from __future__ import annotations

import os
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from spanbert_kernels.scale.encoder import DocumentEncoder, file_digest
from spanbert_kernels.scale.shards import SUFFIX, ShardFile
from spanbert_kernels.scale.tokenizing import TokenizedDocument
from spanbert_kernels.scale.units import Shard, groups_of, input_files, shards_of
from spanbert_kernels.scale.work import CHUNK

COLUMNS = 768  # of a vector: BERT-base's
SHARD = 8192
ROUNDS = 3
Result = TypeVar("Result")


class WithoutModel(DocumentEncoder):
    """All that an encoder does for a batch but the model and the pooling, whose results lie ready."""

    def _states(
        self, windows: Sequence[NDArray[np.int32]], lengths: NDArray[np.int64], clusters: list[int] | None
    ) -> Tensor:
        np.concatenate(windows)  # as the ids for the model are
        return torch.empty(0)

    def _pooled(self, hidden: Tensor, spans: NDArray[np.int64]) -> NDArray[Any]:
        return np.full((len(spans), COLUMNS), 0.5, dtype=np.float32)


def timed(run: Callable[[], Result]) -> tuple[float, Result]:
    """The least processor time of some rounds, in seconds, and the result."""
    best, result = float("inf"), None
    for _ in range(ROUNDS):
        begin = time.process_time()
        result = run()
        best = min(best, time.process_time() - begin)
    assert result is not None
    return best, result


def measured(corpus: Path, model: str) -> dict[str, float]:
    """Microseconds, and bytes, that a document costs, by stage.

    Args:
        corpus: JSON lines.
        model: whose tokenizer it is.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    encoder = WithoutModel(model)
    found: dict[str, float] = {}
    (group,) = groups_of(input_files(corpus))

    def read() -> list[Shard]:
        return list(shards_of(0, group, SHARD, False, None))

    found["read"], shards = timed(read)
    found["send"], sent = timed(lambda: [pickle.dumps(shard, pickle.HIGHEST_PROTOCOL) for shard in shards])
    found["receive"], _ = timed(lambda: [pickle.loads(data) for data in sent])
    chunks = [shard.units[begin : begin + CHUNK] for shard in shards for begin in range(0, len(shard.units), CHUNK)]

    def tokenize() -> list[bytes]:
        return [pickle.dumps(encoder.tokenizing.run(chunk), pickle.HIGHEST_PROTOCOL) for chunk in chunks]

    found["tokenize"], tokenized = timed(tokenize)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"part{SUFFIX}"

        def documents() -> Iterator[TokenizedDocument]:
            for chunk, data in zip(chunks, tokenized, strict=True):
                pickle.dumps(list(chunk), pickle.HIGHEST_PROTOCOL)  # what the tokenising process is given
                yield from pickle.loads(data)[0]

        def work() -> int:
            file = ShardFile(path.parent, path.name.removesuffix(SUFFIX), COLUMNS, half=False, spans=False)
            for document, vectors in encoder.encoded(documents()):
                file.add(document, vectors)
            return file.commit("", "part", "", 0, ()).documents

        found["work"], count = timed(work)
        found["digest"], _ = timed(lambda: file_digest(path))
        sizes = {"bytes read": corpus.stat().st_size / count, "bytes written": path.stat().st_size / count}
    micros = {name: 1e6 * seconds / count for name, seconds in found.items()}
    tokens = encoder.counts.tokens / ROUNDS / count
    return {**micros, **sizes, "documents": float(count), "tokens": tokens, "columns": float(COLUMNS)}
