"""Choices by measurement: what decides, what is kept in a file, and what goes wrong with that file."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from spanbert_kernels.ops import measured
from spanbert_kernels.ops.backends import BackendUnavailable
from spanbert_kernels.ops.measured import Candidate, Choice

VARIABLE = "CHOICE_OF_AN_EXAMPLE"
PLAIN, QUICK = "plain", "quick"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own, no variable, and a registry that is as it was."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(measured, "_choices", {})
    measured._warn.cache_clear()
    yield tmp_path / "spanbert_kernels" / "choices"
    measured._warn.cache_clear()


class Clock:
    """Ways that take as long as they are said to, on a clock that nothing else moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.prepared: list[str] = []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def candidate(self, name: str, seconds: float, refusal: str | None = None) -> Candidate:
        def wait() -> None:
            self.now += seconds

        def prepare() -> Callable[[], None]:
            self.prepared.append(name)
            return wait

        return Candidate(prepare, lambda: refusal)

    def choice(self, plain: float, quick: float, refusal: str | None = None) -> Choice:
        ways = {PLAIN: self.candidate(PLAIN, plain), QUICK: self.candidate(QUICK, quick, refusal)}
        return Choice("an example", VARIABLE, ways)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.mark.parametrize(
    ("plain", "quick", "text"),
    [
        (2.0, 1.0, "quick (2.0x plain, measured)"),
        (1.31, 1.0, "quick (1.3x plain, measured)"),
        (1.29, 1.0, "plain (measured)"),
        (1.0, 2.0, "plain (measured)"),
    ],
)
def test_another_way_is_taken_for_a_gain_that_no_luck_gives(
    clock: Clock, plain: float, quick: float, text: str
) -> None:
    assert str(clock.choice(plain, quick)) == text


def test_a_disturbed_turn_decides_nothing(clock: Clock) -> None:
    turns = iter([0.0, *[1.0] * (measured.ROUNDS - 1), 1000.0])
    choice = clock.choice(2.0, 0.0)

    def disturbed() -> None:
        clock.now += next(turns)

    choice.candidates[QUICK] = Candidate(lambda: disturbed)
    assert choice.found() == (QUICK, "measured", 2.0)


