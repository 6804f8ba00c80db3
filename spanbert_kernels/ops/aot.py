"""What the Triton kernels are compiled for ahead of time, on a machine without a GPU."""

from __future__ import annotations

import json
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from spanbert_kernels.ops.plans import SpanWork

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class AotConfiguration:
    """One kernel as one launch compiles it. Every `ops/<op>/triton.py` lists its own in `aot_configurations()`.

    The field `rows` of a NamedTuple that the kernel takes as `spans` is named `spans.rows`.

    Attributes:
        name: unique in its operation, e.g. `forward bf16`.
        kernel: the function under `triton.jit`.
        signature: Triton's type of every argument, by name and in any order: `*bf16` (a pointer), `i64`, `fp32`, or
            `constexpr`.
        constexprs: the value of every `constexpr` argument.
        num_warps, num_stages, maxnreg: as the launch passes them.
        divisible: integer arguments that are multiples of 16 (a row's stride): the compiler then reads whole vectors.
            Pointers always count as aligned.

    Example:
        >>> AotConfiguration("copy", None, {"x": "*fp32", "n": "i64", "stride": "i64"}, {}, 4, 2, ("stride",)).aligned()
        ('x', 'stride')
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    num_warps: int
    num_stages: int
    divisible: tuple[str, ...] = ()
    maxnreg: int | None = None

    def aligned(self) -> tuple[str, ...]:
        """The arguments that are multiples of 16: the pointers and what `divisible` names."""
        return tuple(name for name, kind in self.signature.items() if kind.startswith("*") or name in self.divisible)

    @property
    def options(self) -> dict[str, Any]:
        """What `triton.compile` takes beside the source and the target."""
        from spanbert_kernels.ops.triton_arguments import compiler_options, launch_options

        launch = launch_options(self.num_warps, self.num_stages, self.maxnreg)
        return {**launch, **compiler_options(str(self.constexprs.get("BLOCK.PRECISION", "")))}

    def source(self) -> Any:
        """What `triton.compile` takes."""
        from triton.compiler import ASTSource

        signature: dict[str, Any] = {}
        for argument in self.kernel.arg_names:
            fields = [name for name in self.signature if name.startswith(f"{argument}.")]
            group = namedtuple(argument, [name.removeprefix(f"{argument}.") for name in fields])  # type: ignore[misc]
            signature[argument] = group(*map(self.signature.get, fields)) if fields else self.signature[argument]
        places = {name: place for place, name in _names(signature).items()}
        constants = {places[name]: value for name, value in self.constexprs.items()}
        attributes = {places[name]: [["tt.divisibility", 16]] for name in self.aligned()}
        return ASTSource(self.kernel, signature, constants, attributes)


def _names(signature: Mapping[str, Any]) -> dict[tuple[int, ...], str]:
    """The names of what is passed by Triton's place for it: the argument's and, in a NamedTuple, the field's."""
    names: dict[tuple[int, ...], str] = {}
    for i, (argument, kind) in enumerate(signature.items()):
        fields = () if isinstance(kind, str) else kind._fields
        names |= {(i, j): f"{argument}.{field}" for j, field in enumerate(fields)} if fields else {(i,): argument}
    return names


class NoDevice:
    """In the place of Triton's driver: kernels are specialised as for compute capability 9.0."""

    def get_current_device(self) -> str:
        return "none"

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_stream(self, device: Any) -> int:
        return 0


@contextmanager
def launches() -> Iterator[list[AotConfiguration]]:
    """Collect what Triton would compile for each launch inside, of tensors on any device; nothing runs.

    Not under TRITON_INTERPRET=1, where nothing is compiled.
    """
    from triton import knobs
    from triton.runtime import driver

    found: list[AotConfiguration] = []

    def note(*, fn: Any, compile: Mapping[str, Any], **_: Any) -> bool:
        names = _names(compile["signature"])
        kinds = [
            kind for each in compile["signature"].values() for kind in ((each,) if isinstance(each, str) else each)
        ]
        configuration = AotConfiguration(
            fn.name,
            fn.jit_function,
            dict(zip(names.values(), kinds, strict=True)),
            # Fields that are constants come wrapped.
            {names[place]: getattr(value, "value", value) for place, value in compile["constants"].items()},
            compile["num_warps"],
            compile["num_stages"],
            maxnreg=json.loads(compile["specialization_data"])["options"]["maxnreg"],
        )
        divisible = [names[place] for place, attributes in compile["configs"][0].items() if attributes]
        found.append(replace(configuration, divisible=tuple(n for n in divisible if n not in configuration.aligned())))
        return True  # Triton then neither compiles nor launches

    before, driver._active = driver._active, NoDevice()
    try:
        with knobs.runtime.scope():
            knobs.runtime.jit_cache_hook = note
            yield found
    finally:
        driver._active = before


def configurations_of(calls: Mapping[str, Callable[[], Any]]) -> list[AotConfiguration]:
    """What the launches of calls compile, each once, named after the kernel and the call."""
    found: dict[str, AotConfiguration] = {}
    for name, call in calls.items():
        with launches() as launched:
            call()
        for launch in launched:
            if launch not in [replace(each, name=launch.name) for each in found.values()]:
                same = sum(each.kernel is launch.kernel and name in key for key, each in found.items())
                unique = f"{launch.name}, {name}{f' {same + 1}' if same else ''}"
                found[unique] = replace(launch, name=unique)
    return list(found.values())


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor without values, for `configurations_of`."""
    return torch.empty(shape, dtype=dtype, device="meta")


def meta_spans(spans: int, tokens: int, *, enumerated: bool = False) -> SpanWork:
    """Spans without values: those of a sorted plan, or all up to a width in one document."""
    starts, ends, rows, first, reach = (meta(n, dtype=torch.int64) for n in (spans, spans, spans, tokens + 1, tokens))
    if enumerated:
        return SpanWork(starts, ends, None, meta(2, dtype=torch.int64), first, reach, spans, 8)
    return SpanWork(starts, ends, rows, None, first, reach, spans, 0)
