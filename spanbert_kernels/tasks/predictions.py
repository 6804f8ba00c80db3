"""Lines of predictions, which name their file where there are several."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class Lines:
    """Makes lines of predictions on things that were read from those files.

    Example:
        >>> Lines([Path("a.txt")]).json(Path("a.txt"), label="good")
        '{"label": "good"}'
        >>> Lines([Path("a.txt"), Path("b.txt")]).json(Path("a.txt"), label="good")
        '{"file": "a.txt", "label": "good"}'
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        found = list(paths)
        self.several, self.alone = len(set(found)) > 1, len(found) == 1

    def json(self, path: Path, **fields: Any) -> str:
        """A JSON object."""
        return json.dumps(({"file": _name(path)} if self.several else {}) | fields, ensure_ascii=False)

    def of_files(self, paths: Iterable[Path], **fields: Any) -> str:
        """A JSON object about things in several files.

        Example:
            >>> Lines([Path("a.txt"), Path("b.txt")]).of_files([Path("b.txt"), Path("b.txt")], mentions=[])
            '{"files": ["b.txt"], "mentions": []}'
        """
        named = {"files": list(dict.fromkeys(map(_name, paths)))} if self.several else {}
        return json.dumps(named | fields, ensure_ascii=False)

    def comments(self, path: Path) -> list[str]:
        """What stands above a sentence of columns: a line, or none where there is one file."""
        return [f"# file = {_name(path)}"] if self.several else []


def _name(path: Path) -> str:
    """What UTF-8 cannot hold of a file's name is replaced; a line break in it is a space."""
    return " ".join(os.fsencode(path).decode("utf-8", errors="replace").splitlines())
