"""Choices between ways that are equally right, by a measurement of milliseconds on the machine at hand.

What was measured once holds for every later run with the same processor, settings and versions: it is kept in a file, a
file a choice, and who writes it first has decided. So two runs do not differ in bits because one was disturbed while it
measured. An environment variable comes before it, and so does what a checkpoint recorded.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

import spanbert_kernels
from spanbert_kernels.ops.backends import BackendUnavailable

MEASURE = "measure"
GAIN = 1.3  # below it the first way stays: a choice that depends on luck is worth little
ROUNDS = 7
# What changes the speed of a way without being a property of the machine.
_SETTINGS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")

_ARM_NAMES = ("CPU implementer", "CPU part", "CPU variant")


def _always() -> str | None:
    return None


class Candidate(NamedTuple):
    """One way.

    Attributes:
        prepare: makes inputs, and gives the function that is timed; it draws from no generator of torch's own.
        refusal: why the way cannot be taken here, or None.
    """

    prepare: Callable[[], Callable[[], object]]
    refusal: Callable[[], str | None] = _always


class Found(NamedTuple):
    """A way and how it came to be the one.

    Attributes:
        way: its name.
        reason: "measured", or who decided.
        gain: time of the first way over its own, where that was measured.
    """

    way: str
    reason: str
    gain: float | None = None


class Choice:
    """A named choice. It is made when it is first asked for, and stays what it is while the process lives.

    Args:
        name: what is chosen, such as "products float32"; one of its kind, and the same in every version.
        variable: the environment variable that may say the way, or "measure", to measure again.
        candidates: the ways by name; the first one stays where no other takes at most 1 / 1.3 of its time.

    Example:
        >>> ways = {"plain": Candidate(lambda: lambda: None), "quick": Candidate(lambda: None, lambda: "not here")}
        >>> Choice("example", "EXAMPLE", ways).found()
        Found(way='plain', reason='the only one here', gain=None)
    """

    def __init__(self, name: str, variable: str, candidates: Mapping[str, Candidate]) -> None:
        self.name = name
        self.variable = variable
        self.candidates = dict(candidates)
        self.latest: Found | None = None
        self._found: dict[tuple[str, str | None], Found] = {}
        self._lock = threading.Lock()
        _choices[name] = self

    def found(self) -> Found:
        """The way to take.

        Raises:
            ValueError: the environment variable names no way.
            BackendUnavailable: it names one that cannot be taken here.
        """
        key = os.environ.get(self.variable, ""), _recorded.get(self.name)
        found = self._found.get(key)
        if found is None:
            with self._lock:
                found = self._found.get(key) or self._find(*key)
                self._found[key] = found
        self.latest = found
        return found

    def _find(self, wish: str, recorded: str | None) -> Found:
        if wish and wish != MEASURE:
            if wish not in self.candidates:
                raise ValueError(
                    f"{self.variable} must be one of {', '.join([*self.candidates, MEASURE])}, got {wish!r}"
                )
            reason = self.candidates[wish].refusal()
            if reason is not None:
                raise BackendUnavailable(f"{self.variable}={wish} cannot be taken here: {reason}")
            if recorded not in (None, wish):
                _warn(f"{self.name}: {recorded} is what the checkpoint recorded, {self.variable} says {wish}")
            return Found(wish, f"set by {self.variable}")
        able = [way for way, candidate in self.candidates.items() if candidate.refusal() is None]
        if recorded in able:
            return Found(recorded, "recorded in the checkpoint")
        if recorded is not None:
            refusal = self.candidates[recorded].refusal if recorded in self.candidates else lambda: "no such way"
            _warn(f"{self.name}: {recorded} is what the checkpoint recorded, but it cannot be taken here: {refusal()}")
        if len(able) == 1:
            return Found(able[0], "the only one here")
        return self._measured(able, again=wish == MEASURE)

    def _measured(self, able: list[str], again: bool) -> Found:
        circumstances = {"choice": self.name, "ways": able, **_circumstances()}
        kept = None if again else _read(circumstances)
        if kept is not None:
            return kept
        seconds = fastest_seconds({way: self.candidates[way].prepare() for way in able})
        best = min(able, key=lambda way: seconds[way])
        way = best if seconds[able[0]] >= GAIN * seconds[best] else able[0]
        found = Found(way, "measured", seconds[able[0]] / seconds[way])
        try:
            return _keep(circumstances, found, again)
        except (OSError, RuntimeError) as error:  # the latter: no home folder
            _warn(
                "measured choices cannot be kept, so that a later run may choose otherwise: set "
                f"{self.variable}, or XDG_CACHE_HOME to a folder that can be written "
                f"({getattr(error, 'strerror', None) or error})"
            )
            return found

    def __str__(self) -> str:
        """The way and why, such as "onednn (1.9x torch, measured)"."""
        found = self.found()
        first = next((way for way, candidate in self.candidates.items() if candidate.refusal() is None), found.way)
        gain = "" if found.gain is None or found.way == first else f"{found.gain:.1f}x {first}, "
        return f"{found.way} ({gain}{found.reason})"


_choices: dict[str, Choice] = {}
_recorded: dict[str, str] = {}


def made() -> dict[str, str]:
    """The ways that were asked for in this process so far, by the choice's name: what a checkpoint records."""
    return {name: choice.latest.way for name, choice in sorted(_choices.items()) if choice.latest is not None}


