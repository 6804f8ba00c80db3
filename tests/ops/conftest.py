"""Backends as fixtures."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import op_checks
import pytest
import torch
from op_checks import LEVELS, Place

from spanbert_kernels.ops import backends, library


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Checks at emulated places of cases that their class does not name (`emulated`) are slow."""
    for item in items:
        parameters = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        case, places = parameters.get("case", parameters.get("logic")), parameters.values()
        names = getattr(getattr(item, "cls", None), "emulated", ())
        if names and case and case.name not in names and any(isinstance(p, Place) and p.emulated for p in places):
            item.add_marker(pytest.mark.slow)


@functools.cache
def patch_the_language_once() -> None:
    """Triton's interpreter patches the language again, a millisecond, at every call of a device function."""
    from triton import language
    from triton.runtime import interpreter

    patch = interpreter._patch_lang

    def patch_once(function: Any) -> Any:
        used = [lang for lang in (language, language.core) if lang in function.__globals__.values()]
        if any(language.core.is_builtin(lang.load) for lang in used):
            return patch(function)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = patch_once


@pytest.fixture
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The backend of a place (`op_checks.Place`) that works here."""
    place: Place = request.param
    if place.device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA GPU here")
    if place.kind == "interpreter" and not library.interpreted():
        pytest.skip("Triton's interpreter is not switched on (TRITON_INTERPRET=1)")
    if place.kind == "interpreter":
        patch_the_language_once()
    if place.kind == "fibers":
        request.getfixturevalue("cuda_on_cpu")
    reason = backends.refusal(place.backend, place.device, torch.float32)
    if reason is not None:
        pytest.skip(f"{place}: {reason}")
    monkeypatch.setattr(op_checks, "current", place)
    if place.kind not in LEVELS:
        yield place.backend
        return
    before = torch.ops.spanbert_kernels.cpu_level()
    try:
        torch.ops.spanbert_kernels.set_cpu_level(LEVELS[place.kind])
    except RuntimeError as error:
        pytest.skip(f"{place.kind}: {str(error).splitlines()[0]}")
    yield place.backend
    torch.ops.spanbert_kernels.set_cpu_level(before)


best_backend = backend


@pytest.fixture
def cuda_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backend `cuda` takes CPU tensors: its kernels, built for a CPU, run a block's threads as fibers."""
    from cuda_on_cpu import library as fibers

    reason = fibers.load()
    if reason is not None:
        pytest.skip(f"cuda on a CPU: {reason}")
    monkeypatch.setitem(library.NAMESPACES, "cuda", "spanbert_kernels_fibers")
    monkeypatch.setitem(backends.DEVICES, "cuda", "cpu")
    monkeypatch.setitem(backends._LOADERS, "cuda", lambda: None)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors gain nothing from threads; the check that needs several asks for them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
