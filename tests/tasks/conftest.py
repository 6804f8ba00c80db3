from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_texts import sentences
from transformers.utils import logging


@pytest.fixture(autouse=True, scope="session")
def quiet() -> Iterator[None]:
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(before)


@pytest.fixture
def tagged_file(tmp_path: Path) -> Callable[..., Path]:
    """A CoNLL file of so many sentences."""

    def write(name: str, count: int, first: int = 0) -> Path:
        path = tmp_path / name
        blocks = ("\n".join(f"{word}\t{label}" for word, label in rows) for rows in sentences(count, first))
        path.write_text("\n\n".join(blocks) + "\n")
        return path

    return write