def test_it_is_measured_once_a_machine(clock: Clock, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = clock.choice(2.0, 1.0)
    assert first.found() == first.found() == (QUICK, "measured", 2.0)
    assert clock.prepared == [PLAIN, QUICK]
    later = clock.choice(1.0, 1.0)  # what another process would measure now
    assert later.found() == (QUICK, "measured", 2.0)
    assert clock.prepared == [PLAIN, QUICK]
    (path,) = cache.iterdir()
    record = json.loads(path.read_text())
    assert (record["choice"], record["way"], record["gain"]) == ("an example", QUICK, 2.0)
    assert record["threads"] == torch.get_num_threads()
    monkeypatch.setattr(measured, "processor", lambda: "another")
    assert clock.choice(1.0, 1.0).found().way == PLAIN
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("change", ["torch", "spanbert_kernels", "threads", "settings"])
def test_what_was_measured_elsewhere_does_not_count(clock: Clock, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert clock.choice(2.0, 1.0).found().way == QUICK
    changes: dict[str, Callable[[], None]] = {
        "torch": lambda: monkeypatch.setattr(torch, "__version__", "1.0"),
        "spanbert_kernels": lambda: monkeypatch.setattr("spanbert_kernels.__version__", "0.0"),
        "threads": lambda: monkeypatch.setattr(torch, "get_num_threads", lambda: 99),
        "settings": lambda: monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2"),
    }
    changes[change]()
    assert clock.choice(1.0, 1.0).found().way == PLAIN


def test_a_variable_decides(clock: Clock, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = clock.choice(2.0, 1.0)
    monkeypatch.setenv(VARIABLE, PLAIN)
    assert str(choice) == f"plain (set by {VARIABLE})"
    assert clock.prepared == []
    assert not cache.exists()
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(ValueError, match=rf"^{VARIABLE} must be one of plain, quick, measure, got 'fast'$"):
        choice.found()
    monkeypatch.setenv(VARIABLE, "")
    assert choice.found().way == QUICK


def test_a_variable_asks_for_a_way_that_cannot_be(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, QUICK)
    with pytest.raises(BackendUnavailable, match=f"^{VARIABLE}=quick cannot be taken here: no such instruction$"):
        clock.choice(2.0, 1.0, "no such instruction").found()


def test_a_variable_has_it_measured_again(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    assert clock.choice(2.0, 1.0).found().way == QUICK
    monkeypatch.setenv(VARIABLE, measured.MEASURE)
    assert clock.choice(1.0, 1.0).found().way == PLAIN
    monkeypatch.delenv(VARIABLE)
    assert clock.choice(2.0, 1.0).found().way == PLAIN


def test_one_way_alone_is_not_measured(clock: Clock, cache: Path) -> None:
    assert str(clock.choice(2.0, 1.0, "no such instruction")) == "plain (the only one here)"
    assert clock.prepared == []
    assert not cache.exists()


def _becomes_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def damages() -> dict[str, Callable[[Path], None]]:
    def changed(**values: Any) -> Callable[[Path], None]:
        return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **values})) and None

    return {
        "empty": lambda path: path.write_bytes(b""),
        "cut": lambda path: path.write_bytes(path.read_bytes()[:-5]),
        "no text": lambda path: path.write_bytes(b"\xff\xfe"),
        "a list": lambda path: path.write_text("[1]"),
        "no such way": changed(way="slow"),
        "no way": changed(way=["quick"]),
        "no number": changed(gain="much"),
        "another machine's": changed(processor="another"),
        "a folder": _becomes_a_folder,
    }


@pytest.mark.parametrize("damage", damages())
def test_a_damaged_file_is_written_anew(clock: Clock, cache: Path, damage: str) -> None:
    clock.choice(2.0, 1.0).found()
    (path,) = cache.iterdir()
    damages()[damage](path)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert clock.choice(1.0, 1.0).found().way == PLAIN
    if damage == "a folder":
        assert len(said) == 1
    else:
        assert said == []
        assert clock.choice(2.0, 1.0).found().way == PLAIN
    assert [each.name for each in cache.iterdir()] == [path.name]


@pytest.mark.parametrize("where", ["a file", "no home"])
def test_a_cache_that_cannot_be_written_is_said_once(
    clock: Clock, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if where == "a file":
        (tmp_path / "spanbert_kernels").write_text("")
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")

        def nobody(self: Path) -> Path:
            raise RuntimeError("Could not determine home directory.")

        monkeypatch.setattr(Path, "expanduser", nobody)
    with pytest.warns(UserWarning, match=f"cannot be kept.*set {VARIABLE}, or XDG_CACHE_HOME") as said:
        ways = [clock.choice(2.0, 1.0).found().way for _ in range(2)]
    assert (ways, len(said)) == ([QUICK, QUICK], 1)


def test_who_writes_first_has_decided(clock: Clock) -> None:
    """A process that measured at the same time, and found otherwise, follows."""
    other = clock.choice(1.0, 1.0)

    def meanwhile() -> Callable[[], None]:
        other.found()
        return clock.candidate(QUICK, 1.0).prepare()

    late = Choice("an example", VARIABLE, {PLAIN: clock.candidate(PLAIN, 2.0), QUICK: Candidate(meanwhile)})
    assert late.found() == (PLAIN, "measured", 1.0)


def _found_in_a_process(way: str, queue: Any) -> None:
    candidates = {name: Candidate(lambda: lambda: None) for name in (PLAIN, QUICK)}
    measured.fastest_seconds = lambda functions: dict.fromkeys(functions, 1.0) | {way: 0.1}  # type: ignore[assignment]
    queue.put(Choice("an example", VARIABLE, candidates).found().way)


def test_processes_at_once_agree(cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    ways = [PLAIN, QUICK] * 3
    processes = [context.Process(target=_found_in_a_process, args=(way, queue)) for way in ways]
    for process in processes:
        process.start()
    found = {queue.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(60)
    assert len(found) == 1
    assert len(list(cache.iterdir())) == 1


def test_threads_at_once_measure_once(clock: Clock) -> None:
    choice = clock.choice(2.0, 1.0)
    threads = [threading.Thread(target=choice.found) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.prepared == [PLAIN, QUICK]


def test_what_a_checkpoint_recorded_is_kept_to(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = clock.choice(2.0, 1.0)
    assert measured.made() == {}
    assert choice.found().way == QUICK
    assert measured.made() == {"an example": QUICK}
    with measured.keeping({"an example": PLAIN, "of another version": "some"}):
        assert str(choice) == "plain (recorded in the checkpoint)"
        assert measured.made() == {"an example": PLAIN}
        monkeypatch.setenv(VARIABLE, QUICK)
        with pytest.warns(UserWarning, match=f"plain is what the checkpoint recorded, {VARIABLE} says quick"):
            assert choice.found().way == QUICK
        monkeypatch.delenv(VARIABLE)
    assert choice.found().way == QUICK


@pytest.mark.parametrize(("recorded", "why"), [(QUICK, "no such instruction"), ("slow", "no such way")])
def test_what_a_checkpoint_recorded_cannot_be(clock: Clock, recorded: str, why: str) -> None:
    choice = clock.choice(2.0, 1.0, "no such instruction")
    with (
        measured.keeping({"an example": recorded}),
        pytest.warns(UserWarning, match=f"{recorded} is what the checkpoint recorded, but .*: {why}") as said,
    ):
        assert choice.found().way == choice.found().way == PLAIN
    assert len(said) == 1


def test_measuring_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the random numbers nor in gradients."""
    from spanbert_kernels.ops import products

    before = torch.get_rng_state()
    monkeypatch.delenv(products.VARIABLE)
    choice = Choice("products float32", products.VARIABLE, products.CHOICE.candidates)
    with torch.inference_mode():
        assert choice.found().way in ("torch", "onednn")
    assert torch.equal(torch.get_rng_state(), before)
