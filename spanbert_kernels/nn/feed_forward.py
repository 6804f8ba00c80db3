"""A transformer's feed-forward block under autograd, which keeps what stands before the activation and not after it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spanbert_kernels.ops import products


def gelu_feed_forward(x: Tensor, up: Tensor, up_bias: Tensor | None, down: Tensor, down_bias: Tensor | None) -> Tensor:
    """`down GELU(up x + up_bias) + down_bias`, with all its derivatives.

    The activation's result, as wide as what it is made of, is made again in the backward: a pass over memory that is
    read there anyway.

    Args:
        x: `[T, H]`.
        up: `[I, H]`.
        up_bias: `[I]`.
        down: `[O, I]`.
        down_bias: `[O]`.

    Returns:
        `[T, O]`.

    Example:
        >>> gelu_feed_forward(torch.zeros(2, 3), torch.ones(5, 3), None, torch.ones(3, 5), torch.ones(3)).tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    given = (x, up, up_bias, down, down_bias)
    if not (torch.is_grad_enabled() and x.device.type == "cpu" and products.ordinary(*given)):
        return products.linear(F.gelu(products.linear(x, up, up_bias)), down, down_bias)
    output: Tensor = _FeedForward.apply(*given)
    return output


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Tensor | None) -> Tensor:
        x, up, up_bias, down, down_bias = given
        assert x is not None
        assert up is not None
        assert down is not None
        inner = products.linear(x, up, up_bias)
        output = products.linear(F.gelu(inner), down, down_bias)
        ctx.save_for_backward(*given, inner)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *given, inner = ctx.saved_tensors
        x, up, _, down, _ = given
        wanted = ctx.needs_input_grad
        if torch.is_grad_enabled() or not products.ordinary(grad):
            return _by_pytorch(given, wanted, grad)
        of_x, of_up, of_up_bias, of_down = None, None, None, None
        with torch.autocast("cpu", enabled=False):
            product = products.product_for(x, up) or F.linear
            if any(wanted[:3]):
                of_inner = product(grad, down.t(), None)
                of_inner = torch.ops.aten.gelu_backward.grad_input(of_inner, inner, grad_input=of_inner)
                of_x, of_up = products.gradients(product, of_inner, x if wanted[1] else None, up if wanted[0] else None)
                of_up_bias = of_inner.sum(0) if wanted[2] else None
                del of_inner
            if wanted[3]:
                _, of_down = products.gradients(product, grad, F.gelu(inner), None)
            of_down_bias = grad.sum(0) if wanted[4] else None
        return of_x, of_up, of_up_bias, of_down, of_down_bias


def _by_pytorch(given: list[Tensor | None], wanted: tuple[bool, ...], grad: Tensor) -> tuple[Tensor | None, ...]:
    """The same by PyTorch's own rules, which can be differentiated again."""
    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        x, up, up_bias, down, down_bias = given
        assert x is not None
        assert up is not None
        assert down is not None
        output = F.linear(F.gelu(F.linear(x, up, up_bias)), down, down_bias)
        sources = [each for each, want in zip(given, wanted, strict=True) if want and each is not None]
        found = iter(torch.autograd.grad(output, sources, grad, create_graph=True))
    return tuple(next(found) if want else None for want in wanted)
