"""What vectors of a corpus are wanted: rows, pooling, precision."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

Rows = Literal["documents", "sentences", "spans"]
ROWS: tuple[Rows, ...] = ("documents", "sentences", "spans")
PARTS = ("start", "end", "mean", "sum", "max")  # of `span_pool`, those that no learned weight is needed for
# What sentence-transformers calls a way of pooling, and the part of `span_pool` that it is
_POOLING = {"mean": "mean", "cls": "start", "lasttoken": "end", "max": "max"}
_POOLING_MODES = {f"pooling_mode_{name}_token{'' if name == 'cls' else 's'}": name for name in ("mean", "cls", "max")}


@dataclass(frozen=True)
class Wanted:
    """What is to be made of documents; what it says goes into the vectors, all else only into how fast they come.

    Attributes:
        rows: a vector of each document, of each sentence in it, or of each span.
        width: spans are all those of so many words at most, as `tasks` split words; None: those that records bring.
        parts: what a vector is made of, as in `span_pool`; columns are in their order.
        normalize: whether vectors have length 1.
        max_length: tokens of a window, special ones counted; None for what the model holds. Longer documents are
            several windows, whose tokens make one vector.
        cut: whether only the first window of a document counts.
        half: whether vectors are written as floats of 16 bits.
        clusters: the field of a record that names its cluster: documents of one see each other, in a batch of columns
            wherever they stand, in a corpus where they stand in a row.
        text: the field that holds the text; None for the usual names.

    Raises:
        ValueError: a value that means nothing, or two that contradict each other.

    Example:
        >>> Wanted("spans", width=3, parts=("start", "end")).columns(384)
        768
        >>> Wanted(parts=("middle",))
        Traceback (most recent call last):
        ...
        ValueError: parts: 'middle' is not one of start, end, mean, sum, max
    """

    rows: Rows = "documents"
    width: int | None = None
    parts: tuple[str, ...] = ("mean",)
    normalize: bool = False
    max_length: int | None = None
    cut: bool = False
    half: bool = False
    clusters: str | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        if self.rows not in ROWS:
            raise ValueError(f"rows must be one of {', '.join(ROWS)}, got {self.rows!r}")
        if self.width is not None and (self.rows != "spans" or self.width < 1):
            raise ValueError(f"width={self.width!r} is a number of words from 1 on, of rows='spans'")
        if not self.parts:
            raise ValueError(f"parts is empty; it takes any of {', '.join(PARTS)}")
        for part in self.parts:
            if part not in PARTS:
                raise ValueError(f"parts: {part!r} is not one of {', '.join(PARTS)}")
        if len(set(self.parts)) < len(self.parts):
            raise ValueError(f"parts: {list(self.parts)} names one twice")
        if self.max_length is not None and self.max_length < 3:
            raise ValueError(f"max_length={self.max_length} leaves no room between two special tokens")

    def columns(self, hidden_size: int) -> int:
        """Numbers in a vector."""
        return hidden_size * len(self.parts)

    def known(self) -> dict[str, Any]:
        """As values for JSON."""
        return {**asdict(self), "parts": list(self.parts)}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Wanted:
        """Of what `known` gave, or of options by name, of which it takes its own."""
        own = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        if "parts" in own:
            own["parts"] = tuple(own["parts"])
        return cls(**own)


def usual(model: str) -> dict[str, Any]:
    """How a folder's own files say that vectors of texts are made: those of sentence-transformers, where it has them.

    Args:
        model: a folder, or a hub name, of which nothing is known.

    Returns:
        Values for `Wanted`: `parts`, `normalize` and `max_length`, as far as they are said.

    Raises:
        ValueError: the folder pools in a way that `span_pool` has no part for.
    """
    folder = Path(model)
    found: dict[str, Any] = {}
    modules = _read(folder / "modules.json") or []
    kinds = {str(module.get("type", "")).rpartition(".")[2]: module for module in modules}
    if "Pooling" in kinds:
        settings = _read(folder / kinds["Pooling"].get("path", "") / "config.json") or {}
        modes = [name for key, name in _POOLING_MODES.items() if settings.get(key)]
        modes = modes or [str(settings.get("pooling_mode", "mean"))]
        if unknown := [mode for mode in modes if mode not in _POOLING]:
            raise ValueError(f"{model} pools by {unknown[0]!r}: say which of {', '.join(PARTS)} is wanted instead")
        found["parts"] = tuple(_POOLING[mode] for mode in modes)
        found["normalize"] = "Normalize" in kinds
    length = (_read(folder / "sentence_bert_config.json") or {}).get("max_seq_length")
    if isinstance(length, int):
        found["max_length"] = length
    return found


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
