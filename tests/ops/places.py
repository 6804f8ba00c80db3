"""Where a backend runs, and how to run something there."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch

from spanbert_kernels.ops import backends, library

ISAS = tuple(library.build_info()["cpu"] or ("portable",))


# Instruction sets that only some operations' kernels are compiled for, and which.
ROOMS: dict[str, list[str]] = library.build_info().get("cpu_rooms", {})


def isas_of(operation: str) -> tuple[str, ...]:
    return (*ISAS, *(isa for isa, rooms in ROOMS.items() if operation in rooms))


class Place(NamedTuple):
    """Where a backend runs: CPU kernels with an instruction set; Triton in its interpreter and the CUDA kernels
    as threads of a CPU (`emulated`: slow, and without what only a compiler for GPUs shows), or both on a GPU.
    """

    backend: str
    kind: str = ""
    device: str = "cpu"

    @property
    def emulated(self) -> bool:
        return self.device == "cpu" and self.backend in ("cuda", "triton")

    def __str__(self) -> str:
        return "-".join(filter(None, (self.backend, self.kind)))


PLACES = (
    *(Place("cpu", isa) for isa in ISAS),
    Place("eager"),
    Place("triton", "interpreter"),
    Place("cuda", "fibers"),
    Place("eager", "gpu", "cuda"),
    Place("triton", "gpu", "cuda"),
    Place("cuda", "gpu", "cuda"),
)


def places_of(operation: str) -> tuple[Place, ...]:
    """Those of the operation's backends, with all instruction sets that its kernels are compiled for."""
    rooms = (Place("cpu", isa) for isa in isas_of(operation)[len(ISAS) :])
    return (*rooms, *(place for place in PLACES if place.backend in backends._registry[operation]))


OPERATIONS = "spanbert_kernels.ops."
# Whose kernels in Triton have blocks for its interpreter beside those for a GPU.
OF_TWO_BLOCKS = ("cross_document_attention", "document_attention", "span_linear", "span_pool", "span_score")
# Set by `at`: where tensors are made.
current = Place("eager")


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


@contextmanager
def gpu_blocks() -> Iterator[None]:
    """Triton's interpreter runs the blocks, loops and roundings of a GPU's kernels, in float32 and float16.

    It has no products in bfloat16; a product of float32 has no name of its own there.
    """
    from triton.runtime import interpreter

    for name, names in backends._registry.items():  # a module that is first loaded inside would keep its own blocks
        if "triton" in names:
            importlib.import_module(f"{OPERATIONS}{name}.triton")
    choosing = [
        each for name, each in sys.modules.items() if name.startswith(OPERATIONS) and hasattr(each, "INTERPRETED")
    ]
    cached = [
        value
        for module in choosing
        for value in vars(module).values()
        if hasattr(value, "cache_clear") and value.__module__ == module.__name__
    ]
    set_attr, builder = interpreter._LangPatchScope.set_attr, interpreter.interpreter_builder
    precisions = (*builder.options.allowed_dot_input_precisions, "bf16x6")

    def set_any(scope: Any, target: Any, name: str, value: Any) -> None:
        # As Triton 3.9 has it: NumPy 2.4 makes no number of an array of one.
        set_attr(scope, target, name, value if name != "__index__" else lambda self: int(self.handle.data.item()))

    with pytest.MonkeyPatch.context() as patch:
        for module in choosing:
            patch.setattr(module, "INTERPRETED", False)
        patch.setattr(interpreter._LangPatchScope, "set_attr", set_any)
        patch.setattr(builder, "options", replace(builder.options, allowed_dot_input_precisions=precisions))
        for function in cached:
            function.cache_clear()
        yield
    for function in cached:
        function.cache_clear()


@contextmanager
def cuda_as_fibers() -> Iterator[None]:
    """The backend `cuda` takes CPU tensors: its kernels, built for a CPU, run a block's threads as fibers."""
    replaced: list[tuple[dict[str, Any], Any]] = [
        (library.NAMESPACES, "spanbert_kernels_fibers"),
        (backends.DEVICES, "cpu"),
        (backends._LOADERS, lambda: None),
    ]
    before = [table["cuda"] for table, _ in replaced]
    for table, value in replaced:
        table["cuda"] = value
    try:
        yield
    finally:
        for (table, _), value in zip(replaced, before, strict=True):
            table["cuda"] = value


def unavailable(place: Place, operation: str = "") -> str | None:
    """Why there is no such place here (for an operation), or None."""
    if place.device == "cuda" and not torch.cuda.is_available():
        return "there is no CUDA GPU here"
    if place.kind == "interpreter" and not library.interpreted():
        return "Triton's interpreter is not switched on (TRITON_INTERPRET=1)"
    if place.kind == "fibers" and "libasan" in os.environ.get("LD_PRELOAD", ""):
        return "the address sanitizer does not follow fibers from stack to stack"
    if place.kind == "fibers":
        from cuda_on_cpu import library as fibers

        return fibers.load()
    reason = backends.refusal(place.backend, place.device, torch.float32, operation)
    if reason is None and place.backend == "cpu" and place.kind:
        reason = library.load_cpu()  # an operation of the host module has not asked for it
    if reason is None and place.backend == "cpu" and place.kind:
        before = torch.ops.spanbert_kernels.cpu_isa()
        try:
            torch.ops.spanbert_kernels.set_cpu_isa(place.kind)
        except RuntimeError as error:
            return str(error).splitlines()[0]
        torch.ops.spanbert_kernels.set_cpu_isa(before)
    return reason


@contextmanager
def at(place: Place) -> Iterator[str]:
    """The backend of a place that is there, its kernels set up as the place says."""
    global current
    if place.kind == "interpreter":
        patch_the_language_once()
    before, current = current, place
    isa = torch.ops.spanbert_kernels.cpu_isa() if place.backend == "cpu" and place.kind else None
    try:
        if isa is not None:
            torch.ops.spanbert_kernels.set_cpu_isa(place.kind)
        if place.kind == "fibers":
            with cuda_as_fibers():
                yield place.backend
        else:
            yield place.backend
    finally:
        current = before
        if isa is not None:
            torch.ops.spanbert_kernels.set_cpu_isa(isa)
