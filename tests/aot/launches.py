"""What the everyday cases launch on a GPU, seen without one: every kernel's launch is noted, and nothing runs.

    python tests/aot/launches.py

Prints as JSON what the operations' own `aot_configurations()` leave out. `compile_triton.py launches` compiles every
such launch. Not under TRITON_INTERPRET=1, where launches have other constants.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from unittest import mock

import torch
from compile_triton import ROOT, operation_modules
from torch import Tensor
from triton.runtime.jit import JITFunction

from spanbert_kernels.ops import backends
from spanbert_kernels.ops.aot import AotConfiguration

sys.path.append(str(ROOT / "tests" / "ops"))

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
TYPES |= {torch.uint8: "*u8", torch.int16: "*i16", torch.int32: "*i32", torch.int64: "*i64"}
# A kernel compiled for more of these stands for one with less: False for True, a cheaper activation, fewer scores.
GROWING = ("ACTIVATION", "SCORES", "BANDED", "ATTENTION", "ACCUMULATE")


def configuration_of(kernel: Any, values: dict[str, Any]) -> AotConfiguration:
    """A launch with the arguments and options `values`."""
    signature, constants = {}, {}
    for parameter in kernel.params:
        value = values.pop(parameter.name)
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[parameter.name] = TYPES[value.dtype]
        else:
            signature[parameter.name] = "fp32" if isinstance(value, float) else "i32" if abs(value) < 2**31 else "i64"
    warps, stages = values.pop("num_warps"), values.pop("num_stages")
    assert not values, f"options that aot_configurations() do not have: {values}"
    return AotConfiguration(kernel.__name__, kernel, signature, constants, warps, stages)


def run_cases() -> None:
    """Forward and backward of every case, in every dtype; a second time with span_score's backward in chunks."""
    from op_checks import DTYPES, OpChecks, Setting, run_setting

    from spanbert_kernels.ops.span_score import triton as score

    for module in operation_modules():
        tests = importlib.import_module(f"test_{module.split('.')[-2]}")
        tables = [each for each in vars(tests).values() if isinstance(each, type) and issubclass(each, OpChecks)]
        for case in (case for table in tables for case in getattr(table, "cases", ())):
            for dtype in DTYPES:
                if dtype in backends.DTYPES["triton"]:
                    run_setting(Setting(case, dtype=dtype), "triton")
            with mock.patch.object(score, "CHUNK_BYTES", 1):
                run_setting(Setting(case), "triton")


@functools.cache
def aot_configurations() -> list[AotConfiguration]:
    """Every launch of the cases, once."""
    found: dict[str, AotConfiguration] = {}

    def note(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **values: Any) -> None:
        launch = configuration_of(kernel, {**dict(zip(kernel.arg_names, arguments, strict=False)), **values})
        found.setdefault(str(launch), launch)

    with (
        mock.patch.object(JITFunction, "run", note),
        mock.patch.dict(backends.DEVICES, triton="cpu"),
        mock.patch.dict(backends._LOADERS, triton=lambda: None),
    ):
        run_cases()
    # The cases' rows are short and odd: compiled as a typical call's, whose rows are multiples of 16.
    divisible = {(each.kernel, name) for each in listed() for name in each.divisible}
    return [
        replace(
            launch,
            name=f"{launch.name} {i}",
            divisible=tuple(
                n for n, kind in launch.signature.items() if kind == "i32" and (launch.kernel, n) in divisible
            ),
        )
        for i, launch in enumerate(found.values())
    ]


def listed() -> list[AotConfiguration]:
    return [each for module in operation_modules() for each in importlib.import_module(module).aot_configurations()]


def shape_of(configuration: AotConfiguration) -> dict[str, Any]:
    """What decides how a kernel is laid out: blocks, precision, warps, stages."""
    constants = {n: v for n, v in configuration.constexprs.items() if n.isupper() and n not in GROWING}
    return {**constants, "num_warps": configuration.num_warps, "num_stages": configuration.num_stages}


def left_out(launch: AotConfiguration, configurations: list[AotConfiguration]) -> Iterator[str]:
    """What of a launch no configuration has.

    Lists are representative, not complete: they hold each shape of each kernel once, at its heaviest, and every
    argument somewhere. So a launch needs one configuration of its shape with as much of everything in GROWING, and for
    every tensor one configuration of its kernel that has it.
    """
    kernel = launch.kernel.__name__
    own = [each for each in configurations if each.kernel is launch.kernel]
    for name, kind in launch.signature.items():
        if kind.startswith("*") and not any(each.signature[name].startswith("*") for each in own):
            yield f"{kernel}: {name}"
    alike = [each.constexprs for each in own if shape_of(each) == shape_of(launch)]
    growing = {name: value for name, value in launch.constexprs.items() if name in GROWING}
    if not alike:
        yield f"{kernel}: {shape_of(launch)}"
    elif not any(all(each[name] >= value for name, value in growing.items()) for each in alike):
        yield f"{kernel}: {growing} of {shape_of(launch)}"


def main() -> None:
    launches, own = aot_configurations(), listed()
    missing = sorted({text for launch in launches for text in left_out(launch, own)})
    kernels, own_kernels = (sorted({each.kernel.__name__ for each in some}) for some in (launches, own))
    found = {"launches": len(launches), "kernels": kernels, "listed kernels": own_kernels, "left out": missing}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
