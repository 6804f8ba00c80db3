"""A call of an encoder, read: its arguments, or the reason why only transformers' own forward can answer it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spanbert_kernels.acceleration.families import Family, mixes_documents

# Other names for the same attention; anything else was registered by the user and may compute something else.
_SAME_ATTENTION = {
    "eager",
    "sdpa",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
    "flex_attention",
    "spanbert_kernels",  # integrations/transformers_attention.py
}
_UNDERSTOOD = {
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "position_ids",
    "inputs_embeds",
    "cluster_ids",
    "return_dict",
    "output_hidden_states",
    "output_attentions",
    "output_cross_attentions",
    "is_causal",
    "use_cache",
}
# What heads and trainers hand down and no encoder reads.
_IGNORED = {"num_items_in_batch", "output_router_logits"}


@dataclass(frozen=True)
class Request:
    """What the packed forward needs to know of a call. `B` rows of `L` tokens."""

    input_ids: Tensor | None
    attention_mask: Tensor | None
    token_type_ids: Tensor | None
    position_ids: Tensor | None
    inputs_embeds: Tensor | None
    cluster_ids: Tensor | None
    output_hidden_states: bool
    return_dict: bool
    batch: int
    length: int
    device: torch.device


def read_request(
    model: Any, family: Family, names: Sequence[str], args: Sequence[Any], kwargs: dict[str, Any]
) -> Request | str:
    """The call `model(*args, **kwargs)`, whose forward names its arguments `names`; a str is a reason to refuse it."""
    if len(args) > len(names) or not kwargs.keys().isdisjoint(names[: len(args)]):
        return "arguments that the forward does not take"
    given = {**kwargs, **dict(zip(names, args, strict=False))}
    reason = _argument_refusal(model, given)
    if reason is not None:
        return reason
    input_ids, inputs_embeds = given.get("input_ids"), given.get("inputs_embeds")
    if (input_ids is None) == (inputs_embeds is None):
        return "not exactly one of input_ids and inputs_embeds"
    source: Tensor = inputs_embeds if input_ids is None else input_ids  # type: ignore[assignment]
    if not isinstance(source, Tensor) or source.dim() != (3 if input_ids is None else 2) or source.numel() == 0:
        return "inputs that are not a batch of sequences"
    if source.device.type == "meta":
        return "tensors without data (on the meta device)"
    batch, length = source.shape[:2]
    mask, position_ids = given.get("attention_mask"), given.get("position_ids")
    if mask is not None and (not isinstance(mask, Tensor) or mask.shape != (batch, length)):
        return "an attention mask that is not [batch, length]"
    if position_ids is None and family.positions == "column" and length > model.embeddings.position_ids.shape[1]:
        return "sequences longer than the model's positions"
    hidden_states = given.get("output_hidden_states", getattr(model.config, "output_hidden_states", False))
    if not isinstance(hidden_states, bool | None):
        return "hidden states chosen by index"
    return_dict = given.get("return_dict")
    if return_dict is None:
        return_dict = getattr(model.config, "return_dict", True)
    return Request(
        input_ids,
        mask,
        given.get("token_type_ids"),
        position_ids,
        inputs_embeds,
        given.get("cluster_ids"),
        bool(hidden_states),
        return_dict is not False,
        batch,
        length,
        source.device,
    )


def _argument_refusal(model: Any, given: dict[str, Any]) -> str | None:
    config = model.config
    if config.is_decoder or given.get("is_causal", getattr(config, "is_causal", None)):
        return "causal attention"
    for name in ("output_attentions", "output_cross_attentions"):
        if given.get(name, getattr(config, name, False)):
            return "attention matrices were asked for (output_attentions)"
    attention = config._attn_implementation
    if attention not in _SAME_ATTENTION and attention is not None:
        return f"the attention implementation {attention!r} is not one of transformers' own"
    for name, value in given.items():
        if value is None or name in _IGNORED or name in _UNDERSTOOD:
            continue
        if name in ("past_key_values", "encoder_hidden_states", "encoder_attention_mask"):
            return f"{name} was given, which belongs to a decoder"
        return f"the argument {name} goes to transformers' attention functions"
    if given.get("cluster_ids") is not None and not mixes_documents(model):
        return "the argument cluster_ids goes to transformers' attention functions"
    return None
