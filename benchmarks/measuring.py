"""What is recorded of a workload: the gate first, then times in turns, peaks, shares of the floor, goals."""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from goals import judge, judge_error, judge_peak
from memory import peak_megabytes
from registry import FORWARD, Ready, Suite, Unavailable, Workload, deviation, ready
from torch import Tensor

from spanbert_kernels import ops
from spanbert_kernels.acceleration.linears import linears_for
from spanbert_kernels.cli import environment
from spanbert_kernels.testing import assert_as_exact_as_eager, tolerance

QUICK = bool(os.environ.get("SPANBERT_KERNELS_BENCH_QUICK"))
QUICK_SECONDS = 1.0
MOST_ROUNDS = 101
SLOW_SECONDS = 1.0  # what takes longer is warm after its gate, which for all but ours counts as a round
WAITED = 0.8
VERY_SLOW_SECONDS = 5.0  # and as the only one
FAR = 3.0  # times of ours
SETTLING_SECONDS = 0.02  # in which the threads of another runtime's pool stop to spin
# A peer may round as it likes, but has to compute the same thing: deviations of the norm.
LARGEST_DEVIATION = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2, torch.int8: 1e-1}


class Refused(AssertionError):
    """The gate: the row is not recorded."""


@dataclass
class Measured:
    """A provider's figures while they are gathered."""

    kind: str
    way: Ready | None = None
    reason: str = ""
    first_seconds: float | None = None  # None where the first call says nothing
    error: float | None = None
    ran: str = ""
    times: list[float] | None = None
    ratios: Sequence[float] = ()  # to ours, round by round
    peak: float | None = None
    own_threads: bool = False


def _seconds(way: Callable[[], object]) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def assert_agrees(result: Tensor, eager: Tensor, reference: Tensor) -> float:
    """Holds our result to the tolerance rule; gives what it allows."""
    try:
        assert_as_exact_as_eager(result, reference, eager)
    except AssertionError as fault:
        raise Refused(f"ours: {fault}") from None
    return tolerance(reference, eager, result.dtype)


@dataclass
class Gated:
    """Every provider, compared with float64; our result, what its error may be, and the largest number of all."""

    found: dict[str, Measured]
    ours: Tensor
    allowed: float
    largest: float


def gate(suite: Suite, workload: Workload, refused: Mapping[str, str]) -> Gated:
    """Every provider's way, run once and compared with float64 in this run.

    Raises:
        Refused: our result is wrong.
        Unavailable: ours, or the eager way that says what it may be off by, cannot take the workload here.
    """
    exact_way = ready(suite, workload, suite.reference, torch.float64)
    exact = exact_way.results(exact_way.run())
    del exact_way
    found: dict[str, Measured] = {}
    ours = None
    plain: list[Tensor] = []
    for name, provider in suite.providers_of(workload).items():
        own_threads = provider.library != "torch"
        measured = found[name] = Measured(provider.kind, reason=refused.get(name, ""), own_threads=own_threads)
        if provider.converts and QUICK:
            measured.reason = "left out of a quick run"
        if measured.reason and provider.kind != "eager":  # whose error says what ours may be
            continue
        try:
            measured.way = ready(suite, workload, name)
            start, computed = time.perf_counter(), os.times().user
            with ops.backends.record() as calls:
                raw = measured.way.run()
            seconds = time.perf_counter() - start
            # One that waited for the system's memory most of the time says nothing either.
            alike = measured.way.timed is measured.way.run and not provider.compiles
            if alike and os.times().user - computed > WAITED * seconds:
                measured.first_seconds = seconds
        except Unavailable as reason:
            if provider.kind in ("ours", "eager"):
                raise Unavailable(f"{name}: {reason}") from None
            measured.reason, measured.way = str(reason), None
            continue
        measured.ran = ", ".join(sorted({f"{operation}: {backend}" for operation, backend in calls}))
        if provider.library != "torch":
            measured.ran = f"{provider.library} {importlib.metadata.version(provider.library)}"
        if provider.kind == "floor":
            continue
        result = measured.way.results(raw)
        del raw
        measured.error = float((result.double() - exact).abs().max())
        if provider.kind == "eager" or name in suite.yardsticks:
            plain.append(result)
        if provider.kind == "eager":
            measured.way = None if measured.reason else measured.way
        elif provider.kind == "ours":
            ours = result
        most, off = LARGEST_DEVIATION[workload.dtype], deviation(result, exact)
        if provider.kind == "peer" and not off <= most:
            measured.reason, measured.way = f"computes something else: {off:.2g} of the norm", None
    assert ours is not None, found["ours"].reason
    assert plain
    # One draw of rounding errors can be a lucky one.
    eager = max(plain, key=lambda each: float((each.double() - exact).abs().max()))
    return Gated(found, ours, assert_agrees(ours, eager, exact), float(exact.abs().max()))


