"""An accelerated encoder in a function of which torch.compile must make one graph (`fullgraph=True`).

Where the compiler may break its graph, it does so at the encoder, which runs as always. Where it may not, inference is
one operator that it does not look into. Training, and calls of which more is asked than the last hidden states and what
is pooled of them, are transformers' own forward, traced.
"""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

_NAME = "spanbert_kernels::accelerated_encoder"
_forwards: WeakValueDictionary[int, Any] = WeakValueDictionary()
_numbers = itertools.count()

# The host waits for the lengths of a padded batch, and a graph that is captured could not be replayed for another.
_NOT_CAPTURED = tuple(filter(None, [getattr(torch.Tag, "cudagraph_unsafe", None)]))

torch.library.define(
    _NAME,
    "(int encoder, str names, Tensor[] inputs, int hidden_size, ScalarType dtype, ScalarType? autocast) -> Tensor",
    tags=_NOT_CAPTURED,
)


def number_of(forward: Any) -> int:
    """A number by which the operator finds a packed forward, as long as that lives."""
    number = next(_numbers)
    _forwards[number] = forward
    return number


@torch.library.impl(_NAME, "default")
def _run(
    encoder: int, names: str, inputs: list[Tensor], hidden_size: int, dtype: torch.dtype, autocast: torch.dtype | None
) -> Tensor:
    with torch.no_grad(), torch.autocast(inputs[0].device.type, autocast, enabled=autocast is not None):
        output = _forwards[encoder].run(**dict(zip(names.split(","), inputs, strict=True)), return_dict=True)
    states: Tensor = output.last_hidden_state
    return states.to(dtype).contiguous()


@torch.library.register_fake(_NAME)
def _fake(
    encoder: int, names: str, inputs: list[Tensor], hidden_size: int, dtype: torch.dtype, autocast: torch.dtype | None
) -> Tensor:
    batch, length = inputs[names.split(",").index("input_ids" if "input_ids" in names else "inputs_embeds")].shape[:2]
    return inputs[0].new_empty(batch, length, hidden_size, dtype=dtype)


def is_asked_for() -> bool:
    """Whether the function that is being traced must be one graph. The tracer calls this and keeps the answer."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    tracer = InstructionTranslator.current_tx()
    return bool(tracer.one_graph or getattr(tracer, "error_on_graph_break", False))


def say(forward: Any, reason: str) -> None:
    """Let a forward warn while it is traced."""
    forward.warn(reason)


# What torch.compiler.assume_constant_result sets; that one would import the compiler, and Triton with it, at once.
is_asked_for._dynamo_marked_constant = True  # type: ignore[attr-defined]
say._dynamo_marked_constant = True  # type: ignore[attr-defined]


def last_states(model: Any, number: int, given: dict[str, Any]) -> Tensor | str:
    """The last hidden states of a call in a graph, from the operator, or why it cannot give them."""
    if torch.is_grad_enabled():
        return "gradients are on inside a whole graph (fullgraph=True)"
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    for name, value in given.items():
        if name not in tensors and name != "return_dict" and value is not None and value is not False:
            return f"{name} inside a whole graph (fullgraph=True)"
    if not ("input_ids" in tensors or "inputs_embeds" in tensors) or hasattr(model, "pooled_positions"):
        return "what only transformers' forward answers inside a whole graph (fullgraph=True)"
    weight = model.get_input_embeddings().weight
    device = weight.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    dtype = weight.dtype if autocast is None or device == "cpu" else torch.float32
    states: Tensor = torch.ops.spanbert_kernels.accelerated_encoder(
        number, ",".join(tensors), list(tensors.values()), model.config.hidden_size, dtype, autocast
    )
    return states
