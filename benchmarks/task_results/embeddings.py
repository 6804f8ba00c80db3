"""The row of sentence embeddings: sentence-transformers' `encode` of pairs of sentences, accelerated and not, in turns.

SPANBERT_KERNELS_DATA=... python -m benchmarks.task_results.embeddings [--threads 1]

It needs sentence-transformers, which `make test-integrations` installs beside the package, in build/integrations.
"""

from __future__ import annotations

import hashlib
import os
import resource
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from spanbert_kernels import accelerate
from spanbert_kernels.cli import checkout
from spanbert_kernels.cli.terminal import say
from spanbert_kernels.data.conllu import Sentence, read_sentences
from spanbert_kernels.tasks.progress import quiet_transformers

from . import recording

ROW, WHAT, DATA = (
    "sentence-embeddings",
    "embeddings",
    "pairs of pud's English sentences that follow each other in a document",
)
FILE = "pud/en_pud-ud-test.conllu"
GOAL = 1e-5
APART, NEAREST = "largest difference from sentence-transformers' own", "neighbour is the nearest sentence"
ASKED = "as `encode` in [Benchmarks](benchmarks.md)"
MISSING = "it needs sentence-transformers"
SIDES = ("theirs", "ours")
TOGETHER = 64  # texts that one way encodes before it is the other's turn


def pairs_of(sentences: Sequence[Sentence]) -> list[tuple[str, str]]:
    """A sentence and the next one that the data have of its document."""
    return [(one.text(), two.text()) for one, two in pairwise(sentences) if two.new_document is None]


def nearest(vectors: NDArray[np.float32]) -> float:
    """The share of pairs whose second sentence is, of all second ones, the nearest to the first; `[2, pairs, columns]`.

    Example:
        >>> nearest(np.array([[[1, 0], [0.6, 0.8]], [[1, 0], [-1, 0]]], dtype=np.float32))
        0.5
    """
    best = (vectors[0] @ vectors[1].T).argmax(1)
    return float((best == np.arange(len(best))).mean())


def measured(model: str, pairs: Sequence[tuple[str, str]], threads: int) -> dict[str, Any]:
    """Both ways to encode in turns: how far they are apart, their seconds, and what the vectors are good for.

    Raises:
        ImportError: sentence-transformers is not installed.
    """
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    clock = time.process_time if threads == 1 else time.perf_counter  # a thread's own time, whoever else is at work
    begin = time.perf_counter()
    networks = {name: SentenceTransformer(model, device="cpu") for name in SIDES}
    accelerate(networks["ours"])
    texts = [text for side in zip(*pairs, strict=True) for text in side]
    seconds, vectors = ({name: list[Any]() for name in SIDES} for _ in range(2))
    for first in range(-TOGETHER, len(texts), TOGETHER):
        chosen = texts[max(first, 0) : max(first, 0) + TOGETHER]
        for name, network in networks.items():
            start = clock()
            found = network.encode(chosen, show_progress_bar=False)
            if first >= 0:  # before that, what is made once
                seconds[name].append(round(clock() - start, 4))
                vectors[name].append(found)
    whole = {name: np.concatenate(own) for name, own in vectors.items()}
    shares = {name: nearest(own.reshape(2, len(pairs), -1)) for name, own in whole.items()}
    return {
        "seconds": round(time.perf_counter() - begin, 1),
        "peak MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "encode seconds": seconds,
        "scores": {APART: float(np.abs(whole["ours"] - whole["theirs"]).max()), NEAREST: shares["ours"]},
        "baseline": {NEAREST: shares["theirs"]},
    }


def newest() -> dict[str, Any]:
    """The newest record of the row, which is its own: others may be written at the same time."""
    path = recording.newest(WHAT)
    return {"runs": []} if path is None else recording.load(path)


def lines(record: Mapping[str, Any]) -> Iterator[list[str]]:
    """The row's lines of the table of results."""
    runs = recording.scored(record, ROW)
    about = ["sentence embeddings", DATA]
    if not runs:
        yield [*about, APART, f"not measured: {MISSING}", "", f"{GOAL:g}", "", "", "not measured", ASKED, "", ""]
        return
    (run,) = runs
    ratios = [theirs / ours for theirs, ours in zip(*(run["encode seconds"][name] for name in SIDES), strict=True)]
    yield [
        *(*about, APART, f"{run['scores'][APART]:.1g}", "", f"{GOAL:g}", "", ""),
        *(f"{statistics.median(ratios):.2f} (encode)", ASKED, f"{run['seconds'] / 60:.1f}", f"{run['peak MB']:,}"),
    ]
    score, theirs = run["scores"][NEAREST], run["baseline"][NEAREST]
    yield [*about, NEAREST, f"{score:.3f}", "", "", f"{theirs:.3f}", "sentence-transformers' own", *[""] * 4]


@click.command()
@click.option("--model", help="The folder of a trained encoder; by default minilm beside the data.")
@click.option("--threads", default=1, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="The record; by default the newest, or a new one.")
def main(model: str | None, threads: int, output: Path | None) -> None:
    """Measure the row of sentence embeddings."""
    quiet_transformers()
    data = os.environ.get("SPANBERT_KERNELS_DATA")
    if not data:
        raise click.ClickException("SPANBERT_KERNELS_DATA does not name the folder of the data")
    model = model or str(Path(data).parent / "models/minilm")
    file = Path(data) / FILE
    pairs = pairs_of(list(read_sentences(file)))
    about = {
        **{"row": ROW, "backend": "auto", "seed": 0, "steps asked": None, "threads": threads},
        **{"model": Path(model).name, "options": {"pairs": len(pairs)}},
        **{"commit": recording.commit(), "data": hashlib.sha256(file.read_bytes()).hexdigest()},
    }
    path = output or recording.newest(WHAT) or checkout.record_of_today(WHAT)
    try:
        found = measured(model, pairs, threads)
    except ImportError:
        raise click.ClickException(f"{ROW}: not measured, {MISSING}") from None
    recording.add(path, {**about, **found})
    say(f"{ROW}: {APART} {found['scores'][APART]:.1e}")


if __name__ == "__main__":
    main()
