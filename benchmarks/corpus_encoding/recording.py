"""The record of encodings: one JSON file, written after each measurement; what is there is not measured again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spanbert_kernels.cli import checkout, environment
from spanbert_kernels.tasks import atomic

CODE = ("spanbert_kernels", "csrc", "benchmarks/corpus_encoding")  # what a result depends on
KIND = "corpus encoding"
KEY = ("what", "mix", "documents", "engine", "workers", "model")


def commit() -> str:
    """The last commit that changed the code."""
    return checkout.commit(*CODE)


def newest() -> Path | None:
    """The newest record."""
    found = sorted(checkout.RESULTS.glob("*-corpus-*.json"))
    return found[-1] if found else None


def load(path: Path | None) -> dict[str, Any]:
    """What a record holds; of one that is not there, nothing."""
    if path is None or not path.exists():
        return {"kind": KIND, "measurements": []}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def key(measurement: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a measurement has in common with one that is the same again."""
    return tuple(measurement.get(name) for name in KEY)


def known(record: Mapping[str, Any], measurement: Mapping[str, Any]) -> bool:
    """Was the same measured, with code that can be had again?

    Example:
        >>> there = {"measurements": [{"what": "encode", "documents": 10, "commit": "abc"}]}
        >>> known(there, {"what": "encode", "documents": 10, "commit": "abc"})
        True
        >>> known(there, {"what": "encode", "documents": 10, "commit": "def"})
        False
        >>> known({"measurements": [{"what": "encode", "commit": "abc+"}]}, {"what": "encode", "commit": "abc+"})
        False
    """
    if measurement["commit"].endswith("+") or measurement["commit"] == checkout.UNKNOWN:
        return False
    wanted = (key(measurement), measurement["commit"])
    return any((key(each), each["commit"]) == wanted for each in record["measurements"])


def largest(record: Mapping[str, Any]) -> int:
    """Documents of the largest plan that a record has measurements of."""
    return max((each["plan"] for each in record["measurements"]), default=0)


def add(path: Path, measurement: Mapping[str, Any]) -> None:
    """Writes a measurement into the record, in the place of an older one of the same and of all of smaller plans."""
    record = load(path)
    rest = [
        each for each in record["measurements"] if key(each) != key(measurement) and each["plan"] >= measurement["plan"]
    ]
    record |= {"kind": KIND, "machine": environment.machine(), "versions": environment.versions()}
    record["measurements"] = [*rest, dict(measurement)]
    atomic.write_text(path, json.dumps(record, indent=1) + "\n")
