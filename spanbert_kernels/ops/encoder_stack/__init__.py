"""Layers of an encoder on packed documents, in one call: inference on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spanbert_kernels.ops import backends, checks
from spanbert_kernels.ops.attention_plans import AttentionPlan
from spanbert_kernels.ops.choices import PRECISIONS, Backend, Precision
from spanbert_kernels.ops.encoder_stack import packing, reference
from spanbert_kernels.ops.encoder_stack.operators import OPERATION, encoder_stack_forward
from spanbert_kernels.ops.encoder_stack.steps import (
    Activation,
    Attend,
    FeedForward,
    Merge,
    Norm,
    Normalize,
    Project,
    Rotary,
    Step,
    check_steps,
)
from spanbert_kernels.ops.packed_linear.products import products_refusal

__all__ = [
    "Activation",
    "Attend",
    "EncoderStack",
    "FeedForward",
    "Merge",
    "Norm",
    "Normalize",
    "Precision",
    "Project",
    "Rotary",
    "Step",
    "encoder_stack",
    "encoder_stack_refusal",
]


def encoder_stack_refusal(precision: Precision) -> str | None:
    """Why the compiled kernels cannot compute in a precision here, or None.

    Example:
        >>> encoder_stack_refusal("float64")
        Traceback (most recent call last):
        ...
        ValueError: the precision must be one of ['float32', 'bfloat16', 'int8'], got 'float64'
    """
    _check_precision(precision)
    reason = backends.refusal("cpu", "cpu", torch.float32, OPERATION.name)
    return reason or products_refusal(precision)


class EncoderStack:
    """Steps of an encoder, and their weights packed for the kernels of this processor when these first run.

    The packed weights are copies: later changes of the tensors are not followed.

    Attributes:
        steps, hidden_size, precision: as given.
        positions: tokens that a document may have, where rotary tables end; None: any number.

    Args:
        steps: what the layers do, one after the other: `Project`, `Attend`, `Merge`, `FeedForward`, `Normalize`.
        hidden_size: H, columns of the stream.
        precision: how products are computed: "float32"; "bfloat16", inputs and weights rounded, sums in float32; or
            "int8", weights in steps a column and inputs in steps a row, attention in bfloat16. What products are added
            to, and norms, are float32 always.

    Raises:
        ValueError: a step's tensors do not fit, it stands where it means nothing, or the precision has another name.
        TypeError: something else than a step.

    Example:
        >>> stack = EncoderStack([Normalize(torch.ones(4), torch.zeros(4), 1e-12)], hidden_size=4)
        >>> stack.precision, len(stack.steps)
        ('float32', 1)
    """

    def __init__(self, steps: Sequence[Step], hidden_size: int, precision: Precision = "float32") -> None:
        _check_precision(precision)
        check_steps(steps, hidden_size)
        self.steps = tuple(steps)
        self.hidden_size = hidden_size
        self.precision: Precision = precision
        rotaries = [step.rotary for step in steps if isinstance(step, Attend) and step.rotary is not None]
        self.positions = min((len(rotary.cos) for rotary in rotaries), default=None)
        self._packed: packing.PackedSteps | None = None

    def packed(self) -> packing.PackedSteps:
        """The weights as the CPU kernels take them."""
        if self._packed is None:
            self._packed = packing.pack(self.steps, self.hidden_size, self.precision)
        return self._packed


def encoder_stack(
    hidden: Tensor,
    cu_seqlens: Tensor | AttentionPlan,
    stack: EncoderStack,
    *,
    first: int = 0,
    last: int | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """The steps `first` to `last - 1` of a stack on the tokens of packed documents, without gradients.

    Args:
        hidden: `[T, H]`, float32, bfloat16 or float16 (eager: float64 too), any strides.
        cu_seqlens: int32 or int64 `[documents + 1]`, offsets of the documents, from 0 to T; or the plan made of it by
            `plan_attention`.
        stack: the steps and their weights.
        first: the first step.
        last: one behind the last step; None for all.
        backend: the backend to use; by default the best one here.

    Returns:
        `[T, H]`, in the dtype of hidden. The same bits for any number of threads, and for a document whatever stands
        beside it.

    Raises:
        ValueError: shapes, offsets or steps that do not fit.
        TypeError: another dtype.
        RuntimeError: a gradient would be needed, or this processor has no products of the stack's precision.

    Source: the layers of Vaswani et al. 2017 and Devlin et al. 2019; the schedule is described in the kernel.

    Example:
        >>> stack = EncoderStack([Normalize(None, None, eps=0.0)], hidden_size=2)
        >>> encoder_stack(torch.tensor([[1.0, 3.0], [6.0, 2.0]]), torch.tensor([0, 2]), stack).tolist()
        [[-1.0, 1.0], [1.0, -1.0]]
    """
    checks.check_floating("hidden", hidden, 2, "[T, H]")
    if not isinstance(stack, EncoderStack):
        raise TypeError(f"stack must be an EncoderStack, got {type(stack).__name__}")
    if hidden.shape[1] != stack.hidden_size:
        raise ValueError(f"hidden must have the stack's {stack.hidden_size} columns, got {list(hidden.shape)}")
    count = len(stack.steps)
    first = checks.check_integer("first", first, 0, count)
    last = count if last is None else checks.check_integer("last", last, first, count)
    if isinstance(cu_seqlens, AttentionPlan):
        if cu_seqlens.cu_clusters is not None or cu_seqlens.num_tokens != hidden.shape[0]:
            raise ValueError(f"the plan is not one of documents of {hidden.shape[0]} tokens")
        offsets = cu_seqlens.cu_seqlens
    else:
        checks.check_offsets("cu_seqlens", cu_seqlens, hidden.shape[0], "tokens")
        offsets = cu_seqlens
    checks.check_device("cu_seqlens", offsets, "hidden", hidden)
    if stack.positions is not None:
        longest = max(offsets.diff().tolist(), default=0)
        if longest > stack.positions:
            raise ValueError(f"a document has {longest} tokens, but the stack's rotary tables end at {stack.positions}")
    if hidden.requires_grad and torch.is_grad_enabled():
        raise RuntimeError("encoder_stack has no gradient: call it under torch.no_grad(), or detach its input")
    if _chosen(hidden, stack, backend) == "eager":
        with torch.autocast(hidden.device.type, enabled=False):
            return reference.encoder_stack(hidden, offsets, stack.steps[first:last], stack.precision)
    packed = stack.packed()
    precision = PRECISIONS.index(stack.precision)
    arena = packed.take_arena(hidden, offsets, precision)
    output: Tensor = encoder_stack_forward(
        "cpu", hidden, offsets, packed.region, packed.rows, packed.constants, arena, precision, first, last
    )
    packed.arenas.append(arena)
    return output


def _chosen(hidden: Tensor, stack: EncoderStack, backend: Backend | None) -> Backend:
    """The backend for a call: the kernels do not take float64, and not every precision everywhere."""
    reason = "they do not take float64" if hidden.dtype == torch.float64 else encoder_stack_refusal(stack.precision)
    if reason is not None and hidden.device.type == "cpu":
        wish = backend or backends.asked()
        if wish == "cpu":
            raise backends.BackendUnavailable(f"encoder_stack: backend 'cpu' cannot take this call: {reason}")
        backend = "eager" if wish is None else wish
    return OPERATION.choose(hidden, backend)


def _check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"the precision must be one of {list(PRECISIONS)}, got {precision!r}")
