"""The record of least times: what every row needed before and needs now, with the constants of the card."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from .card import OF_BANDWIDTH, OF_PIPES, Card
from .rows import LaunchRoof, RoofRow

RESULTS = Path(__file__).resolve().parents[1] / "results"
MAY_GROW = 1.05
MAY_NARROW = 0.02  # of the bytes that go 16 bytes a thread


def newest() -> Path:
    """The newest record's file."""
    found = sorted(RESULTS.glob("*-roof-sm*.json"))
    if not found:
        raise FileNotFoundError(f"{RESULTS} holds no record of least times")
    return found[-1]


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 1 if abs(value) >= 1 else 3)
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}
    return value


@dataclass(frozen=True)
class MeasuredRows:
    """What rows took on a GPU, in microseconds, by name."""

    gpu: str
    file: str
    rows: Mapping[str, float]


def measured() -> MeasuredRows | None:
    """Of the newest record of a GPU that has such rows."""
    for path in sorted(RESULTS.glob("*-gpu.json"), reverse=True):
        found = json.loads(path.read_text(encoding="utf-8"))
        if rows := found.get("roof"):
            took = {name: row["measured"] for name, row in rows.items()}
            return MeasuredRows(found["machine"].get("gpu", "a GPU"), path.name, took)
    return None


def row_as_json(row: RoofRow) -> dict[str, Any]:
    launches = [
        {name: _rounded(value) for name, value in vars(each).items() if value not in (0, (0, 0), {})}
        for each in row.launches
    ]
    return {
        "goal": row.goal,
        "most launches": row.most_launches,
        "floor": _rounded(row.floor),
        "least": _rounded(row.least),
        "predicted": _rounded(row.predicted),
        "waits": row.waits,
        "launches": launches,
    }


def row_of_json(name: str, found: Mapping[str, Any]) -> RoofRow:
    launches = [dict(each) for each in found["launches"]]
    for each in launches:
        each["programs"] = tuple(each.get("programs", (0, 0)))
    made = tuple(LaunchRoof(**{"memory": 0.0, **each}) for each in launches)
    return RoofRow(name, found["goal"], found["most launches"], found["floor"], made, found["waits"])


@dataclass(frozen=True)
class RoofRecord:
    """A record in a file."""

    path: Path
    content: dict[str, Any]

    def rows(self, when: str) -> dict[str, RoofRow]:
        """Of `before` or `now`, by name."""
        found = self.content.get(when, {}).get("rows", {})
        return {name: row_of_json(name, row) for name, row in found.items()}

    @property
    def is_of_this_triton(self) -> bool:
        """Whether the Triton that is installed compiles as it was compiled then."""
        return bool(self.content["triton"] == version("triton"))

    def keep(self, when: str, row: RoofRow, order: list[str]) -> None:
        """Put a row in the place of its predecessor, in the order of the table."""
        rows = self.content.setdefault(when, {}).setdefault("rows", {})
        rows[row.name] = row_as_json(row)
        self.content[when]["rows"] = {name: rows[name] for name in order if name in rows}

    def write(self) -> None:
        self.path.write_text(json.dumps(self.content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load(path: Path) -> RoofRecord:
    return RoofRecord(path, json.loads(path.read_text(encoding="utf-8")))


def new_record(path: Path, card: Card) -> RoofRecord:
    about = "Predicted from compiled code, in microseconds; nothing was measured."
    assumed = {"of the memory's rate": OF_BANDWIDTH, "of the busiest pipe": OF_PIPES}
    return RoofRecord(path, {"about": about, "triton": version("triton"), "card": asdict(card), "reached": assumed})


def complaints(row: RoofRow, kept: RoofRow) -> Iterator[str]:
    """What of a row is worse than in the record: its least time, spilled registers, copies of fewer than 16 bytes."""
    if row.least > MAY_GROW * kept.least:
        yield f"{row.name}: takes {row.least:.1f} microseconds at least, {kept.least:.1f} in the record"
    if row.most_launches is not None and len(row.launches) > row.most_launches:
        yield f"{row.name}: {len(row.launches)} launches, {row.most_launches} were asked for"
    spilled, copied = _by_kernel(kept)
    for launch in row.launches:
        before = spilled.get(launch.name, 0)
        if launch.spilled > before:
            yield f"{row.name}: {launch.name} spills {launch.spilled} bytes, {before} in the record"
        for way, part in copied.get(launch.name, {}).items():
            now = launch.copies.get(way, 1.0)
            if now < part - MAY_NARROW:
                yield f"{row.name}: {launch.name} moves {now:.0%} by {way} of 16 bytes, {part:.0%} in the record"


def _by_kernel(row: RoofRow) -> tuple[dict[str, int], dict[str, dict[str, float]]]:
    """The bytes that each kernel spills, and the least part of its bytes that goes 16 bytes a thread."""
    spilled: dict[str, int] = {}
    copied: dict[str, dict[str, float]] = {}
    for launch in row.launches:
        spilled[launch.name] = max(spilled.get(launch.name, 0), launch.spilled)
        own = copied.setdefault(launch.name, {})
        for way, part in launch.copies.items():
            own[way] = min(own.get(way, 1.0), part)
    return spilled, copied
