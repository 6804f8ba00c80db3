"""The steps that encoder layers are made of.

Rows of one residual stream go through them: a product takes what was normalized last, and adds to the stream or hands
on to attention. A layer of BERT's is `Project, Attend, Merge, Normalize, FeedForward, Normalize`; a layer that
normalizes before its products has its `Normalize(..., keeps=True)` in front of them.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

# In the order of csrc/encoder_stack/kernels.h.
Activation = Literal[
    "gelu",
    "gelu_tanh",
    "quick_gelu",
    "clipped_gelu",
    "relu",
    "relu6",
    "relu_squared",
    "leaky_relu",
    "silu",
    "sigmoid",
    "tanh",
    "identity",
]
ACTIVATIONS: tuple[Activation, ...] = typing.get_args(Activation)


class Project(NamedTuple):
    """Queries, keys and values of all heads: `weight [3 * heads * head_dim, H]`, in this order."""

    weight: Tensor
    bias: Tensor | None


class Attend(NamedTuple):
    """Attention of each document with itself: softmax(Q K^T * scale) V, `scale` positive."""

    heads: int
    head_dim: int
    scale: float


class Merge(NamedTuple):
    """What attention gave, projected and added to the stream: `weight [H, heads * head_dim]`."""

    weight: Tensor
    bias: Tensor | None


class FeedForward(NamedTuple):
    """`activation(x up^T + up_bias) down^T + down_bias`, added to the stream: `up [W, H]`, `down [H, W]`."""

    up: Tensor
    up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    activation: Activation


class Normalize(NamedTuple):
    """LayerNorm of the stream, `weight [H]` and `bias [H]`.

    With `keeps` the next product takes what was normalized, and the stream stays as it was.
    """

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    keeps: bool = False


Step = Project | Attend | Merge | FeedForward | Normalize
KINDS = (Project, Attend, Merge, FeedForward, Normalize)


def check_steps(steps: Sequence[Step], hidden_size: int) -> None:
    """Raises ValueError where a step's tensors do not fit, or where it stands in a place where it means nothing."""
    projected: Project | None = None
    attended: Attend | None = None
    for index, step in enumerate(steps):
        where = f"step {index} ({type(step).__name__})"
        if isinstance(step, Project):
            _check_shape(where, "weight", step.weight, (None, hidden_size))
            _check_shape(where, "bias", step.bias, (step.weight.shape[0],))
            projected = step
        elif isinstance(step, Attend):
            if projected is None or projected.weight.shape[0] != 3 * step.heads * step.head_dim:
                raise ValueError(f"{where}: {step.heads} heads of {step.head_dim} do not follow their Project")
            if not step.scale > 0:
                raise ValueError(f"{where}: the scale must be positive, got {step.scale}")
            projected, attended = None, step
        elif isinstance(step, Merge):
            if attended is None:
                raise ValueError(f"{where} does not follow an Attend")
            _check_shape(where, "weight", step.weight, (hidden_size, attended.heads * attended.head_dim))
            _check_shape(where, "bias", step.bias, (hidden_size,))
            attended = None
        elif isinstance(step, FeedForward):
            wide = step.up.shape[0]
            _check_shape(where, "up", step.up, (None, hidden_size))
            _check_shape(where, "up_bias", step.up_bias, (wide,))
            _check_shape(where, "down", step.down, (hidden_size, wide))
            _check_shape(where, "down_bias", step.down_bias, (hidden_size,))
            if step.activation not in ACTIVATIONS:
                raise ValueError(f"{where}: the activation must be one of {list(ACTIVATIONS)}, got {step.activation!r}")
        elif isinstance(step, Normalize):
            _check_shape(where, "weight", step.weight, (hidden_size,))
            _check_shape(where, "bias", step.bias, (hidden_size,))
        else:
            raise TypeError(f"step {index} is a {type(step).__name__}, none of {[kind.__name__ for kind in KINDS]}")


def _check_shape(where: str, name: str, tensor: Tensor | None, shape: tuple[int | None, ...]) -> None:
    if tensor is None:
        return
    if tensor.dim() != len(shape) or any(
        want not in (None, size) for want, size in zip(shape, tensor.shape, strict=True)
    ):
        wanted = ["any" if want is None else want for want in shape]
        raise ValueError(f"{where}: {name} must be {wanted}, got {list(tensor.shape)}")
