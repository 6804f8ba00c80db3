"""Linear modules through the product that is fastest here."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from spanbert_kernels.ops import products


def run_linear(module: nn.Module, x: Tensor) -> Tensor:
    """`module(x)`; a plain Linear multiplies by `ops.products`, whatever else stands in its place as it does itself.

    Example:
        >>> import torch
        >>> run_linear(nn.Linear(3, 4), torch.ones(2, 3)).shape
        torch.Size([2, 4])
    """
    if type(module) is nn.Linear and not is_watched(module):
        return products.linear(x, module.weight, module.bias)
    result: Tensor = module(x)
    return result


def is_watched(module: nn.Module) -> bool:
    """Whether a call would do more than multiply."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in module.__dict__ or torch_module._has_any_global_hook()
