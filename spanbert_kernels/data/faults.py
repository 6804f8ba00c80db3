"""What is wrong with a data file: errors and warnings that begin with the file and, where there is one, the line."""

from __future__ import annotations

import warnings
from pathlib import Path


class DataFault(ValueError):
    """A line of a data file that cannot be used; the message begins with file and line.

    Example:
        >>> print(DataFault(Path("train.conll"), 3, "a word and its label are wanted"))
        train.conll, line 3: a word and its label are wanted
    """

    def __init__(self, path: Path, line: int, reason: str) -> None:
        super().__init__(f"{path}, line {line}: {reason}")
        self.path, self.line, self.reason = path, line, reason


class NotAFile(ValueError):
    """A path that is not read; the reason follows its name."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} {reason}")
        self.path, self.reason = path, reason


class NotText(DataFault):
    """A file that is not text in an encoding that is read; the reason names the byte."""


class DataWarning(UserWarning):
    """Something in a data file that can be used in part only; the message begins with the file."""


def warn(text: str) -> None:
    """Warns of something in the user's data; the text begins with the file."""
    warnings.warn(text, DataWarning, stacklevel=3)
