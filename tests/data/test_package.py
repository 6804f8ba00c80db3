"""What the readers stand on: the standard library, a parser and each other, so that no help text waits for PyTorch."""

from __future__ import annotations

from pathlib import Path

from test_house import PACKAGE, ROOT, imported_modules

HEAVY = {"torch", "transformers", "tokenizers", "numpy", "matplotlib"}


def test_readers_import_nothing_heavy_and_nothing_above_them() -> None:
    files = sorted(Path(ROOT / PACKAGE / "data").glob("*.py"))
    assert len(files) > 10
    for path in files:
        for name in imported_modules(path, ROOT):
            parts = name.split(".")
            assert parts[0] not in HEAVY, (path.name, name)
            assert parts[:2] in ([PACKAGE, "data"], [PACKAGE]) or parts[0] != PACKAGE, (path.name, name)
