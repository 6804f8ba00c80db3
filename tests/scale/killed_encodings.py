"""A program: encodings that are killed, each gone on with until its end; says in a JSON line how each ended.

Each is a fork of this process, which has loaded PyTorch and run nothing.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import random
import sys
from pathlib import Path

import pyarrow.parquet
from changes_to_files import before_each
from children import forked, kill

from spanbert_kernels.scale import DocumentEncoder, Wanted, encode


def main(lines: Path, model: str, folder: Path, kills: int, workers: int) -> None:
    assert pyarrow.parquet
    assert DocumentEncoder
    rng = random.Random(workers)

    def encoding(output: Path, at: float, of_changes: bool) -> None:
        """Killed before a change to a file, or after a document, of that number."""
        moments = itertools.count()

        def end() -> None:
            if next(moments) >= at:
                kill()

        options = {"workers": workers, "batch_tokens": 64, "shard_documents": 8, "threads": 1}
        if of_changes:
            with before_each(output, end):
                encode(lines, model, output, Wanted(), **options)
        else:
            encode(lines, model, output, Wanted(), hear=lambda progress: end(), **options)

    for number in range(kills):
        output, of_changes = folder / str(number), bool(number % 2)
        heard = 60 if workers == 1 else 8  # from others, of each shard at least
        first, second = rng.randrange(20 if of_changes else heard), rng.randrange(60)
        codes = [
            forked(functools.partial(encoding, output, at, changes))
            for at, changes in ((first, of_changes), (second, False), (math.inf, False))
        ]
        print(json.dumps({"folder": str(output), "codes": codes}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
