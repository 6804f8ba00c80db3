"""The steps that encoder layers are made of.

Rows of one residual stream go through them: a product takes what was normalized last, and adds to the stream or hands
on to attention. A layer of BERT's is `Project, Attend, Merge, Normalize, FeedForward, Normalize`; a layer that
normalizes before its products has its `Normalize(..., keeps=True)` in front of them, and a last `Normalize` behind all.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from spanbert_kernels.ops import checks
from spanbert_kernels.ops.attention.relative import RelativeTerms, check_relative
from spanbert_kernels.ops.choices import Precision

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
Norm = Literal["layer", "rms"]
NORMS: tuple[Norm, ...] = typing.get_args(Norm)


class Project(NamedTuple):
    """Queries, keys and values of all heads: `weight [(heads + 2 * kv_heads) * head_dim, H]`, in this order."""

    weight: Tensor
    bias: Tensor | None


class Rotary(NamedTuple):
    """Queries and keys turned by the place of their token in its document: `x * cos[place] + turned(x) * sin[place]`,
    where `turned` is `(-second half, first half)`, or `interleaved` `(-x[1], x[0], -x[3], x[2], ...)`.

    Attributes:
        cos, sin: `[positions, head_dim]`, an even head_dim; no document may be longer. Layers that share the tensors
            share their packed copy.
        interleaved: whether neighbours turn together.
    """

    cos: Tensor
    sin: Tensor
    interleaved: bool = False


class Attend(NamedTuple):
    """Attention of each document with itself: softmax(Q K^T * scale) V, `scale` positive.

    Attributes:
        heads, head_dim, scale: of the queries.
        window: keys further away from a query than this are not seen; None: all are.
        relative: terms of the logits by the distance of key and query. In inference their tables are constants, as
            weights are: what is projected from positions is projected once.
        rotary: how queries and keys are turned before.
        kv_heads: heads of keys and values, each for as many heads of queries that follow each other; None: as many.
    """

    heads: int
    head_dim: int
    scale: float
    window: int | None = None
    relative: RelativeTerms | None = None
    rotary: Rotary | None = None
    kv_heads: int | None = None

    @property
    def key_heads(self) -> int:
        """Heads of keys and of values."""
        return self.heads if self.kv_heads is None else self.kv_heads


class Merge(NamedTuple):
    """What attention gave, projected and added to the stream: `weight [H, heads * head_dim]`."""

    weight: Tensor
    bias: Tensor | None


class FeedForward(NamedTuple):
    """`activation(x up^T + up_bias) down^T + down_bias`, added to the stream: `up [W, H]`, `down [H, W]`.

    With `gate [W, H]` what is activated is multiplied by `x gate^T + gate_bias` before it goes down.
    """

    up: Tensor
    up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None
    activation: Activation
    gate: Tensor | None = None
    gate_bias: Tensor | None = None


class Normalize(NamedTuple):
    """LayerNorm of the stream, `weight [H]` and `bias [H]`; kind "rms": without taking the mean away.

    With `keeps` the next product takes what was normalized, and the stream stays as it was.
    """

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    keeps: bool = False
    kind: Norm = "layer"


def attention_precision(precision: Precision) -> Precision:
    """In what attention multiplies where all other products are in a precision."""
    return "float32" if precision == "float32" else "bfloat16"


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
            _check_attend(where, step, projected)
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
            _check_shape(where, "gate", step.gate, (wide, hidden_size))
            _check_shape(where, "gate_bias", step.gate_bias, (wide,))
            if step.gate is None and step.gate_bias is not None:
                raise ValueError(f"{where}: gate_bias without a gate")
            if step.activation not in ACTIVATIONS:
                raise ValueError(f"{where}: the activation must be one of {list(ACTIVATIONS)}, got {step.activation!r}")
        elif isinstance(step, Normalize):
            _check_shape(where, "weight", step.weight, (hidden_size,))
            _check_shape(where, "bias", step.bias, (hidden_size,))
            checks.check_choice(f"{where}: kind", step.kind, NORMS)
        else:
            raise TypeError(f"step {index} is a {type(step).__name__}, none of {[kind.__name__ for kind in KINDS]}")


def _check_attend(where: str, step: Attend, projected: Project | None) -> None:
    if projected is None or projected.weight.shape[0] != (step.heads + 2 * step.key_heads) * step.head_dim:
        raise ValueError(f"{where}: {step.heads} heads of {step.head_dim} do not follow their Project")
    if step.kv_heads is not None and (step.kv_heads < 1 or step.heads % step.kv_heads):
        raise ValueError(f"{where}: {step.heads} heads do not share {step.kv_heads} heads of keys evenly")
    if not step.scale > 0:
        raise ValueError(f"{where}: the scale must be positive, got {step.scale}")
    if step.window is not None:
        checks.check_integer(f"{where}: window", step.window, 0)
    if step.relative is not None:
        check_relative(step.relative, projected.weight.new_empty(0, step.heads, step.head_dim))
    if step.rotary is not None:
        if step.head_dim % 2:
            raise ValueError(f"{where}: rotary turns pairs of columns, and the heads have {step.head_dim}")
        _check_shape(where, "rotary.cos", step.rotary.cos, (None, step.head_dim))
        _check_shape(where, "rotary.sin", step.rotary.sin, tuple(step.rotary.cos.shape))


def _check_shape(where: str, name: str, tensor: Tensor | None, shape: tuple[int | None, ...]) -> None:
    if tensor is None:
        return
    if tensor.dim() != len(shape) or any(
        want not in (None, size) for want, size in zip(shape, tensor.shape, strict=True)
    ):
        wanted = ["any" if want is None else want for want in shape]
        raise ValueError(f"{where}: {name} must be {wanted}, got {list(tensor.shape)}")
