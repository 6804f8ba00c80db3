"""Other runtimes beside the encoder: one that is missing or fails is a reason, never a gap."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

import spanbert_kernels


@pytest.fixture
def runtimes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(spanbert_kernels, "__path__", list(spanbert_kernels.__path__))  # to which suites add theirs
    import runtimes

    return runtimes


def reason_of(runtimes: ModuleType, way: Callable[..., Any]) -> str:
    from registry import Unavailable

    with pytest.raises(Unavailable) as caught:
        runtimes.warm(way, None, torch.float32, {})
    return str(caught.value)


def test_what_is_missing_is_named(runtimes: ModuleType) -> None:
    def missing(*arguments: Any) -> Any:
        return runtimes.need("no_such_runtime")

    assert reason_of(runtimes, missing).startswith("this needs no_such_runtime: pip install ")


def test_what_fails_says_how(runtimes: ModuleType) -> None:
    def converter(*arguments: Any) -> Any:
        raise KeyError("an operator")

    def first_call(*arguments: Any) -> Any:
        return lambda: torch.ones(2) @ torch.ones(3)

    assert reason_of(runtimes, converter) == "fails here: KeyError: 'an operator'"
    assert reason_of(runtimes, first_call).startswith("fails here: RuntimeError: ")


def test_a_call_that_works_is_ready(runtimes: ModuleType) -> None:
    calls: list[int] = []
    call = runtimes.warm(lambda *arguments: lambda: calls.append(1), None, torch.float32, {})
    call()
    assert calls == [1, 1]
