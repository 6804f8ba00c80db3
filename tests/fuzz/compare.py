"""One call of the fuzzer: what a seed draws, run everywhere and compared."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import places
import torch
from fuzz.draw import Draw
from fuzz.operations import WITHOUT_FLOAT64, draw_case
from op_checks import (
    DTYPES,
    Result,
    Setting,
    Tensors,
    check_identical,
    check_result,
    differentiable,
    forward,
    gradients,
    incoming,
    poisoned_memory,
)
from places import Place

from spanbert_kernels.ops import backends

EMULATED = 0.06  # share of the calls that go to emulated places as well


@dataclass(frozen=True)
class Call:
    """What a seed stands for."""

    seed: int
    operation: str
    setting: Setting
    emulated: bool
    poisoned: bool
    threads: int

    def places(self) -> list[Place]:
        """Where it runs: everything here that the operation has, emulated places where they were drawn."""
        return [
            place
            for place in places.places_of(self.operation)
            if place.backend not in self.setting.case.lacking
            and self.setting.dtype in backends.DTYPES.get(place.backend, DTYPES)
            and (self.setting.dtype != torch.float64 or (self.operation, place.backend) not in WITHOUT_FLOAT64)
            and (self.emulated or not place.emulated)
            and places.unavailable(place, self.operation) is None
        ]

    def __str__(self) -> str:
        case, lines = self.setting.case, []
        for name, tensor in self.setting.tensors("cpu").items():
            lines.append(f"  {name}: {list(tensor.shape)} {tensor.dtype}, strides {list(tensor.stride())}")
        options = [getattr(each, "keywords", {}) for each in (case.call, case.oracle)]
        head = f"{self.operation} ({case.name}), layouts {dict(self.setting.layouts)}, {self.setting.frozen} frozen"
        return "\n".join([head, *lines, f"  options: {options[0] | options[1]}"])


def draw_call(seed: int) -> Call:
    """The call that a seed stands for."""
    draw = Draw(seed)
    draw.small = draw.chance(EMULATED)
    operation, case = draw_case(draw)
    dtype = draw.pick((torch.float32, torch.float32, torch.float32, *DTYPES))
    size = 1 + seed % 10**6
    tensors = case.inputs(size)
    floating = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    frozen = [name for name in floating[1:] if draw.chance(0.1)]
    if draw.chance(0.1) and len(floating) > 1:
        frozen = [floating[0], *frozen][: len(floating) - 1]
    setting = Setting(case, size, dtype, draw.layouts(tensors), tuple(frozen))
    return Call(seed, operation, setting, draw.small, draw.chance(0.3), draw.pick((1, 1, 1, 1, 3)))


def memory_of(tensors: Tensors) -> dict[str, bytes]:
    """Everything that lies in the tensors' memory, also between their elements."""
    storages = {name: tensor.untyped_storage() for name, tensor in tensors.items()}
    return {n: torch.empty(0, dtype=torch.uint8).set_(s).numpy().tobytes() for n, s in storages.items()}


def run_untouched(setting: Setting, backend: str) -> Result:
    """Forward and backward, after which inputs and incoming gradients hold what they held."""
    tensors = differentiable(setting.tensors(), setting.frozen)
    before = memory_of(tensors)
    outputs = forward(setting.case, tensors, backend)
    grads = {f"incoming {i}": grad for i, grad in enumerate(incoming(outputs, setting.dtype, setting.layouts))}
    before |= memory_of(grads)
    result = Result(outputs, gradients(outputs, tensors, list(grads.values())))
    for name, memory in memory_of(tensors | grads).items():
        assert memory == before[name], f"{name} was written to"
    return result


def check_call(call: Call, place: Place) -> None:
    """Values and gradients against the loop in float64, a second run bit by bit, inputs untouched."""
    torch.set_num_threads(1 if place.emulated else call.threads)
    with places.at(place) as backend:
        first = run_untouched(call.setting, backend)
        with poisoned_memory() if call.poisoned else nullcontext():
            second = run_untouched(call.setting, backend)
        check_identical(first, second, "in a second run" + ", in memory full of NaN" * call.poisoned)
        check_result(call.setting, backend, first)


class CallFailed(AssertionError):
    """A call whose result is wrong; the text repeats it."""


def run_seed(seed: int) -> list[Place]:
    """Draw a call and check it everywhere; the places where it ran.

    Raises:
        CallFailed: at the first place where it fails, with the seed, the place and the arguments.
    """
    call, threads = draw_call(seed), torch.get_num_threads()
    visited = call.places()
    for place in visited:
        try:
            check_call(call, place)
        except Exception as error:
            text = f"{place}: {type(error).__name__}: {error}\n{call}"
            raise CallFailed(f"{text}\nrepeat it alone: python tests/fuzz/run.py --seed {seed}") from error
        finally:
            torch.set_num_threads(threads)
    return visited
