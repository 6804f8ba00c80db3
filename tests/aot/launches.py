"""What the everyday cases launch on a GPU, seen without one: every kernel's launch is noted, and nothing runs.

    python tests/aot/launches.py

Prints as JSON what the operations' own `aot_configurations()` leave out, which cases fail on the way to their launches,
and which of the kernels that workloads are judged by takes longer at least than in the record of `benchmarks/roof`.
`compile_triton.py launches` compiles every such launch. Not under TRITON_INTERPRET=1, where launches have other
constants.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from compile_triton import ROOT, is_for, operation_modules

from spanbert_kernels.ops import backends
from spanbert_kernels.ops.aot import AotConfiguration, NoDevice, launches

sys.path.append(str(ROOT / "tests" / "ops"))

# A kernel compiled for more of these stands for one with less: False for True, a cheaper activation, fewer scores.
GROWING = ("ACTIVATION", "SCORES", "BANDED", "ATTENTION", "ACCUMULATE", "WIDTHS", "CHUNKS", "MEAN", "SUM", "HEADS")
# Constants that say where things lie in memory, and of which every call has its own.
PLACES = ("OUTPUTS", "STRIDE", "TABLE_ROWS", "SHARE_WIDTHS", "START", "END", "WEIGHED")
# Tests with cases of an operation beside its own.
MORE_TESTS = {"document_attention": ("test_attention_by_distance",)}


def cases_of(module: str) -> Iterator[Any]:
    """Those of an operation's tables, by the module of its kernels."""
    from op_checks import OpChecks

    operation = module.split(".")[-2]
    tests = map(importlib.import_module, (f"test_{operation}", *MORE_TESTS.get(operation, ())))
    kinds = [each for test in tests for each in vars(test).values()]
    tables = [each for each in kinds if isinstance(each, type) and issubclass(each, OpChecks)]
    return (case for table in tables for case in getattr(table, "cases", ()))


def run_cases() -> None:
    """Forward and backward of every case, in every dtype; a second time with span_score's backward in chunks."""
    from op_checks import DTYPES, Setting, run_setting

    from spanbert_kernels.ops.attention.triton_lists import make_lists
    from spanbert_kernels.ops.cross_document_attention.triton_sublayer import add_update, normalized_anchors
    from spanbert_kernels.ops.span_score import triton as score

    offsets = torch.tensor([0, 3, 5])
    for clusters, *anchors in itertools.product((None, offsets), (False, True), (False, True)):
        make_lists(offsets, clusters, 5, *anchors)
    hidden, weight = torch.ones(5, 8), torch.ones(8)
    places, update = normalized_anchors(hidden, offsets, "last", None, weight, weight, 1e-12)
    add_update(hidden, places, update, weight[:1])
    for module in operation_modules():
        for case in cases_of(module):
            for dtype in DTYPES:
                if dtype in backends.DTYPES["triton"]:
                    run_setting(Setting(case, dtype=dtype), "triton")
            with mock.patch.object(score, "CHUNK_BYTES", 1):
                run_setting(Setting(case), "triton")


@functools.cache
def aot_configurations() -> list[AotConfiguration]:
    """Every launch of the cases, once."""
    return typical_of(run_cases)


def without_warp_groups() -> list[AotConfiguration]:
    """Launches of a case for each branch, on a GPU that has no products of warp groups."""
    from op_checks import Setting, run_setting
    from test_gpu_blocks import EVERYDAY

    from spanbert_kernels.ops.attention.triton_joint import WARP_GROUPS

    def run() -> None:
        token = WARP_GROUPS.set(False)
        for dtype, case in EVERYDAY:
            run_setting(Setting(case, dtype=dtype), "triton")
        WARP_GROUPS.reset(token)

    return typical_of(run)


def typical_of(run: Callable[[], None]) -> list[AotConfiguration]:
    with (
        launches() as launched,
        mock.patch.dict(backends.DEVICES, triton="cpu"),
        mock.patch.dict(backends._LOADERS, triton=lambda: None),
    ):
        run()
    divisible = {(each.kernel, name) for each in listed() for name in each.divisible}
    found = {str(launch): launch for launch in (typical(each, divisible) for each in launched)}
    return [replace(launch, name=f"{launch.name} {i}") for i, launch in enumerate(found.values())]


