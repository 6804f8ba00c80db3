"""Linear layers of the inference path: oneDNN's fused operators, `ops.packed_linear`, or plain PyTorch.

oneDNN's operators are those that PyTorch's own compiler calls: the weight is repacked once into the layout its kernel
wants, and the activation or the residual is applied while the result is still in registers. Which way is the fastest
depends on the processor and on the number of rows; `linears_for` holds what was measured.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spanbert_kernels import ops

_EXACT_GELU = ("transformers.activations", "GELUActivation")
# Activation modules that oneDNN fuses: where their class is from and its name -> operator, algorithm.
_FUSED_ACTIVATIONS = {
    _EXACT_GELU: ("gelu", "none"),
    ("transformers.activations", "NewGELUActivation"): ("gelu", "tanh"),
    ("transformers.activations", "FastGELUActivation"): ("gelu", "tanh"),
    ("transformers.activations", "GELUTanh"): ("gelu", "tanh"),
    ("torch.nn.modules.activation", "ReLU"): ("relu", ""),
}
# Below this many rows a weight packed once beats MKL with AVX2; above it MKL packs the weight at no visible cost.
FEW_ROWS = 80


class Linears(Protocol):
    """How the inference path packs a weight and multiplies by it."""

    def pack(self, weight: Tensor) -> Any:
        """`[out, in]` -> what the other methods take as `packed`."""
        ...

    def linear(self, x: Tensor, packed: Any, bias: Tensor | None) -> Tensor:
        """`x W^T + b`."""
        ...

    def linear_activation(self, x: Tensor, packed: Any, bias: Tensor | None, activation: nn.Module) -> Tensor:
        """`activation(x W^T + b)`."""
        ...

    def linear_add(self, x: Tensor, residual: Tensor, packed: Any, bias: Tensor | None) -> Tensor:
        """`x W^T + b + residual`."""
        ...


class OneDNNLinears:
    """Through oneDNN: weights repacked, residual fused, and the activation where `fuses`."""

    def __init__(self, *, fuses: bool) -> None:
        self.fuses = fuses

    def pack(self, weight: Tensor) -> Tensor:
        """A repacked copy of the weight."""
        return torch.ops.mkldnn._reorder_linear_weight(weight.detach())

    def linear(self, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        """One oneDNN call."""
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")

    def linear_activation(self, x: Tensor, packed: Tensor, bias: Tensor | None, activation: nn.Module) -> Tensor:
        """One oneDNN call if it fuses the activation, else the activation after it."""
        fused = _FUSED_ACTIVATIONS.get(_class_of(activation)) if self.fuses else None
        if fused is None:
            return _activate(activation, self.linear(x, packed, bias))
        return torch.ops.mkldnn._linear_pointwise(x, packed, bias, fused[0], [], fused[1])

    def linear_add(self, x: Tensor, residual: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        """One oneDNN call."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, residual, packed, bias, "add")


