"""Linear layers of the inference path: oneDNN's fused operators, `ops.packed_linear`, or plain PyTorch.

oneDNN's operators are those that PyTorch's own compiler calls: the weight is repacked once into the layout its kernel
wants, and the activation or the residual is applied while the result is still in registers. Which way is the fastest
depends on the processor and on the number of rows: it is measured (`ops/measured.py`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spanbert_kernels import ops
from spanbert_kernels.ops.measured import Candidate, Choice

_EXACT_GELU = ("transformers.activations", "GELUActivation")
# Activation modules that oneDNN fuses: where their class is from and its name -> operator, algorithm.
_FUSED_ACTIVATIONS = {
    _EXACT_GELU: ("gelu", "none"),
    ("transformers.activations", "NewGELUActivation"): ("gelu", "tanh"),
    ("transformers.activations", "FastGELUActivation"): ("gelu", "tanh"),
    ("transformers.activations", "GELUTanh"): ("gelu", "tanh"),
    ("torch.nn.modules.activation", "ReLU"): ("relu", ""),
}
VARIABLE = "SPANBERT_KERNELS_LINEARS"
# Below this many rows the way is that of few rows: the time is mostly that of reading the weight.
FEW_ROWS = 65
# Of the feed-forward block that is timed: few rows and many; columns of the stream and between the products.
_MEASURED_ROWS, _MEASURED_SIZES = (24, 128), (512, 2048)


@dataclass(frozen=True)
class Linears:
    """How the inference path packs a weight and multiplies by it.

    Attributes:
        name: what it is, for people.
        pack: a weight `[out, in]` -> what the other functions take as `packed`.
        linear: of x, packed and bias, `x W^T + b`.
        linear_add: of x, residual, packed and bias, `x W^T + b + residual`.
        activated: of x, packed, bias and activation, `activation(x W^T + b)`, where that is no two steps.
    """

    name: str
    pack: Callable[[Tensor], Any]
    linear: Callable[[Tensor, Any, Tensor | None], Tensor]
    linear_add: Callable[[Tensor, Tensor, Any, Tensor | None], Tensor]
    activated: Callable[[Tensor, Any, Tensor | None, nn.Module], Tensor] | None = None

    def linear_activation(self, x: Tensor, packed: Any, bias: Tensor | None, activation: nn.Module) -> Tensor:
        """`activation(x W^T + b)`."""
        if self.activated is not None:
            return self.activated(x, packed, bias, activation)
        return activate(activation, self.linear(x, packed, bias))


PLAIN = Linears(
    "PyTorch's",
    pack=lambda weight: weight.detach(),
    linear=F.linear,
    linear_add=lambda x, residual, packed, bias: F.linear(x, packed, bias).add_(residual),
)
# This package's own kernel: made for few rows, and for 16-bit formats that the processor only stores.
PACKED = Linears(
    "packed_linear",
    pack=ops.pack_weight,
    linear=ops.packed_linear,
    linear_add=lambda x, residual, packed, bias: ops.packed_linear(x, packed, bias, residual),
)
# A repacked copy of the weight, and one call of oneDNN each.
ONEDNN = Linears(
    "oneDNN's",
    pack=lambda weight: torch.ops.mkldnn._reorder_linear_weight(weight.detach()),
    linear=lambda x, packed, bias: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], ""),
    linear_add=lambda x, residual, packed, bias: torch.ops.mkldnn._linear_pointwise.binary(
        x, residual, packed, bias, "add"
    ),
)


def _fused(x: Tensor, packed: Tensor, bias: Tensor | None, activation: nn.Module) -> Tensor:
    """One oneDNN call if it fuses the activation, else the activation after it."""
    fused = _FUSED_ACTIVATIONS.get(_class_of(activation))
    if fused is None:
        return ONEDNN.linear_activation(x, packed, bias, activation)
    return torch.ops.mkldnn._linear_pointwise(x, packed, bias, fused[0], [], fused[1])


ONEDNN_FUSED = replace(ONEDNN, activated=_fused)


@dataclass
class SizedWeight:
    """A weight and what two ways made of it, each when it was first needed."""

    weight: Tensor
    few: Any = None
    many: Any = None


def by_size(few: Linears, many: Linears, rows: int) -> Linears:
    """One way for fewer than `rows` rows, another for more."""

    def pick(x: Tensor, packed: SizedWeight) -> tuple[Linears, Any]:
        if x.shape[0] < rows:
            if packed.few is None:
                packed.few = few.pack(packed.weight)
            return few, packed.few
        if packed.many is None:
            packed.many = many.pack(packed.weight)
        return many, packed.many

    def linear(x: Tensor, packed: SizedWeight, bias: Tensor | None) -> Tensor:
        way, weight = pick(x, packed)
        return way.linear(x, weight, bias)

    def linear_add(x: Tensor, residual: Tensor, packed: SizedWeight, bias: Tensor | None) -> Tensor:
        way, weight = pick(x, packed)
        return way.linear_add(x, residual, weight, bias)

    def activated(x: Tensor, packed: SizedWeight, bias: Tensor | None, activation: nn.Module) -> Tensor:
        way, weight = pick(x, packed)
        return way.linear_activation(x, weight, bias, activation)

    name = f"{few.name} below {rows} rows, {many.name}"
    return Linears(name, lambda weight: SizedWeight(weight.detach()), linear, linear_add, activated)


def _class_of(activation: object) -> tuple[str, str]:
    return type(activation).__module__, type(activation).__name__


def is_exact_gelu(activation: object) -> bool:
    """Whether an activation is transformers' module of `F.gelu` without an approximation."""
    return _class_of(activation) == _EXACT_GELU and getattr(activation, "act", None) is F.gelu


