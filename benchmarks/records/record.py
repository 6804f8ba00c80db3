"""The record of a benchmark run: one JSON file, what `bench` writes and `report`, `--compare` and the README read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spanbert_kernels.data.text import read_text

FORMAT = 1


class NotARecord(ValueError):
    """A file that holds no record; the message names the file."""


@dataclass(frozen=True)
class Entry:
    """A provider's figures on a workload, or why there are none.

    Attributes:
        kind: ours, eager, peer or floor.
        milliseconds: the median; `quartiles` the lower and the upper one, of so many `rounds` (0: not counted).
        ratio: times of ours in the same round, the lower quartile, the median and the upper one.
        error: largest distance from the float64 result, in this very run; `allowed` for ours.
        peak: megabytes beyond the inputs, where they were measured.
        share: of the floor, 1 where nothing can be faster on this machine.
        ran: the code that ran.
        replayed: milliseconds of a replayed CUDA graph, or why it cannot be captured.
    """

    kind: str
    milliseconds: float | None = None
    quartiles: tuple[float, float] = (0.0, 0.0)
    rounds: int = 0
    ratio: tuple[float, float, float] | None = None
    error: float | None = None
    allowed: float | None = None
    peak: float | None = None
    share: float | None = None
    ran: str = ""
    replayed: float | str | None = None
    unavailable: str = ""

    @property
    def time(self) -> float:
        """Milliseconds of a provider that has figures."""
        assert self.milliseconds is not None, self.unavailable
        return self.milliseconds

    @property
    def spread(self) -> float:
        """The quartiles' distance as a part of the median; half of it where one or two rounds tell nothing."""
        if self.rounds in (1, 2):
            return 0.5
        return (self.quartiles[1] - self.quartiles[0]) / self.milliseconds if self.milliseconds else 0.0


@dataclass(frozen=True)
class Row:
    """A workload and every provider's figures. `bytes` and `operations` are the fewest; `floor` their time in ms.

    `largest` is the largest number of the result, 0 where it was not kept; `seconds` how long it took to measure all.
    """

    suite: str
    workload: str
    direction: str
    dtype: str
    device: str
    axes: Mapping[str, float]
    scaling: str | None
    curve: str | None
    bytes: int
    operations: int
    floor: float
    providers: Mapping[str, Entry]
    goals: tuple[str, ...] = ()
    largest: float = 0.0
    seconds: float = 0.0

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What the same row of another record has in common."""
        return self.suite, self.workload, self.direction, self.dtype, self.device

    @property
    def title(self) -> str:
        return f"{self.workload}, {self.direction}, {self.dtype}"

    @property
    def ours(self) -> Entry:
        return self.providers["ours"]

    def is_ours(self, name: str) -> bool:
        """Also of our other backends and ways, which stand beside the one that is judged."""
        return self.providers[name].kind == "ours" or name.startswith("ours")

    @property
    def rivals(self) -> dict[str, Entry]:
        """Those with a time that a user could take instead, the fastest first; not our own other backends."""
        found = [
            (entry.milliseconds, name)
            for name, entry in self.providers.items()
            if entry.kind in ("eager", "peer") and entry.milliseconds is not None and not self.is_ours(name)
        ]
        return {name: self.providers[name] for _, name in sorted(found)}

    def speed_up(self, rival: str) -> float:
        """How many times the time of ours a rival takes, in the same round where rounds were kept."""
        entry = self.providers[rival]
        return entry.ratio[1] if entry.ratio else entry.time / self.ours.time

    def against_eager(self) -> list[float]:
        """The speed-ups over eager PyTorch."""
        return [self.speed_up(name) for name, entry in self.rivals.items() if entry.kind == "eager"]


@dataclass
class Record:
    """A run: rows, what failed, what was skipped and why, and what all of it was measured on."""

    date: str
    commit: str
    dirty: bool
    quick: bool
    seed: int
    seconds: float
    machine: dict[str, str]
    versions: dict[str, str]
    ceilings: dict[str, float]
    rows: list[Row] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    skipped: list[dict[str, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Date, processor or GPU, commit."""
        commit = f"commit {self.commit[:7]}{' and changes' if self.dirty else ''}"
        return f"{self.date}, {self.machine.get('gpu', self.machine['processor'])}, {commit}"


def row_of(made: Mapping[str, Any]) -> Row:
    """A row from its JSON."""
    entries = {}
    for name, entry in made["providers"].items():
        given: dict[str, Any] = {key: tuple(x) if isinstance(x, list) else x for key, x in entry.items()}
        entries[name] = Entry(**given)
    return Row(**{**made, "providers": entries, "goals": tuple(made["goals"])})


def dumps(record: Record) -> str:
    """The record as JSON, a provider a line: small, and readable where two versions differ."""

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    head = {name: getattr(record, name) for name in _HEAD}
    parts = [f' "{name}": {line(value)}' for name, value in {"format": FORMAT, **head}.items()]
    rows = []
    for row in record.rows:
        fields = {f.name: getattr(row, f.name) for f in dataclasses.fields(row) if f.name != "providers"}
        entries = [f"   {line(name)}: {line(_entry(entry))}" for name, entry in row.providers.items()]
        fields["axes"] = {name: _short(value) for name, value in row.axes.items()}
        fields |= {name: _short(fields[name]) for name in ("floor", "largest", "seconds")}
        rows.append(f'  {line(fields)[:-1]}, "providers": {{\n' + ",\n".join(entries) + "}}")
    parts.append(' "rows": [\n' + ",\n".join(rows) + "]")
    return "{\n" + ",\n".join(parts) + "}\n"


_HEAD = tuple(field.name for field in dataclasses.fields(Record) if field.name != "rows")


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _entry(entry: Entry) -> dict[str, Any]:
    """Without what is not there, and without digits that mean nothing."""
    defaults = {f.name: f.default for f in dataclasses.fields(entry)}
    found = {name: value for name, value in vars(entry).items() if value != defaults[name]}
    return {n: [_short(x) for x in v] if isinstance(v, tuple) else _short(v) for n, v in found.items()}


def load(path: Path) -> Record:
    """The record in a file; raises `NotARecord`, `OSError`, or what `read_text` raises."""
    text = read_text(path)
    try:
        made = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise NotARecord(f"{path} is not JSON: {error}") from None
    if not isinstance(made, dict) or "format" not in made:
        raise NotARecord(f"{path} is not a record of spanbert-kernels bench")
    if made["format"] != FORMAT:
        raise NotARecord(f"{path} has format {made['format']}; this version reads format {FORMAT}")
    try:
        return Record(**{name: made[name] for name in _HEAD}, rows=[row_of(row) for row in made["rows"]])
    except (KeyError, TypeError) as error:
        raise NotARecord(f"{path} lacks a part of a record: {error}") from None