class PlainLinears:
    """`F.linear` on the weights as they are."""

    def pack(self, weight: Tensor) -> Tensor:
        """The weight itself."""
        return weight.detach()

    def linear(self, x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        """`F.linear`."""
        return F.linear(x, packed, bias)

    def linear_activation(self, x: Tensor, packed: Tensor, bias: Tensor | None, activation: nn.Module) -> Tensor:
        """`F.linear`, then the activation."""
        return _activate(activation, F.linear(x, packed, bias))

    def linear_add(self, x: Tensor, residual: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        """`F.linear`, then the residual added in place."""
        return F.linear(x, packed, bias).add_(residual)


@dataclass
class SizedWeight:
    """A weight and what two ways made of it, each when it was first needed."""

    weight: Tensor
    few: Any = None
    many: Any = None


class BySizeLinears:
    """One way for fewer than `rows` rows, another for more."""

    def __init__(self, few: Linears, many: Linears, rows: int) -> None:
        self.few, self.many, self.rows = few, many, rows

    def pack(self, weight: Tensor) -> SizedWeight:
        """The weight, not packed yet."""
        return SizedWeight(weight.detach())

    def _pick(self, x: Tensor, packed: SizedWeight) -> tuple[Linears, Any]:
        if x.shape[0] < self.rows:
            if packed.few is None:
                packed.few = self.few.pack(packed.weight)
            return self.few, packed.few
        if packed.many is None:
            packed.many = self.many.pack(packed.weight)
        return self.many, packed.many

    def linear(self, x: Tensor, packed: SizedWeight, bias: Tensor | None) -> Tensor:
        """As the way picked does it."""
        way, weight = self._pick(x, packed)
        return way.linear(x, weight, bias)

    def linear_activation(self, x: Tensor, packed: SizedWeight, bias: Tensor | None, activation: nn.Module) -> Tensor:
        """As the way picked does it."""
        way, weight = self._pick(x, packed)
        return way.linear_activation(x, weight, bias, activation)

    def linear_add(self, x: Tensor, residual: Tensor, packed: SizedWeight, bias: Tensor | None) -> Tensor:
        """As the way picked does it."""
        way, weight = self._pick(x, packed)
        return way.linear_add(x, residual, weight, bias)


class PackedLinears:
    """Through this package's own kernel: made for few rows, and for 16-bit formats that the processor only stores."""

    def pack(self, weight: Tensor) -> ops.PackedWeight:
        """A copy of the weight in the kernel's order."""
        return ops.pack_weight(weight)

    def linear(self, x: Tensor, packed: ops.PackedWeight, bias: Tensor | None) -> Tensor:
        """One call of `ops.packed_linear`."""
        return ops.packed_linear(x, packed, bias)

    def linear_activation(
        self, x: Tensor, packed: ops.PackedWeight, bias: Tensor | None, activation: nn.Module
    ) -> Tensor:
        """`ops.packed_linear`, then the activation."""
        return _activate(activation, ops.packed_linear(x, packed, bias))

    def linear_add(self, x: Tensor, residual: Tensor, packed: ops.PackedWeight, bias: Tensor | None) -> Tensor:
        """One call of `ops.packed_linear`."""
        return ops.packed_linear(x, packed, bias, residual)


def _class_of(activation: nn.Module) -> tuple[str, str]:
    return type(activation).__module__, type(activation).__name__


def _activate(activation: nn.Module, x: Tensor) -> Tensor:
    """`activation(x)` for an x that nobody else holds: the exact GELU in place, another by its module."""
    if _class_of(activation) == _EXACT_GELU and activation.act is F.gelu:
        return torch.ops.aten.gelu_(x)
    return activation(x)


_PLAIN = PlainLinears()


def linears_for(dtype: torch.dtype) -> Linears:
    """The fastest way known on this machine for `dtype`, while oneDNN is enabled; without it plain PyTorch."""
    return _fastest(dtype) if torch.backends.mkldnn.enabled else _PLAIN


@functools.cache
def _fastest(dtype: torch.dtype) -> Linears:
    """With AVX-512 oneDNN throughout. With AVX2 its fused GELU gathers from a table, and MKL is faster on many rows."""
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return _PLAIN
    onednn, compiled = _onednn_works(dtype), ops.backends.refusal("cpu", "cpu", dtype) is None
    if onednn and "AVX512" in torch.backends.cpu.get_cpu_capability():
        return OneDNNLinears(fuses=True)
    if dtype == torch.float32:
        few = PackedLinears() if compiled else OneDNNLinears(fuses=False) if onednn else _PLAIN
        return BySizeLinears(few, _PLAIN, FEW_ROWS)
    if onednn:
        return OneDNNLinears(fuses=False)
    return PackedLinears() if compiled else _PLAIN


def _onednn_works(dtype: torch.dtype) -> bool:
    """Tries the operators on a small input: which processors they take depends on the dtype."""
    if not torch.backends.mkldnn.is_available():
        return False
    onednn = OneDNNLinears(fuses=True)
    with torch.inference_mode(False), torch.no_grad():
        x = torch.linspace(-1, 1, 32).view(2, 16).to(dtype)
        weight = torch.linspace(-1, 1, 128).view(8, 16).to(dtype)
        try:
            packed = onednn.pack(weight)
            result = onednn.linear_activation(x, packed, weight[:, 0].contiguous(), nn.ReLU())
            result = onednn.linear_add(x, result, packed, None)
        except (AttributeError, RuntimeError):
            return False
        product = F.linear(x.double(), weight.double())
        expected = (product + weight[:, 0].double()).relu() + product
    return torch.allclose(result.double(), expected, atol=16 * torch.finfo(dtype).eps)
