"""spaCy's documents, as `spacy train` reads them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any


def to_disk(documents: Iterable[dict[str, Any]], path: Path) -> None:
    """Writes documents, each as `Doc.to_json` has them, to a `DocBin`.

    Raises:
        ImportError: spaCy is not installed.
    """
    from spacy.tokens import Doc, DocBin
    from spacy.vocab import Vocab

    vocabulary = Vocab()
    DocBin(docs=[Doc(vocabulary).from_json(each) for each in documents]).to_disk(path)
