"""A program: one encoding; prints the most memory of this process, and of one that it started, in bytes."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

from spanbert_kernels.scale import Wanted, encode

KILOBYTE = 1024  # what Linux counts in; a started process begins as large as this one


def main(lines: Path, model: str, output: Path, options: dict[str, Any]) -> None:
    wanted = Wanted.of(options)
    workers = options["workers"]
    found = encode(
        [lines], model, output, wanted, batch_tokens=2048, shard_documents=250, threads=1, workers=workers, tokenizers=1
    )
    peaks = (resource.getrusage(who).ru_maxrss * KILOBYTE for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(json.dumps({"documents": found.manifest["documents"], "rows": found.manifest["rows"], "peaks": [*peaks]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]))
