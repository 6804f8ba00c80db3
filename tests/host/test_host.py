"""The host functions: both ways against the published procedure and the definitions; no PyTorch, no lock."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import children
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pruning import best, published, spans_to_prune

from spanbert_kernels import host
from spanbert_kernels.host import library

WAYS = (True, False)
Spans = tuple[list[int], list[int], list[float]]
needs_module = pytest.mark.skipif(host.load() is not None, reason=str(host.load()))


@pytest.fixture(params=WAYS, ids=["compiled", "numpy"])
def compiled(request: pytest.FixtureRequest) -> bool:
    if request.param and host.load() is not None:
        pytest.skip(str(host.load()))
    return bool(request.param)


def here() -> list[bool]:
    return [way for way in WAYS if not way or host.load() is None]


def arrays(spans: Spans) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    starts, ends, scores = spans
    return np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64) + 1, np.array(scores, dtype=np.float64)


@settings(max_examples=100, deadline=None)
@given(spans=spans_to_prune(), k=st.integers(0, 70))
def test_the_published_choice(spans: Spans, k: int) -> None:
    for way in here():
        kept = host.prune_spans(*arrays(spans), k, compiled=way)
        assert kept.dtype == np.int64
        assert kept.tolist() == published(*spans, k)
        assert host.prune_spans(*arrays(spans), k, False, compiled=way).tolist() == best(*spans, k)


@settings(max_examples=100, deadline=None)
@given(spans=spans_to_prune(), budgets=st.lists(st.integers(0, 20), min_size=1, max_size=4), data=st.data())
def test_budgets_of_documents(spans: Spans, budgets: list[int], data: st.DataObject) -> None:
    """A budget holds for its document. Spans of two documents share no token: apart, they are pruned alone."""
    starts, ends, scores = spans
    owner = data.draw(
        st.lists(st.integers(0, len(budgets) - 1), min_size=len(starts), max_size=len(starts)), label="documents"
    )
    shift = np.array(owner, dtype=np.int64) * 50
    from_, to, values = arrays(spans)
    expected = []
    for document, k in enumerate(budgets):
        rows = [row for row, each in enumerate(owner) if each == document]
        kept = published([starts[i] for i in rows], [ends[i] for i in rows], [scores[i] for i in rows], k)
        expected += [rows[i] for i in kept]
    documents = np.array(owner, dtype=np.int32)
    for way in here():
        kept_rows = host.prune_spans(
            from_ + shift, to + shift, values, np.array(budgets), documents=documents, compiled=way
        )
        assert kept_rows.tolist() == expected


def test_both_ways_agree_on_many_spans() -> None:
    """More than one block of the ranking, and spans of every width."""
    generator = np.random.default_rng(0)
    starts = generator.integers(0, 3000, 60_000)
    ends = np.minimum(starts + (generator.random(60_000) ** 8 * 3000).astype(np.int64) + 1, 3000)
    scores = generator.integers(0, 1000, 60_000).astype(np.float32)
    for k in (10, 900, 60_000):
        one, other = (host.prune_spans(starts, ends, scores, k, compiled=way) for way in (None, False))
        assert np.array_equal(one, other)
    order, expected = host.sort_spans(starts, ends, 3000), host.sort_spans(starts, ends, 3000, compiled=False)
    assert all(np.array_equal(a, b) for a, b in zip(order, expected, strict=True))


@settings(max_examples=100, deadline=None)
@given(spans=spans_to_prune(), extra=st.integers(0, 3))
def test_work_lists(spans: Spans, extra: int) -> None:
    from_, to, _ = arrays(spans)
    num_tokens = max(to.max(initial=0), from_.max(initial=0)) + extra
    # Sorted by Python, pair by pair.
    pairs = [(s, e) if e > s else (0, 0) for s, e in zip(from_.tolist(), to.tolist(), strict=True)]
    order = sorted(range(len(pairs)), key=lambda row: pairs[row])
    for way in here():
        starts, ends, rows = host.sort_spans(from_, to, num_tokens, compiled=way)
        assert rows.tolist() == order
        assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == [pairs[row] for row in order]
        first, reach = host.first_and_reach(starts, ends, num_tokens, compiled=way)
        assert {array.dtype for array in (starts, ends, rows, first, reach)} == {np.dtype(np.int64)}
        assert first.tolist() == [sum(starts[i] < t for i in range(len(starts))) for t in range(num_tokens + 1)]
        for t in range(num_tokens):
            late = [i for i in range(len(ends)) if ends[i] > t]
            assert reach[t] == min(late, default=len(ends))
            holders = [i for i in range(len(starts)) if starts[i] <= t < ends[i]]
            assert set(holders) <= set(range(reach[t], first[t + 1]))


def test_no_spans_and_no_tokens(compiled: bool) -> None:
    nothing = np.zeros(0, dtype=np.int64)
    assert [len(each) for each in host.sort_spans(nothing, nothing, 0, compiled=compiled)] == [0, 0, 0]
    first, reach = host.first_and_reach(nothing, nothing, 2, compiled=compiled)
    assert first.tolist() == [0, 0, 0]
    assert reach.tolist() == [0, 0]
    first, reach = host.first_and_reach(nothing, nothing, 0, compiled=compiled)
    assert first.tolist() == [0]
    assert reach.tolist() == []
    assert host.prune_spans(nothing, nothing, np.zeros(0), 3, compiled=compiled).tolist() == []


@pytest.mark.parametrize("scores", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("index", [np.int32, np.int64])
def test_dtypes_strides_and_inputs_left_alone(compiled: bool, index: Any, scores: Any) -> None:
    spans = np.array([[4, 6, -9], [0, 2, -9], [1, 3, -9], [5, 5, -9]], dtype=index)
    values = np.array([[1.0, np.nan], [2.0, np.nan], [3.0, np.nan], [0.0, np.nan]], dtype=scores)
    for array in (spans, values):
        array.setflags(write=False)
    kept = host.prune_spans(spans[:, 0], spans[:, 1], values[:, 0], 4, compiled=compiled)
    assert kept.tolist() == [2, 0, 3]
    starts, ends, rows = host.sort_spans(spans[:, 0], spans[:, 1], 6, compiled=compiled)
    assert rows.tolist() == [3, 1, 2, 0]
    first, reach = host.first_and_reach(starts.astype(index), ends.astype(index), 6, compiled=compiled)
    assert first.tolist() == [0, 2, 3, 3, 3, 4, 4]
    assert reach.tolist() == [1, 1, 2, 3, 3, 3]


def test_numbers_that_differ_in_float64_alone(compiled: bool) -> None:
    starts = np.arange(2)
    assert host.prune_spans(starts, starts + 1, np.array([1.0, 1.0 + 2e-16]), 1, compiled=compiled).tolist() == [1]


ONE, TWO = np.array([1]), np.array([0, 2])


@pytest.mark.parametrize(
    ("error", "text", "function", "arguments"),
    [
        (TypeError, "starts must be a numpy array, got list", "prune_spans", ([0], ONE, np.zeros(1), 1)),
        (TypeError, "ends must be int32 or int64, got float64", "prune_spans", (ONE, np.ones(1), np.zeros(1), 1)),
        (TypeError, "starts must be int32 or int64, got uint64", "sort_spans", (ONE.astype(np.uint64), ONE, 3)),
        (TypeError, "scores must be float16, float32 or float64, got int64", "prune_spans", (ONE, ONE, ONE, 1)),
        (TypeError, "scores must be a numpy array, got list", "prune_spans", (ONE, ONE, [0.0], 1)),
        (ValueError, r"starts must be one-dimensional, got \[1, 1\]", "sort_spans", (ONE[None], ONE, 3)),
        (ValueError, r"ends must be of shape \[1\], got \[2\]", "sort_spans", (ONE, TWO, 3)),
        (ValueError, r"scores must be of shape \[2\], got \[1\]", "prune_spans", (TWO, TWO, np.zeros(1), 1)),
        (ValueError, r"scores\[1\] is NaN", "prune_spans", (TWO, TWO, np.array([0, np.nan]), 1)),
        (ValueError, "k must be a whole number of at least 0, got -1", "prune_spans", (ONE, ONE, np.zeros(1), -1)),
        (ValueError, "k must be a whole number of at least 0, got 1.5", "prune_spans", (ONE, ONE, np.zeros(1), 1.5)),
        (ValueError, "k as an array needs documents", "prune_spans", (ONE, ONE, np.zeros(1), ONE)),
        (ValueError, "span 0 covers tokens -1 to 0", "prune_spans", (-ONE, ONE, np.zeros(1), 1)),
        (ValueError, "span 0 covers tokens 1 to 3, but there are 3", "sort_spans", (ONE, ONE + 3, 3)),
        (ValueError, "num_tokens must be a whole number of at least 0, got -1", "sort_spans", (ONE, ONE, -1)),
        (ValueError, "num_tokens must be a whole number", "first_and_reach", (ONE, ONE, -1)),
        (ValueError, r"starts\[1\] = 0 comes after 2", "first_and_reach", (TWO[::-1], TWO[::-1] + 1, 3)),
        (ValueError, "span 1 covers tokens 2 to 4, but there are 3", "first_and_reach", (TWO, TWO + 3, 3)),
    ],
)
def test_bad_arguments(
    compiled: bool, error: type[Exception], text: str, function: str, arguments: tuple[Any, ...]
) -> None:
    with pytest.raises(error, match=text):
        getattr(host, function)(*arguments, compiled=compiled)


@pytest.mark.parametrize(
    ("error", "text", "k", "documents"),
    [
        (ValueError, "documents need k as an array", 1, np.array([0, 0])),
        (ValueError, "k must be at least 0, got -3", np.array([1, -3]), np.array([0, 1])),
        (ValueError, r"documents\[1\] is 2, but k has 2 budgets", np.array([1, 3]), np.array([0, 2])),
        (ValueError, r"documents\[0\] is -1, but k has 2 budgets", np.array([1, 3]), np.array([-1, 2])),
        (ValueError, r"documents must be of shape \[2\], got \[1\]", np.array([1, 3]), np.array([0])),
        (TypeError, "k must be int32 or int64", np.array([1.0]), np.array([0, 0])),
    ],
)
def test_bad_budgets(compiled: bool, error: type[Exception], text: str, k: Any, documents: np.ndarray) -> None:
    with pytest.raises(error, match=text):
        host.prune_spans(TWO, TWO + 1, np.zeros(2), k, documents=documents, compiled=compiled)


def test_further_limits(compiled: bool) -> None:
    starts, ends, scores = np.array([0, 0, 1, 2]), np.array([1, 2, 2, 3]), np.array([1.0, 2.0, 3.0, 4.0])
    limits = [(np.array([0, 0, 1, 1], dtype=np.int32), np.array([1, 1])), (np.array([0, 1, 0, 0]), np.array([1, 1]))]
    assert host.prune_spans(starts, ends, scores, 9, limits=limits[:1], compiled=compiled).tolist() == [1, 3]
    assert host.prune_spans(starts, ends, scores, 9, limits=limits, compiled=compiled).tolist() == [1, 3]
    assert host.prune_spans(starts, ends, scores, 9, limits=limits[1:], compiled=compiled).tolist() == [1, 3]
    assert host.prune_spans(starts, ends, scores, 1, limits=limits, compiled=compiled).tolist() == [3]
    for groups, budgets, text in (
        (starts, np.array([1]), r"groups\[2\] is 1, but its limit has 1 budgets"),
        (starts, np.array([1, 1, -1]), "its limit must be at least 0, got -1"),
        (starts[:2], np.array([1]), r"groups must be of shape \[4\], got \[2\]"),
    ):
        with pytest.raises(ValueError, match=text):
            host.prune_spans(starts, ends, scores, 1, limits=[(groups, budgets)], compiled=compiled)


@needs_module
def test_the_module_itself_refuses_what_it_cannot_read() -> None:
    """Nothing reaches the C++ code that would be read out of bounds or copied in silence."""
    module, spans, scores = library.module(), np.arange(3), np.zeros(3)
    rest = (ONE, spans * 0, True, 100)
    for other in (spans.astype(np.int32), spans.astype(np.float64)):
        with pytest.raises(TypeError, match="has another dtype"):
            module.prune_spans(other, spans, scores, *rest)
    with pytest.raises(TypeError, match="scores has another dtype"):
        module.prune_spans(spans, spans, scores.astype(np.float16), *rest)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        module.prune_spans(spans, spans, scores, ONE, scores, *rest[2:])
    with pytest.raises(ValueError, match="scores must be one-dimensional, of length 3"):
        module.prune_spans(spans, spans, scores[:2], *rest)
    with pytest.raises(ValueError, match="documents must be one-dimensional, of length 3"):
        module.prune_spans(spans, spans, scores, ONE, spans[:2], *rest[2:])
    with pytest.raises(ValueError, match="groups must be one-dimensional, of length 3"):
        module.prune_spans(spans, spans, scores, *rest, [(spans[:2], ONE)])
    with pytest.raises(ValueError, match="ends must be one-dimensional, of length 3"):
        module.sort_spans(spans, spans[:2], 5)


@needs_module
def test_other_threads_run_meanwhile() -> None:
    """A call that kept the interpreter's lock would leave no other thread a turn between its first and last tenth.

    On a busy machine a call may pass without one; a lock that is kept lets none of ten have it.
    """
    count = 1_500_000
    starts = np.random.default_rng(0).integers(0, 100_000, count)
    arguments = (starts, starts + 7, np.zeros(count), np.array([count]), None, True, 10**6)
    prune, sort = library.module().prune_spans, library.module().sort_spans
    for call in (lambda: prune(*arguments), lambda: sort(starts, arguments[1], 100_010)):
        assert any(had_a_turn_during(call) for _ in range(10))


def had_a_turn_during(call: Callable[[], object]) -> bool:
    limits: list[float] = []

    def work() -> None:
        limits.append(time.perf_counter())
        call()
        limits.append(time.perf_counter())

    ticks: list[float] = []
    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(0.0005)
    begin, end = limits
    tenth = (end - begin) / 10
    return any(begin + tenth < tick < end - tenth for tick in ticks)


def test_without_the_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The reason is what the installation recorded, and numpy takes over."""
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    for module in (host, library):
        monkeypatch.setattr(module, "load", library.load.__wrapped__)
    assert "not installed by its setup.py" in str(host.load())
    (tmp_path / "build_info.json").write_text('{"cpu": [], "host": null, "host_reason": "no compiler"}')
    assert host.load() == "the host module was not built: no compiler"
    (tmp_path / "build_info.json").write_text('{"cpu": [], "host": "_host.cpython-39.so"}')
    assert host.load() == "the host module was not built: the installation built _host.cpython-39.so, which is gone"
    (tmp_path / "_host.cpython-39.so").write_bytes(b"")
    assert (
        host.load() == "the host module was not built: the installation built _host.cpython-39.so, for another Python"
    )
    assert host.prune_spans(TWO, TWO + 1, np.array([1.0, 2.0]), 1).tolist() == [1]
    with pytest.raises(RuntimeError, match="the host module was not built"):
        host.prune_spans(TWO, TWO + 1, np.zeros(2), 1, compiled=True)


@needs_module
def test_the_compiled_way_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "fallback", None)
    assert host.prune_spans(TWO, TWO + 1, np.array([1.0, 2.0]), 1).tolist() == [1]


def test_it_knows_nothing_of_torch() -> None:
    code = (
        "import sys, numpy as np\n"
        "from spanbert_kernels import host\n"
        "from spanbert_kernels.integrations import spacy\n"
        "host.load(), host.prune_spans(np.arange(3), np.arange(3) + 1, np.zeros(3), 2)\n"
        "print([name for name in ('torch', 'transformers', 'triton') if name in sys.modules])"
    )
    done = children.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
