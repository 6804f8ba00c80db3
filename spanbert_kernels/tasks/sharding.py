"""A model of which each rank holds a share, by PyTorch's FSDP2: weights, gradients and the optimizer's state.

States are whole where they are written and read: a checkpoint fits any number of ranks, and a model that is whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn, optim
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from spanbert_kernels.nn import CrossDocumentMixer
from spanbert_kernels.tasks import launch


def check(precision: str) -> None:
    """Says so where a training cannot be sharded.

    Raises:
        ValueError: no launcher started this process, or the precision needs what shards lack.
    """
    if not launch.launched():
        raise ValueError(
            "fsdp shards a model over the processes that torchrun starts, and this one is none of them: "
            "run it under torchrun, or without fsdp"
        )
    if precision == "fp16":
        raise ValueError("fsdp has no scale of the loss, which precision fp16 needs: use bf16, or leave fsdp out")


def shard(model: nn.Module) -> None:
    """Leaves this rank its share of each parameter; layers are brought together one at a time, and the rest as one."""
    # Of what a model returns nothing is written to.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (dist.get_world_size(),))
    # A packed forward calls a layer's cross-document part after the layer.
    for kind in (CrossDocumentMixer, GradientCheckpointingLayer, type(model)):
        for module in [each for each in model.modules() if isinstance(each, kind)]:
            fully_shard(module, mesh=mesh)
    if hasattr(model, "generate"):  # which calls parts of the model alone
        register_fsdp_forward_method(model, "generate")
    model.register_load_state_dict_pre_hook(_share)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was called."""
    return isinstance(model, FSDPModule)


def whole(model: nn.Module) -> dict[str, Tensor]:
    """The `state_dict`, of whole tensors at the first rank and of empty ones at others; every rank asks."""
    found: dict[int, Tensor] = {}
    tensors = model.state_dict(keep_vars=True)  # which has all in shards
    for tensor in tensors.values():
        if id(tensor) not in found:  # tied ones stay one
            found[id(tensor)] = _gathered(tensor)
    return {name: found[id(tensor)] for name, tensor in tensors.items()}


def with_whole_state(optimizer: optim.Optimizer) -> None:
    """Lets an optimizer of shards give and take a whole `state_dict`; every rank asks, and the first one gets it."""
    optimizer.register_state_dict_post_hook(_whole_state)
    optimizer.register_load_state_dict_pre_hook(_own_state)


def _gathered(tensor: Tensor) -> Tensor:
    full = (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()
    return full.cpu() if launch.rank() == 0 else full.new_empty(0)


def _own(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A rank's share of what is of a parameter's shape."""
    if not isinstance(parameter, DTensor) or isinstance(tensor, DTensor) or tensor.shape != parameter.shape:
        return tensor
    device = tensor.to(parameter.device)
    return distribute_tensor(device, parameter.device_mesh, parameter.placements, src_data_rank=None)


def _share(model: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    for name, parameter in model.named_parameters(prefix.removesuffix("."), remove_duplicate=False):
        if name in state:
            state[name] = _own(state[name], parameter)


def _whole_state(optimizer: optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    return _changed(state, lambda number, tensor: _gathered(tensor))


def _own_state(optimizer: optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    numbers = (number for group in state["param_groups"] for number in group["params"])
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    of = dict(zip(numbers, parameters, strict=False))  # PyTorch says so where they are not as many
    return _changed(state, lambda number, tensor: _own(tensor, of[number]) if number in of else tensor)


def _changed(state: dict[str, Any], change: Callable[[int, Tensor], Tensor]) -> dict[str, Any]:
    """An optimizer's state, each tensor of a parameter's changed."""
    changed = {
        number: {name: change(number, value) if isinstance(value, Tensor) else value for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": changed}