def activate(activation: nn.Module, x: Tensor) -> Tensor:
    """`activation(x)` for an x that nobody else holds: the exact GELU in place, another by its module."""
    if is_exact_gelu(activation):
        return torch.ops.aten.gelu_(x)
    return activation(x)


def linears_for(dtype: torch.dtype) -> Linears:
    """The way that was measured to be the fastest on this machine for `dtype`, while oneDNN is enabled; without it, and
    in dtypes that nobody is quick in, plain PyTorch.
    """
    if dtype not in CHOICES or not torch.backends.mkldnn.enabled:
        return PLAIN
    few, many = CHOICES[dtype]
    return _combined(few.found().way, many.found().way)


@functools.cache
def _combined(few: str, many: str) -> Linears:
    return WAYS[many] if few == many else by_size(WAYS[few], WAYS[many], FEW_ROWS)


# By name; the first one stays where nothing is much faster. With AVX2 oneDNN's fused GELU gathers from a table.
WAYS = {"onednn": ONEDNN_FUSED, "onednn-apart": ONEDNN, "torch": PLAIN, "packed": PACKED}


def _candidate(way: str, dtype: torch.dtype, rows: int) -> Candidate:
    linears = WAYS[way]

    def prepare() -> Callable[[], Tensor]:
        size, wide = _MEASURED_SIZES
        x, first = (torch.linspace(-1, 1, count * size).view(count, size).to(dtype) for count in (rows, wide))
        up, down = linears.pack(first), linears.pack(first.t().contiguous())
        bias, activation = first[:, 0].contiguous(), exact_gelu()
        return lambda: linears.linear_add(linears.linear_activation(x, up, bias, activation), x, down, x[0])

    def refusal() -> str | None:
        if linears is PACKED:
            return ops.backends.refusal("cpu", "cpu", dtype)
        return None if linears is PLAIN or _onednn_works(dtype) else f"oneDNN does not multiply {dtype} here"

    return Candidate(prepare, refusal)


def exact_gelu() -> nn.Module:
    """Transformers' module of the activation that most encoders have."""
    from transformers.activations import GELUActivation

    return GELUActivation()


# Of each dtype for few rows and for many.
CHOICES = {
    dtype: tuple(
        Choice(
            f"linears {str(dtype).removeprefix('torch.')}, {rows} rows",
            VARIABLE,
            {way: _candidate(way, dtype, rows) for way in WAYS},
        )
        for rows in _MEASURED_ROWS
    )
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
}


def _onednn_works(dtype: torch.dtype) -> bool:
    """Tries the operators on a small input: which processors they take depends on the dtype."""
    if not torch.backends.mkldnn.is_available():
        return False
    with torch.inference_mode(False), torch.no_grad():
        x = torch.linspace(-1, 1, 32).view(2, 16).to(dtype)
        weight = torch.linspace(-1, 1, 128).view(8, 16).to(dtype)
        try:
            packed = ONEDNN_FUSED.pack(weight)
            result = ONEDNN_FUSED.linear_activation(x, packed, weight[:, 0].contiguous(), nn.ReLU())
            result = ONEDNN_FUSED.linear_add(x, result, packed, None)
        except (AttributeError, RuntimeError):
            return False
        product = F.linear(x.double(), weight.double())
        expected = (product + weight[:, 0].double()).relu() + product
    return torch.allclose(result.double(), expected, atol=16 * torch.finfo(dtype).eps)