@contextlib.contextmanager
def keeping(recorded: Mapping[str, str]) -> Iterator[None]:
    """While it lasts, the ways are those that `made` gave where a training began; one that cannot be warns.

    Example:
        >>> ways = {"plain": Candidate(lambda: lambda: None), "quick": Candidate(lambda: lambda: None)}
        >>> choice = Choice("example", "EXAMPLE", ways)
        >>> with keeping({"example": "quick"}):
        ...     str(choice)
        'quick (recorded in the checkpoint)'
    """
    before = dict(_recorded)
    _recorded.update(recorded)
    try:
        yield
    finally:
        _recorded.clear()
        _recorded.update(before)


def fastest_seconds(functions: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """The shortest time of each function: in turns, so that what disturbs a while disturbs all of them."""
    seconds = dict.fromkeys(functions, float("inf"))
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        for function in functions.values():
            function()
        for _ in range(ROUNDS):
            for way, function in functions.items():
                start = time.perf_counter()
                function()
                seconds[way] = min(seconds[way], time.perf_counter() - start)
    return seconds


def about_processor() -> dict[str, str]:
    """What Linux says of the first processor; nothing elsewhere."""
    with contextlib.suppress(OSError):
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
        return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    return {}


def processor() -> str:
    """The processor's name, or of what kind it is."""
    about = about_processor()
    name = about.get("model name") or " ".join(about[key] for key in _ARM_NAMES if key in about)
    return name or platform.processor() or platform.machine()


def _circumstances() -> dict[str, Any]:
    return {
        "processor": processor(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "spanbert_kernels": spanbert_kernels.__version__,
        "settings": {name: os.environ[name] for name in _SETTINGS if name in os.environ},
    }


def folder() -> Path:
    """Where measured choices are kept: in XDG_CACHE_HOME, by default ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "spanbert_kernels" / "choices"


def _path_of(circumstances: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(circumstances, sort_keys=True).encode()).hexdigest()[:16]
    return folder() / f"{circumstances['choice'].replace(' ', '-')}-{digest}.json"


def _read(circumstances: dict[str, Any]) -> Found | None:
    """What an earlier run measured under these circumstances; None where there is no file, or no whole one."""
    try:
        record = json.loads(_path_of(circumstances).read_text(encoding="utf-8"))
        found = Found(record.pop("way"), "measured", float(record.pop("gain")))
    except (OSError, RuntimeError, ValueError, AttributeError, KeyError, TypeError):
        return None
    return found if record == circumstances and found.way in circumstances["ways"] else None


def _keep(circumstances: dict[str, Any], found: Found, again: bool) -> Found:
    """Writes a measurement down, whole; gives the one that another process has written in the meantime, if any."""
    path = _path_of(circumstances)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(".partial", path.name, path.parent)
    aside = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump({**circumstances, "way": found.way, "gain": found.gain}, stream, indent=1)
        if not again:
            with contextlib.suppress(OSError):  # the file is there, or the file system has no links
                os.link(aside, path)
            other = _read(circumstances)
            if other is not None:
                return other
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return found


@functools.cache
def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=3)
