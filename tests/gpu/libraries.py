"""Ends with status 0 if both compiled libraries are of the sources beside them and load here."""

from __future__ import annotations

import runpy
import sys
import unittest.mock
from pathlib import Path

from spanbert_kernels.ops import library

ROOT = Path(__file__).resolve().parents[2]


def refusals(sources: str) -> list[str]:
    """Why the libraries are not to be used, nothing if they are; `sources`: the hash of what lies in csrc."""
    built = library.build_info().get("sources")
    if built != sources:
        return [f"the libraries were built from sources {built}, here lie {sources}"]
    return [reason for reason in (library.load_cpu(), library.load_cuda()) if reason is not None]


if __name__ == "__main__":
    with unittest.mock.patch("setuptools.setup"):
        described = runpy.run_path(str(ROOT / "setup.py"))
    found = refusals(described["sources_hash"]())
    print("\n".join(found) or "the carried libraries load")
    sys.exit(bool(found))
