"""A plan's lists on streams and in graphs of a GPU that is played: who has seen what, in which order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from spanbert_kernels.ops import AttentionPlan, SpanPlan, attention_plans, plans, streams
from spanbert_kernels.ops.attention.work import UNCOUNTED, AttentionWork


class Stream:
    def __init__(self, number: int) -> None:
        self.cuda_stream = number
        self.seen: set[int] = set()  # what happened before that which comes next on this stream

    def wait_event(self, event: Event) -> None:
        assert not CUDA.capturing, "a capture that waits for what is not part of it ends with an error"
        self.seen |= event.seen


class Event:
    def record(self, stream: Stream) -> None:
        self.seen = set(stream.seen)


class Cuda:
    Event = Event

    def __init__(self) -> None:
        self.stream = Stream(0)
        self.capturing = False

    def is_initialized(self) -> bool:
        return True

    def is_current_stream_capturing(self) -> bool:
        return self.capturing

    def current_stream(self, device: Any) -> Stream:
        return self.stream

    @contextmanager
    def on(self, stream: Stream, capturing: bool = False) -> Iterator[None]:
        before, self.stream, self.capturing = self.stream, stream, capturing
        yield
        self.stream, self.capturing = before, False


class OnGpu(Tensor):
    """A tensor that a stream of the played GPU has made."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = torch.device("cuda", 0)  # type: ignore[assignment]

    def record_stream(self, stream: Stream) -> None:  # type: ignore[override]
        assert not CUDA.capturing
        READERS.append((id(self), stream.cuda_stream))


CUDA = Cuda()
READERS: list[tuple[int, int]] = []
MADE: list[Any] = []


def on_gpu(*values: int) -> Tensor:
    tensor = torch.tensor(values).as_subclass(OnGpu)
    CUDA.stream.seen.add(id(tensor))
    return tensor


def make_work(*_: Any) -> AttentionWork:
    lists = (on_gpu(0), *[None] * 4, on_gpu(0), on_gpu(0))
    MADE.append(AttentionWork(*lists, 3, *UNCOUNTED, True, False, False, False))
    return MADE[-1]  # type: ignore[no-any-return]


def first_and_reach(*_: Any) -> tuple[Tensor, Tensor]:
    MADE.append((on_gpu(0), on_gpu(0)))
    return MADE[-1]  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    CUDA.__init__()  # type: ignore[misc]
    READERS.clear()
    MADE.clear()
    monkeypatch.setattr(streams, "cuda", CUDA)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda _: CUDA.stream.cuda_stream, raising=False)
    monkeypatch.setattr(attention_plans, "make_work", make_work)
    monkeypatch.setattr(plans, "first_and_reach", first_and_reach)


def attention() -> tuple[Any, Callable[[Any], Any]]:
    return AttentionPlan.of_documents(on_gpu(0, 3), 3, checked=True), lambda plan: plan.work(True)


def spans() -> tuple[Any, Callable[[Any], Any]]:
    plan = SpanPlan(1, 3, 1, 1, torch.device("cuda", 0), on_gpu(0), on_gpu(1), on_gpu(0))
    return plan, lambda plan: plan.device_work()


every_plan = pytest.mark.parametrize("make", [attention, spans])


def read(work: Any) -> None:
    """As a kernel on the current stream: whatever it reads was written before."""
    tensors = [leaf for leaf in work if isinstance(leaf, Tensor)]
    assert {id(tensor) for tensor in tensors} <= CUDA.stream.seen


@every_plan
def test_a_second_stream_reads_what_the_first_made(make: Any) -> None:
    plan, lists = make()
    second = Stream(5)
    read(lists(plan))
    READERS.clear()
    for _ in range(2):
        with CUDA.on(second):
            read(lists(plan))
    assert len(MADE) == 1
    tensors = {id(leaf) for leaf in lists(plan) if isinstance(leaf, Tensor)}
    assert set(READERS) == {(tensor, 5) for tensor in tensors}, "their memory must not be used anew too early"


@every_plan
def test_a_plan_is_prepared_before_a_capture_or_refused_in_it(make: Any) -> None:
    plan, lists = make()
    with CUDA.on(Stream(7), capturing=True), pytest.raises(RuntimeError, match=r"call the plan's prepare\(\) before"):
        lists(plan)
    plan.prepare()
    with CUDA.on(Stream(7), capturing=True):
        lists(plan)  # launched before all that the graph will do, which begins when that is done
    assert len(MADE) == 1
    with CUDA.on(Stream(7)):  # the same stream, not for a graph
        read(lists(plan))


def test_a_plan_of_a_graph_stays_in_it() -> None:
    with CUDA.on(Stream(7), capturing=True):
        plan, lists = attention()
        for _ in range(2):
            read(lists(plan))
    assert len(MADE) == 1
    with pytest.raises(RuntimeError, match="its lists hold nothing outside of the graph"):
        lists(plan)


def test_where_there_is_no_gpu_nothing_waits() -> None:
    made = streams.Made((torch.zeros(2), SimpleNamespace()))
    assert made.here() is made.value
    assert made.device is None
