"""The record of the rows: one JSON file, written after each run; a run that is there already is not repeated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spanbert_kernels.cli import checkout, environment
from spanbert_kernels.tasks import atomic

CODE = ("spanbert_kernels", "csrc", "benchmarks/task_results")  # what a result depends on
KIND = "task results"
STILL = "without-dropout"  # ends the name of an encoder that has none


def commit() -> str:
    """The last commit that changed the code."""
    return checkout.commit(*CODE)


def newest(what: str = "tasks") -> Path | None:
    """The newest record."""
    found = [path for path in sorted(checkout.RESULTS.glob(f"*-{what}-*.json")) if load(path).get("kind") == KIND]
    return found[-1] if found else None


def load(path: Path) -> dict[str, Any]:
    """What a record holds; of one that is not there yet, nothing."""
    if not path.exists():
        return {"kind": KIND, "runs": []}
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def key(run: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a run has in common with one that is the same again."""
    names = ("row", "seed", "backend", "model", "steps asked", "options", "threads", "commit", "data")
    return tuple(json.dumps(run.get(name), sort_keys=True) for name in names)


def known(record: Mapping[str, Any], run: Mapping[str, Any], any_code: bool = False) -> bool:
    """Was the same done, by code that can be had again? With `any_code` that of another commit will do.

    Example:
        >>> done = {"row": "tagging", "seed": 0, "commit": "abc"}
        >>> known({"runs": [done]}, {"row": "tagging", "seed": 0, "commit": "abc"})
        True
        >>> known({"runs": [done | {"commit": "abc+"}]}, {"row": "tagging", "seed": 0, "commit": "abc+"})
        False
    """
    if run["commit"] == checkout.UNKNOWN or run["commit"].endswith("+"):
        return False
    there = [each for each in record["runs"] if not each["commit"].endswith("+")]
    if any_code:
        return any(key({**each, "commit": ""}) == key({**run, "commit": ""}) for each in there)
    return any(key(each) == key(run) for each in there)


def add(path: Path, run: Mapping[str, Any]) -> None:
    """Writes a run into the record, in the place of an older one of the same row, seed, path, encoder and steps."""
    record = load(path)
    same = ("row", "seed", "backend", "steps asked", "model")
    rest = [each for each in record["runs"] if any(each.get(name) != run.get(name) for name in same)]
    machine = environment.machine()
    record |= {"kind": KIND, "machine": machine, "versions": environment.versions()}
    record["runs"] = [*rest, {**run, "processor": machine["processor"]}]
    atomic.write_text(path, json.dumps(record, indent=1) + "\n")


def scored(record: Mapping[str, Any], row: str, backend: str = "auto") -> list[dict[str, Any]]:
    """The runs of a row that were scored, by seed."""
    runs = (each for each in record["runs"] if each["row"] == row and each["backend"] == backend)
    found = (each for each in runs if each["scores"])
    return sorted(found, key=lambda each: int(each["seed"]))


def of_steps(record: Mapping[str, Any], row: str, dropout: bool) -> dict[str, dict[str, Any]]:
    """The runs of a row that were timed, or compared without dropout, by backend."""
    found = (each for each in record["runs"] if each["row"] == row and each["steps asked"])
    return {each["backend"]: each for each in found if each["model"].endswith(STILL) != dropout}


def hours(record: Mapping[str, Any]) -> float:
    """Of all runs together."""
    return sum(float(run["seconds"]) for run in record["runs"]) / 3600
