"""Calls that repeat do what calls on their own do, and ask for nothing twice."""

from __future__ import annotations

import ast
import copy
import gc
import pickle
import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pytest
import torch
from op_checks import place_parameters
from places import PLACES
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from spanbert_kernels.ops import (
    cross_document_attention,
    document_attention,
    plan_attention,
    plan_spans,
    repeats,
    span_pool,
)
from spanbert_kernels.ops.operators import REGISTERED
from spanbert_kernels.ops.repeats import record, start

OFFSETS = torch.tensor([0, 3, 5])
SPANS = torch.tensor([[0, 1], [1, 3], [4, 4]])
in_triton = pytest.mark.parametrize(
    "backend", place_parameters(("triton",), tuple(place for place in PLACES if place.device == "cpu")), indirect=True
)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def with_gradients(output: Tensor, leaf: Tensor) -> list[Tensor]:
    return [output, *torch.autograd.grad(output, leaf, output.detach().cos())]


def attend(plan: Any, backend: str, seed: int, turned: bool) -> list[Tensor]:
    leaf = drawn(3, 5, 1, 16, seed=seed)
    q, k, v = leaf.unbind() if turned else leaf.transpose(0, 1).contiguous().unbind(1)
    options: dict[str, Any] = {"dropout_p": 0.3, "seed": torch.tensor([seed]), "backend": backend}
    found = with_gradients(document_attention(q, k, v, plan, **options), leaf)
    return [*found, document_attention(q.detach(), k.detach(), v.detach(), plan, backend=backend)]


def attend_across(plan: Any, backend: str, seed: int, turned: bool) -> list[Tensor]:
    q, k, v = drawn(3, 2, 1, 16, seed=seed).detach().unbind()
    found = cross_document_attention(q, k if turned else k.clone(), v, plan, backend=backend)
    assert isinstance(found, Tensor)
    return [found]


def pool(plan: Any, backend: str, seed: int, turned: bool) -> list[Tensor]:
    leaf, scores, table = drawn(5, 7, seed=seed), drawn(5, seed=seed + 1), drawn(4, 3, seed=seed)
    hidden = leaf if turned else leaf.t().contiguous().t()
    output = span_pool(hidden, plan, ["attention", "width"], scores, table, backend=backend)
    return [*with_gradients(output, leaf), span_pool(hidden.detach(), plan, ["mean"], backend=backend)]


PLANS: dict[str, tuple[Any, Any, str]] = {
    "documents": (lambda: plan_attention(OFFSETS), attend, "document_attention"),
    "clusters": (lambda: plan_attention(OFFSETS, torch.tensor([0, 2])), attend_across, "document_attention"),
    "spans": (lambda: plan_spans(SPANS), pool, "span_pool"),
}


@pytest.mark.parametrize("kind", PLANS)
@in_triton
def test_calls_of_a_plan_give_what_plans_of_their_own_give(kind: str, backend: str) -> None:
    make, call, operator = PLANS[kind]
    plan, calls = make(), [(1, True), (2, False), (3, True)]
    expected = [call(make(), backend, *each) for each in calls[1:]]
    _, second = (call(plan, backend, *each) for each in calls[:2])
    with ExitStack() as stack:
        for name in (f"{operator}_forward", f"{operator}_backward"):  # the third call is made of what the first one did
            stack.enter_context(mock.patch.object(REGISTERED[name], "in_triton", side_effect=AssertionError))
        found = [second, call(plan, backend, *calls[2])]
    for ours, alone in zip(found, expected, strict=True):
        assert all(map(torch.equal, ours, alone))
    for copied in (copy.deepcopy(plan), pickle.loads(pickle.dumps(plan))):
        assert not copied.repeats.checked
        assert not copied.repeats.tapes


