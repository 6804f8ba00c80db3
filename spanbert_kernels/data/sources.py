"""What a user names: a file, a folder of files, or several of either."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TypeVar

from spanbert_kernels.data.counts import left_out

Item = TypeVar("Item")
Source = Path | Sequence[Path]


def paths_of(source: Source) -> list[Path]:
    """The paths as they were named."""
    return [source] if isinstance(source, Path) else list(source)


def name_of(source: Source) -> str:
    """For messages.

    Example:
        >>> name_of([Path("a.txt"), Path("b.txt"), Path("c.txt")])
        'a.txt and 2 more'
    """
    first, *more = paths_of(source)
    return f"{first} and {len(more)} more" if more else str(first)


def files_of(source: Source, suffixes: Collection[str]) -> list[Path]:
    """The files that are named, and those with one of the suffixes in the folders that are, sorted.

    Of a folder, what is hidden and what is no file (pipes, folders) is passed over; files of other kinds are counted.

    Raises:
        ValueError: a folder has no such file.
    """
    found = []
    for path in paths_of(source):
        if not path.is_dir():
            found.append(path)
            continue
        inside = [each for each in sorted(path.iterdir()) if each.name[0] != "." and each.is_file()]
        files = [each for each in inside if _ends(each, suffixes)]
        if not files:
            raise ValueError(f"{path}: the folder holds no file that ends in {', '.join(sorted(suffixes))}")
        left_out("file", "of another kind", len(inside) - len(files))
        found += files
    return found


def _ends(path: Path, suffixes: Collection[str]) -> bool:
    return path.name.lower().endswith(tuple(suffixes))


def some(found: list[Item], source: Source) -> list[Item]:
    """What was read, to train or score on.

    Raises:
        ValueError: that is nothing; the message names the file.
    """
    if not found:
        raise ValueError(f"{name_of(source)}: there is nothing to train or score on")
    return found