def assert_still_agrees(way: Ready, first: Tensor, allowed: float) -> None:
    """What was right before it was timed is so afterwards."""
    off = float((way.results(way.run()).double() - first.double()).abs().max())
    if not off <= allowed:
        raise Refused(f"ours: after it was timed off by {off:.3g} from its first result, allowed {allowed:.3g}")


def least_rounds(once: float, ours: float) -> int:
    """Of a way that takes so many seconds: fewer where a ratio to ours needs no exact figure."""
    if once > VERY_SLOW_SECONDS:
        return 0
    slow, far = once > SLOW_SECONDS, once > FAR * ours
    return 3 - slow - far


def time_in_turns(found: Mapping[str, Measured], seconds: float, benchmark: Any) -> None:
    """Round by round, so that a slow minute hits all ways alike; slow ways leave after their share of the rounds."""
    ways = {name: measured for name, measured in found.items() if measured.way is not None}
    rounds: dict[str, int] = {}
    own = 0.0
    for name, measured in sorted(ways.items(), key=lambda each: each[0] != "ours"):
        assert measured.way is not None
        first = measured.first_seconds
        once = first if first is not None and first > SLOW_SECONDS else _seconds(measured.way.timed)
        own = own or once
        slow = once > SLOW_SECONDS
        measured.times = [once] if slow and name != "ours" else []
        least = 3 if name == "ours" else least_rounds(once, own)
        rounds[name] = min(max(int(seconds / len(ways) / max(once, 1e-6)), 1 if QUICK else least), MOST_ROUNDS)
    turn = 0

    def others() -> None:
        nonlocal turn
        for name, measured in ways.items():
            if name != "ours" and turn < rounds[name]:
                assert measured.way is not None
                assert measured.times is not None
                measured.times.append(_seconds(measured.way.timed))
                if measured.own_threads:
                    time.sleep(SETTLING_SECONDS)
        turn += 1

    mine = ways["ours"].way
    assert mine is not None
    benchmark.pedantic(mine.timed, setup=others, rounds=max(rounds.values()))
    of_ours = ways["ours"].times = list(benchmark.stats.stats.data)
    for name, measured in ways.items():
        assert measured.times is not None
        in_rounds = measured.times[len(measured.times) - rounds[name] :] if name != "ours" else []
        measured.ratios = [time / mine for time, mine in zip(in_rounds, of_ours, strict=False)]


def quartiles(values: Sequence[float]) -> list[float]:
    """The lower quartile, the median, the upper one."""
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3


def figures(measured: Measured, floor: float) -> dict[str, Any]:
    """A provider's entry in the record."""
    if measured.way is None or not measured.times:
        return {"kind": measured.kind, "unavailable": measured.reason}
    low, milliseconds, high = (1e3 * value for value in quartiles(measured.times))
    entry: dict[str, Any] = {
        "kind": measured.kind,
        "milliseconds": milliseconds,
        "quartiles": [low, high],
        "rounds": len(measured.times),
    }
    if measured.ratios:
        entry["ratio"] = quartiles(measured.ratios)
    if measured.kind == "floor":
        return entry
    return entry | {
        "error": measured.error,
        "peak": measured.peak,
        "share": floor / milliseconds,
        "ran": measured.ran or "PyTorch",
    }


def allowed_megabytes(suite: Suite, workload: Workload, spare: float) -> float:
    """Results beside the inputs, and a part of all that is read and written."""
    inputs = suite.inputs(workload, workload.dtype)
    way = ready(suite, workload, "ours")
    read = sum(leaf.numel() for leaf in inputs.leaves)
    written = sum(tensor.numel() for tensor in way.run())
    if workload.direction != FORWARD:  # the output and its gradient stand beside the leaves' gradients
        build = suite.providers["ours"].build(workload, inputs)
        assert callable(build)
        columns = build(*inputs.leaves).numel()
        read, written = read + columns, written + columns
    return (written + spare * (read + written)) * workload.dtype.itemsize / 1e6