class Noted(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        NAMES.append(function.name())
        return function(*args, **(kwargs or {}))


NAMES: list[str] = []


@pytest.mark.parametrize("kind", ["documents", "spans"])
@in_triton
def test_who_looks_at_operators_sees_them(kind: str, backend: str) -> None:
    make, call, _ = PLANS[kind]
    plan = make()
    call(plan, backend, 1, True)
    NAMES.clear()
    with Noted():
        call(plan, backend, 2, True)
    assert len([name for name in NAMES if "spanbert_kernels" in name]) == 3


def test_what_is_refused_once_is_refused_again() -> None:
    plan, q = plan_attention(OFFSETS), torch.zeros(5, 2, 4)
    document_attention(q, q, q, plan)
    for _ in range(2):
        with pytest.raises(ValueError, match="the plan was made for 5 tokens, but q has 4"):
            document_attention(q[:4], q[:4], q[:4], plan)
        with pytest.raises(ValueError, match="dropout_p must be in"):
            document_attention(q, q, q, plan, dropout_p=2.0)
        with pytest.raises(ValueError, match="has no backend 'gpu'"):
            document_attention(q, q, q, plan, backend="gpu")  # type: ignore[call-overload]


# What a tape is made of, without a GPU.


class Pair(NamedTuple):
    left: Tensor
    right: int


class Kernel:
    """In the place of a kernel of Triton's: notes what it is launched with."""

    arg_names = ("x", "pair", "list_of_the_plan", "result", "BLOCK")
    function, packed_metadata = "function", "metadata"

    def __init__(self) -> None:
        self.launches: list[Any] = []
        self.direct = 0

    def run(self, x: int, y: int, z: int, stream: int, *rest: Any) -> None:
        """What Triton launches at last, without its hooks."""
        assert rest[:5] == ("function", "metadata", None, None, None)
        self.direct += 1
        self.noted((x, y, z), rest[5:], {}, stream)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *arguments, stream=None, **named: self.noted(grid, arguments, named, stream)

    def noted(self, *launch: Any) -> Kernel:
        self.launches.append(launch)
        return self


def test_a_kernel_is_launched_again_with_the_addresses_of_other_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = pytest.importorskip("triton.runtime", reason="Triton is not installed").driver
    from triton import knobs

    monkeypatch.setattr(driver, "_active", mock.Mock(**{"get_current_stream.return_value": 7}))
    kernel, work = Kernel(), Pair(torch.arange(3), 3)

    def call(x: Tensor, pair: Pair, work: Pair, scale: float) -> tuple[Tensor, Tensor]:
        result, zeros = x.new_empty(2, 3), torch.zeros_like(pair.left).add_(scale)
        start(kernel, 4, 2)(
            result=result, x=x, pair=pair._replace(left=zeros), BLOCK=(16, 8), list_of_the_plan=work.left, num_warps=4
        )
        return result, zeros

    first = torch.ones(4), Pair(torch.ones(2), 5)
    (result, _), tape = record(call, (*first, work, 0.5), work)
    assert tape is not None
    assert kernel.launches[0][2]["result"] is result
    gone = [weakref.ref(tensor) for tensor in (first[0], first[1].left, result)]
    kernel.launches.clear()
    del first, result
    gc.collect()
    assert [reference() for reference in gone] == [None] * 3
    for hooks in ([], [print]):  # who wants to know of each launch
        monkeypatch.setattr(knobs.runtime.launch_exit_hook, "calls", hooks)
        kernel.launches.clear()
        x, pair = torch.ones(4), Pair(torch.ones(2), 5)
        found, zeros = tape.run((x, pair, work, 0.5))
        assert zeros.tolist() == [0.5, 0.5]
        assert (found.shape, found.dtype) == ((2, 3), torch.float32)
        arguments = (x.data_ptr(), (zeros.data_ptr(), 5), work.left.data_ptr(), found.data_ptr(), (16, 8))
        assert kernel.launches == [((4, 2, 1), arguments, {}, 7)]
    assert kernel.direct == 1


@pytest.mark.parametrize("reason", ["a number", "a tensor of nobody", "a result that it was given"])
def test_what_cannot_be_done_again_is_not(reason: str) -> None:
    other = torch.ones(2)

    def call(x: Tensor) -> Tensor:
        if reason == "a number":
            return x * x.sum().item()
        return x + other if reason == "a tensor of nobody" else other

    assert record(call, (torch.ones(2),), None)[1] is None


@pytest.mark.parametrize("folder", ["attention", "document_attention", "span_pool"])
def test_no_launch_escapes_the_tape(folder: str) -> None:
    """Where an operator is repeated, kernels are launched by `start`, not as `kernel[grid](...)`."""
    for path in (Path(repeats.__file__).parent / folder).glob("triton*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert [ast.unparse(each) for each in calls if isinstance(each.func, ast.Subscript)] == [], path.name
