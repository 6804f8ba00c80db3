"""A program: one encoding on the Ray that RAY_ADDRESS names, which says a line for each file that it made."""

from __future__ import annotations

import sys
from pathlib import Path

from spanbert_kernels.scale import Wanted, encode
from spanbert_kernels.scale.corpus import CorpusProgress


def main(lines: Path, model: str, output: Path) -> None:
    told = {0}

    def hear(progress: CorpusProgress) -> None:
        if progress.total.documents not in told:
            told.add(progress.total.documents)
            print(progress.total.documents, flush=True)

    options = {"engine": "ray", "workers": 2, "batch_tokens": 64, "shard_documents": 2, "tokenizers": 0}
    found = encode([lines], model, output, Wanted(), hear=hear, **options)
    assert found.manifest["documents"] == 60


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