def floor_of(moved: float, operations: float, dtype: str, ceilings: Mapping[str, float]) -> float:
    """Milliseconds that the fewest bytes or the fewest operations take at best, whichever is more."""
    rate = ceilings.get(f"{dtype}, GFLOP/s") or ceilings["float32, GFLOP/s"]
    if dtype == "int8":  # whose instructions multiply twice as many numbers as those for bfloat16
        rate = 2 * ceilings["bfloat16, GFLOP/s"]
    return max(moved / ceilings["copy, GB/s"], operations / rate) / 1e6


def measure(suite: Suite, workload: Workload, ceilings: Mapping[str, float], benchmark: Any) -> dict[str, Any]:
    """The row of a workload; raises `Refused` where our result is wrong."""
    start = time.perf_counter()
    peaks: dict[str, float | str] = {}
    suite.inputs(workload, workload.dtype)  # raises where the data are not there
    if not QUICK:  # while this process itself is small
        peaks = {n: peak_megabytes(suite.name, workload.id, n, workload.memory_limit) for n in workload.peaks}
    gated = gate(suite, workload, {name: peak for name, peak in peaks.items() if isinstance(peak, str)})
    found = gated.found
    for name, peak in peaks.items():
        found[name].peak = peak if isinstance(peak, float) else None
    time_in_turns(found, QUICK_SECONDS if QUICK else workload.seconds, benchmark)
    mine = found["ours"].way
    assert mine is not None
    again = mine if mine.repeatable else ready(suite, workload, "ours")
    assert_still_agrees(again, gated.ours, gated.allowed)
    work = suite.work(workload, suite.inputs(workload, workload.dtype))
    dtype = str(workload.dtype).removeprefix("torch.")
    floor = floor_of(work.bytes, work.operations, dtype, ceilings)
    providers = {name: figures(measured, floor) for name, measured in found.items()}
    providers["ours"]["allowed"] = gated.allowed
    goal = workload.peak_goal
    most = allowed_megabytes(suite, workload, goal.spare) if goal is not None and goal.spare is not None else None
    about = environment.machine()
    goals = [each for each in workload.goals if each.on is None or each.on.reported or each.on.holds(about)]
    verdicts = [judge(each, providers, about) for each in goals]
    verdicts += judge_error(workload.error_goal, providers["ours"]["error"], gated.largest)
    verdicts += judge_peak(goal, providers, most)
    gc.collect()
    return {
        "suite": suite.name,
        "workload": workload.name,
        "direction": workload.direction,
        "dtype": dtype,
        "device": "cpu",
        "axes": dict(work.axes),
        "scaling": workload.scaling,
        "curve": workload.curve,
        "bytes": work.bytes,
        "operations": work.operations,
        "floor": floor,
        "largest": gated.largest,
        "providers": providers,
        "seconds": time.perf_counter() - start,
        "goals": verdicts,
    }


def ceilings() -> dict[str, float]:
    """What this machine does at best, measured in this run: bytes of a copy, read and written; matrix products."""
    if known := os.environ.get("SPANBERT_KERNELS_BENCH_CEILINGS"):  # by another suite of the run
        return dict(json.loads(known))
    source = torch.ones(2**25)
    target = torch.empty_like(source)
    copy = min(_seconds(lambda: target.copy_(source)) for _ in range(5))
    found = {"copy, GB/s": 2 * source.nbytes / copy / 1e9}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(1024, 1024).to(dtype)
        linears = linears_for(dtype)  # by processor, another product than PyTorch's may be the fastest there is
        packed = linears.pack(a)
        ways = (lambda a=a: a @ a, lambda a=a, p=packed, by=linears: by.linear(a, p, None))
        with torch.no_grad():
            product = min(_seconds(way) for way in ways for _ in range(3))
        found[f"{str(dtype).removeprefix('torch.')}, GFLOP/s"] = 2 * 1024**3 / product / 1e9
    # Without instructions for bfloat16, converting and computing in float32 is faster.
    found["bfloat16, GFLOP/s"] = max(found["bfloat16, GFLOP/s"], found["float32, GFLOP/s"])
    return found
