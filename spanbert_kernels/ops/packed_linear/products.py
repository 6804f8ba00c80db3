"""packed_linear's raw operators, and which product is the one for a dtype on this machine."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spanbert_kernels.ops import backends, library
from spanbert_kernels.ops.backends import Operation
from spanbert_kernels.ops.choices import PRECISIONS, Precision
from spanbert_kernels.ops.measured import Candidate, Choice
from spanbert_kernels.ops.operators import raw
from spanbert_kernels.ops.packed_linear import layout

VARIABLE = "SPANBERT_KERNELS_PACKED_LINEAR"
_MEASURED_SHAPE = (24, 768, 3072)  # rows, in, out
_MEASURED_WEIGHTS = 4  # in turn, so that they come from further away than the nearest caches

OPERATION = Operation(
    "packed_linear",
    ("cpu", "eager"),
    summary="a linear layer for few rows, inference",
    instead=("eager", "it is about how a CPU reads weights from memory"),
)

torch.library.define("spanbert_kernels::packed_linear_memory", "(int bytes) -> Tensor")
torch.library.define("spanbert_kernels::packed_linear_has", "(int precision) -> bool")
torch.library.define("spanbert_kernels::packed_linear_width", "(Tensor weight) -> int")


@raw(OPERATION)
def packed_linear_forward(
    x: Tensor,
    panels: Tensor,
    by_column: Tensor | None,
    out_features: int,
    bias: Tensor | None,
    residual: Tensor | None,
    precision: int,
) -> Tensor:
    return x.new_empty(x.shape[0], out_features)


def products_refusal(precision: Precision) -> str | None:
    """Why the compiled kernels, which are there, have no products of a precision, or None."""
    if torch.ops.spanbert_kernels.packed_linear_has(PRECISIONS.index(precision)):
        return None
    return f"products of {precision} take an instruction set that {library.cpu_isa()} does not have"


def best_precision(dtype: torch.dtype, compiled: bool) -> Precision:
    """How weights of a dtype are multiplied, where nobody says it."""
    if dtype != torch.bfloat16 or not compiled or BFLOAT16.found().way != "bfloat16":
        return "float32"
    return "float32" if products_refusal("bfloat16") else "bfloat16"


def on_huge_pages(panels: Tensor) -> Tensor:
    """A dense copy of panels, for the compiled kernels, which read each of their pages once a call."""
    made: Tensor = torch.ops.spanbert_kernels.packed_linear_memory(panels.numel() * panels.element_size())
    return made.view(panels.dtype).view(panels.shape).copy_(panels)


def _candidate(precision: Precision) -> Candidate:
    def prepare() -> Callable[[], object]:
        rows, columns, out = _MEASURED_SHAPE
        x = torch.linspace(-1, 1, rows * columns).view(rows, columns).bfloat16()
        weight = torch.linspace(-1, 1, out * columns).view(out, columns).bfloat16()
        width = torch.ops.spanbert_kernels.packed_linear_width(weight)
        weights = [on_huge_pages(layout.lay_out(weight, width, precision)) for _ in range(_MEASURED_WEIGHTS)]
        index = PRECISIONS.index(precision)
        return lambda: [packed_linear_forward("cpu", x, each, None, out, None, None, index) for each in weights]

    def refusal() -> str | None:
        return backends.refusal("cpu", "cpu", torch.bfloat16) or products_refusal(precision)

    return Candidate(prepare, refusal)


# Processors with products of bfloat16 may still be faster at those of float32, with weights that are widened.
BFLOAT16 = Choice(
    "packed_linear bfloat16", VARIABLE, {"float32": _candidate("float32"), "bfloat16": _candidate("bfloat16")}
)
