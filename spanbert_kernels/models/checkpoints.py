"""Names of checkpoints: local folders, hub names, and short names for the published SpanBERT weights."""

from __future__ import annotations

import os
import re
from pathlib import Path

# The weights' own licence is CC BY-NC 4.0. They come without a vocabulary: it is that of cased BERT.
SHORT_NAMES = {
    "spanbert-base": "SpanBERT/spanbert-base-cased",
    "spanbert-large": "SpanBERT/spanbert-large-cased",
}
TOKENIZERS = {
    "spanbert-base": "bert-base-cased",
    "spanbert-large": "bert-large-cased",
    "SpanBERT/spanbert-base-cased": "bert-base-cased",
    "SpanBERT/spanbert-large-cased": "bert-large-cased",
}
VOCABULARY_FILES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "spm.model", "spiece.model", "sentencepiece.bpe.model"),
)

_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def resolve_model(name: str | os.PathLike[str], subfolder: str = "") -> str:
    """The folder or hub name that a name stands for; `subfolder` is where in it the checkpoint lies.

    Raises:
        ValueError: the name looks like a short name, but is not one.
        FileNotFoundError: the name is a path that does not exist, or a folder without `config.json`.

    Example:
        >>> resolve_model("spanbert-base")
        'SpanBERT/spanbert-base-cased'
    """
    if Path(name).is_dir() and not Path(name, subfolder, "config.json").is_file():
        raise FileNotFoundError(f"folder {str(Path(name, subfolder))!r} holds no config.json, so it is no checkpoint")
    return _resolve(name, SHORT_NAMES)


def resolve_tokenizer(name: str | os.PathLike[str], subfolder: str = "") -> str:
    """The folder or hub name whose vocabulary belongs to a checkpoint; `subfolder` is where in it that lies.

    Raises:
        ValueError: the name looks like a short name, but is not one.
        FileNotFoundError: the name is a path that does not exist, or a folder without a vocabulary.

    Example:
        >>> resolve_tokenizer("SpanBERT/spanbert-large-cased")
        'bert-large-cased'
    """
    if Path(name).is_dir() and not any(Path(name, subfolder, file).is_file() for file in VOCABULARY_FILES):
        raise FileNotFoundError(
            f"folder {str(Path(name, subfolder))!r} holds no vocabulary ({' or '.join(VOCABULARY_FILES)}); SpanBERT's "
            "released weights come without one and go with cased BERT's: copy its vocab.txt there, or load the "
            "tokenizer by the name 'spanbert-base' or 'bert-base-cased'"
        )
    return _resolve(name, TOKENIZERS)


def what_would_work() -> str:
    """The kinds of name that a checkpoint can be given by, for error messages."""
    return f"a local folder, a hub name such as 'bert-base-cased', or one of {', '.join(map(repr, SHORT_NAMES))}"


def _resolve(name: str | os.PathLike[str], known: dict[str, str]) -> str:
    text = os.fspath(name)
    if os.path.exists(text):
        return text
    if text in known:
        return known[text]
    if re.fullmatch(r"span-?bert[\w.-]*", text, re.IGNORECASE):
        raise ValueError(f"no checkpoint is called {text!r}: give {what_would_work()}")
    if isinstance(name, os.PathLike) or not _HUB_NAME.fullmatch(text):
        raise FileNotFoundError(f"there is no folder {text!r}: give {what_would_work()}")
    return text