def typical(launch: AotConfiguration, divisible: set[tuple[Any, str]]) -> AotConfiguration:
    """Compiled as a typical call's, whose rows are multiples of 16: the cases' are short and odd, or of one column."""
    ones = {name for name, value in launch.constexprs.items() if type(value) is int and not is_constant(name)}
    return replace(
        launch,
        signature={**launch.signature, **dict.fromkeys(ones, "i32")},
        constexprs={name: value for name, value in launch.constexprs.items() if name not in ones},
        divisible=tuple(n for n, kind in launch.signature.items() if kind == "i32" and (launch.kernel, n) in divisible),
    )


def is_constant(name: str) -> bool:
    """Whether an argument or a field is a constant in every launch, not just where Triton makes one of a 1."""
    return name.split(".")[-1].isupper()


def listed() -> list[AotConfiguration]:
    return [each for module in operation_modules() for each in importlib.import_module(module).aot_configurations()]


def shape_of(configuration: AotConfiguration) -> dict[str, Any]:
    """What decides how a kernel is laid out: blocks, precision, warps, stages, registers."""
    constants = {
        n: v
        for n, v in configuration.constexprs.items()
        if is_constant(n) and n.split(".")[-1] not in (*GROWING, *PLACES)
    }
    return {
        **constants,
        "num_warps": configuration.num_warps,
        "num_stages": configuration.num_stages,
        "maxnreg": configuration.maxnreg,
    }


def left_out(launch: AotConfiguration, configurations: list[AotConfiguration]) -> Iterator[str]:
    """What of a launch no configuration has.

    Lists are representative, not complete: they hold each shape of each kernel once, at its heaviest, and every
    argument somewhere. So a launch needs one configuration of its shape with as much of everything in GROWING, and for
    every tensor one configuration of its kernel that has it.
    """
    kernel = launch.kernel.__name__
    own = [each for each in configurations if each.kernel is launch.kernel]
    for name, kind in launch.signature.items():
        if kind.startswith("*") and not any(each.signature.get(name, "").startswith("*") for each in own):
            yield f"{kernel}: {name}"
    alike = [each.constexprs for each in own if shape_of(each) == shape_of(launch)]
    growing = {name: value for name, value in launch.constexprs.items() if name.split(".")[-1] in GROWING}
    if not alike:
        yield f"{kernel}: {shape_of(launch)}"
    elif not any(all(each.get(name, 0) >= value for name, value in growing.items()) for each in alike):
        yield f"{kernel}: {growing} of {shape_of(launch)}"


def failing() -> Iterator[str]:
    """The cases that fail on the ways that only tensors of a GPU go; nothing is compiled, and no number computed."""
    from op_checks import Setting, run_setting
    from roof.recording import Recording, pretended
    from triton.runtime import driver

    def launch(*_: Any) -> None:
        """Nothing."""

    for module in operation_modules():
        for case, dtype in itertools.product(cases_of(module), (torch.float32, torch.bfloat16)):
            try:
                with mock.patch.object(driver, "_active", NoDevice()), pretended(Recording(), launch):
                    run_setting(Setting(case, dtype=dtype), "triton")
            except Exception as error:  # whatever it is, it is told
                yield f"{module.split('.')[-2]}, {case.name}, {dtype}: {type(error).__name__}: {error}"


def main() -> None:
    from roof.card import H200
    from roof.running import headlines, worse

    launched, own = aot_configurations(), listed()
    missing = {text for launch in launched for text in left_out(launch, own)}
    elsewhere = [each for each in own if is_for(each.name, 80)]
    missing |= {f"8.0: {text}" for launch in without_warp_groups() for text in left_out(launch, elsewhere)}
    kernels, own_kernels = (sorted({each.kernel.__name__ for each in some}) for some in (launched, own))
    found = {"launches": len(launched), "kernels": kernels, "listed kernels": own_kernels, "left out": sorted(missing)}
    found["worse"] = list(worse(headlines(), H200))
    found["failing"] = list(failing())
    print(json.dumps(found))


if __name__ == "__main__":
    main()
