"""Two linear layers with an activation between under autograd, which keep one tensor of the width between."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels.ops import large, products


@dataclass(frozen=True)
class _Activation:
    """An activation of numbers that nobody else reads.

    Attributes:
        plain: PyTorch's function.
        before: of the numbers in front, what the next layer reads; what was given is kept, and may be overwritten.
        again: the same of what was kept, which stays as it is.
        gradient: of the incoming gradient, which is overwritten, and what was kept.
    """

    plain: Callable[[Tensor], Tensor]
    before: Callable[[Tensor], Tensor]
    again: Callable[[Tensor], Tensor]
    gradient: Callable[[Tensor, Tensor], Tensor]


def _gelu(inner: Tensor) -> Tensor:
    """With rows as far apart as those of `inner`, which suits the product."""
    new = large.new_empty if inner.is_contiguous() else large.new_rows
    result: Tensor = torch.ops.aten.gelu.out(inner, out=new(inner, *inner.shape))
    return result


def _gelu_gradient(grad: Tensor, kept: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.gelu_backward.grad_input(grad, kept, grad_input=grad)
    return result


def _relu_gradient(grad: Tensor, kept: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.threshold_backward.grad_input(grad, kept, 0, grad_input=grad)
    return result


# GELU's result is made again in the backward, a pass over memory that is read there anyway; relu's says all that its
# gradient asks for, and takes the place of what it was made of.
_ACTIVATIONS = {
    "gelu": _Activation(F.gelu, _gelu, _gelu, _gelu_gradient),
    "relu": _Activation(F.relu, torch.relu_, lambda kept: kept, _relu_gradient),
}


def feed_forward(
    x: Tensor,
    up: Tensor,
    up_bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    activation: Literal["gelu", "relu"],
) -> Tensor:
    """`down activation(up x + up_bias) + down_bias`, with all its derivatives.

    Args:
        x: `[T, H]`.
        up: `[I, H]`.
        up_bias: `[I]`.
        down: `[O, I]`.
        down_bias: `[O]`.
        activation: the exact GELU, or relu.

    Returns:
        `[T, O]`.

    Example:
        >>> up, down = torch.ones(5, 3), torch.ones(3, 5)
        >>> feed_forward(torch.zeros(2, 3), up, None, down, torch.ones(3), "gelu").tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    given, way = (x, up, up_bias, down, down_bias), _ACTIVATIONS[activation]
    if x.device.type != "cpu" or not products.ordinary(*given):
        return products.linear(way.plain(products.linear(x, up, up_bias)), down, down_bias)
    if not torch.is_grad_enabled():
        return _forward(way, *given)[0]
    output: Tensor = _FeedForward.apply(*given, way)
    return output


def _forward(
    activation: _Activation, x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """The result, and what is kept: a tensor for each piece of the rows."""
    product = products.product_of(x, up, up_bias)
    pieces, kept = products.pieces(product, len(x)), []
    down_bias = None if down_bias is None else down_bias.contiguous()
    output = None if len(pieces) == 1 else large.new_empty(x, len(x), len(down))
    for piece in pieces:
        inner = products.between(product, x[piece], up, up_bias)
        kept.append(inner)
        found = product(activation.before(inner), down, down_bias)
        output = _put(found, output, piece)
    assert output is not None
    return output, kept


def _put(found: Tensor, whole: Tensor | None, piece: slice) -> Tensor:
    """What was found of all rows, of which this is a piece; it is the whole where there is none yet."""
    if whole is None:
        return found
    whole[piece] = found
    return whole


def _plus(found: Tensor | None, summed: Tensor | None) -> Tensor | None:
    return summed if found is None else found if summed is None else summed.add_(found)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None,
        activation: _Activation,
    ) -> Tensor:  # fmt: skip
        output, kept = _forward(activation, x, up, up_bias, down, down_bias)
        ctx.save_for_backward(x, up, up_bias, down, down_bias, *kept)
        ctx.activation = activation
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, up, up_bias, down, down_bias, *kept = ctx.saved_tensors
        given = [x, up, up_bias, down, down_bias]
        wanted, activation = ctx.needs_input_grad[:5], ctx.activation
        if torch.is_grad_enabled() or not products.ordinary(grad):
            return (*_by_pytorch(given, wanted, grad, activation.plain), None)
        of_x, of_up, of_up_bias, of_down = None, None, None, None
        with torch.autocast("cpu", enabled=False):
            product = products.product_of(x, up)
            if wanted[0] and len(kept) > 1:
                of_x = large.new_empty(x, *x.shape)
            ends = itertools.accumulate(map(len, kept))
            for inner, end in zip(kept, ends, strict=True):
                piece = slice(end - len(inner), end)
                if any(wanted[:3]):
                    of_inner = activation.gradient(products.between(product, grad[piece], down.t(), None), inner)
                    own, of_weight = products.gradients(
                        product, of_inner, x[piece] if wanted[1] else None, up if wanted[0] else None
                    )
                    of_x = None if own is None else _put(own, of_x, piece)
                    of_up = _plus(of_weight, of_up)
                    of_up_bias = _plus(of_inner.sum(0), of_up_bias) if wanted[2] else None
                    del of_inner
                if wanted[3]:
                    _, of_weight = products.gradients(product, grad[piece], activation.again(inner), None)
                    of_down = _plus(of_weight, of_down)
            of_down_bias = grad.sum(0) if wanted[4] else None
        return of_x, of_up, of_up_bias, of_down, of_down_bias, None


def _by_pytorch(
    given: list[Tensor | None], wanted: tuple[bool, ...], grad: Tensor, activation: Callable[[Tensor], Tensor]
) -> tuple[Tensor | None, ...]:
    """The same by PyTorch's own rules, which can be differentiated again."""
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        x, up, up_bias, down, down_bias = given
        assert x is not None
        assert up is not None
        assert down is not None
        output = F.linear(activation(F.linear(x, up, up_bias)), down, down_bias)
        sources = [each for each, want in zip(given, wanted, strict=True) if want and each is not None]
        found = iter(torch.autograd.grad(output, sources, grad, create_graph=True))
    return tuple(next(found) if want else None for want in wanted)
