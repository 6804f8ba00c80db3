"""The second layer of span_score, checked."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from spanbert_kernels.ops import checks
from spanbert_kernels.ops.span_linear.call import Call, check_vector

Norm = tuple[Tensor | None, Tensor | None, float]


class SecondLayer(NamedTuple):
    """In the dtype of the call.

    Attributes:
        weight: `[S, O]`, or `[D, S, O]`, one a document.
        bias: `[S]` or `[D, S]`.
        norm_weight, norm_bias: `[O]`.
        epsilon: of the LayerNorm before the layer, None where there is none.
    """

    weight: Tensor
    bias: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    epsilon: float | None

    def tensors(self) -> tuple[Tensor | None, ...]:
        return self.weight, self.bias, self.norm_weight, self.norm_bias


def check_layer(out_weight: Tensor, out_bias: Tensor | None, norm: Norm | None, call: Call) -> SecondLayer:
    """`out_weight [O]` becomes `[1, O]`."""
    like, inner = call.like, call.weight.shape[0]
    dims = out_weight.dim() if isinstance(out_weight, Tensor) else 2
    expected = "[S, O] or [O], or [D, S, O] with cu_seqlens"
    allowed = (1, 2) if call.cu_seqlens is None else (1, 2, 3)
    checks.check_floating("out_weight", out_weight, dims if dims in allowed else 2, expected)
    checks.check_device("out_weight", out_weight, "hidden", like)
    if out_weight.shape[-1] != inner:
        raise ValueError(
            f"out_weight must have shape {expected}, O = {inner}, the rows of weight, got {list(out_weight.shape)}"
        )
    if dims == 3 and call.cu_seqlens is not None and len(out_weight) != len(call.cu_seqlens) - 1:
        raise ValueError(
            f"out_weight must have a matrix for each of the {len(call.cu_seqlens) - 1} documents, got {len(out_weight)}"
        )
    weight = (out_weight[None] if dims == 1 else out_weight).to(call.wide)
    if isinstance(out_bias, Tensor) and out_bias.dim() == 0 and dims == 1:
        out_bias = out_bias[None]
    bias = check_vector("out_bias", out_bias, weight.shape[-2], like, call.cu_seqlens)
    return SecondLayer(weight, bias, *check_norm(norm, inner, like))


def check_norm(norm: Norm | None, size: int, like: Tensor) -> tuple[Tensor | None, Tensor | None, float | None]:
    """Weight, bias and epsilon of a LayerNorm."""
    if norm is None:
        return None, None, None
    if not isinstance(norm, tuple) or len(norm) != 3:
        raise TypeError(f"norm must be (weight, bias, epsilon) of a LayerNorm, got {checks.shown(norm)}")
    weight, bias, epsilon = norm
    checks.check_number("the epsilon of norm", epsilon)
    if not epsilon >= 0:
        raise ValueError(f"the epsilon of norm must be at least 0, got {epsilon}")
    weight, bias = (
        check_vector(f"the {name} of norm", each, size, like) for name, each in (("weight", weight), ("bias", bias))
    )
    return weight, bias, float(epsilon)


def in_kernels(layer: SecondLayer) -> tuple[Tensor, list[Tensor]]:
    """The weight that kernels multiply by, and what is added to a span's scores behind it.

    A LayerNorm's own weight and bias are those of the layer behind it: `W (w x + b) = (W w) x + W b`.
    """
    weight = layer.weight if layer.norm_weight is None else layer.weight * layer.norm_weight
    of_norm = None if layer.norm_bias is None else layer.weight @ layer.norm_bias
    return weight, [each for each in (of_norm, layer.bias) if each is not None]
