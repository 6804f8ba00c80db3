"""A call of an encoder, read: its arguments, or the reason why only transformers' own forward can answer it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from spanbert_kernels.acceleration.family import Family, mixes_documents

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
# Beside what the family's embeddings take.
_UNDERSTOOD = {
    "attention_mask",
    "cluster_ids",
    "cluster_group",
    "return_dict",
    "output_hidden_states",
    "output_attentions",
    "output_cross_attentions",
    "is_causal",
    "use_cache",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "seq_idx",  # it says the same as the offsets
}
# What heads, trainers and tokenizers hand down and no encoder reads, unless its embeddings take it.
_IGNORED = {"num_items_in_batch", "output_router_logits", "shift_labels", "token_type_ids"}
_DECODING = {"past_key_values", "cache", "encoder_hidden_states", "encoder_attention_mask"}


@dataclass(frozen=True)
class Request:
    """What the packed forward needs to know of a call. `B` rows of `L` tokens.

    Attributes:
        inputs: what the embeddings are given, by name: `[B, L, ...]`, sizes of 1 for what all rows share.
        attention_mask: `[B, L]`.
        cluster_ids: which documents see each other.
        cluster_group: the processes that have some of them, None for this one alone.
        hidden_states: which were asked for, by index, or True for all; None if they are not.
        return_dict: whether the output has names.
        batch: B.
        length: L.
        device: of the inputs.
        cu_seqlens: where the documents begin, and the last ends, of a batch that came packed as one row.
        max_seqlen: tokens of the longest of them, if that is known.
    """

    inputs: dict[str, Tensor | None]
    attention_mask: Tensor | None
    cluster_ids: Tensor | None
    cluster_group: ProcessGroup | None
    hidden_states: set[int] | Literal[True] | None
    return_dict: bool
    batch: int
    length: int
    device: torch.device
    cu_seqlens: Tensor | None = None
    max_seqlen: int | None = None


def read_request(
    model: Any, family: Family, names: Sequence[str], args: Sequence[Any], kwargs: dict[str, Any]
) -> Request | str:
    """The call `model(*args, **kwargs)`, whose forward names its arguments `names`; a str is a reason to refuse it."""
    if len(args) > len(names) or not kwargs.keys().isdisjoint(names[: len(args)]):
        return "arguments that the forward does not take"
    given = {**kwargs, **dict(zip(names, args, strict=False))}
    reason = _argument_refusal(model, family, given)
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
    mask = given.get("attention_mask")
    if mask is not None and (not isinstance(mask, Tensor) or mask.shape != (batch, length)):
        return "an attention mask that is not [batch, length]"
    cu_seqlens, reason = _offsets(model, given, batch)
    if reason is not None:
        return reason
    inputs = {name: given.get(name) for name in family.inputs}
    for name, sizes in family.zeros.items():
        if inputs[name] is None:
            inputs[name] = torch.zeros(batch, length, *sizes, dtype=torch.long, device=source.device)
    longest = family.longest(model)
    if inputs.get("position_ids") is None and longest is not None and length > longest:
        return "sequences longer than the model's positions"
    hidden_states = _hidden_states(model, family, given)
    if isinstance(hidden_states, str):
        return hidden_states
    return_dict = given.get("return_dict")
    if return_dict is None:
        return_dict = getattr(model.config, "return_dict", True)
    return Request(
        inputs,
        mask,
        given.get("cluster_ids"),
        given.get("cluster_group"),
        hidden_states,
        return_dict is not False,
        batch,
        length,
        source.device,
        cu_seqlens,
        given.get("max_length_q"),
    )


def _offsets(model: Any, given: dict[str, Any], batch: int) -> tuple[Tensor | None, str | None]:
    """`cu_seq_lens_q`, if the batch came packed, and why the documents at them cannot be told apart, or None."""
    queries, keys, mask = (given.get(name) for name in ("cu_seq_lens_q", "cu_seq_lens_k", "attention_mask"))
    if queries is None and keys is None:
        return None, None
    if batch != 1 or not isinstance(queries, Tensor):
        return None, f"offsets of packed documents (cu_seq_lens) that do not belong to one row, in {batch}"
    if keys is not queries and not (isinstance(keys, Tensor) and torch.equal(queries, keys)):
        return None, "attention between different documents (cu_seq_lens_k is not cu_seq_lens_q)"
    if mask is not None and not mask.all():
        return None, "padding in a batch that came packed (cu_seq_lens_q)"
    anchored = getattr(model.config, "pooler_token", "first") == "anchor"
    if mixes_documents(model) and (anchored or given.get("cluster_ids") is not None):
        return None, "a batch that came packed (cu_seq_lens_q), whose documents are to see each other"
    return queries, None


def _asked(model: Any, family: Family, given: dict[str, Any], name: str) -> Any:
    """What a call says of an output, or the configuration where it says nothing; older forwards take None for that."""
    default = getattr(model.config, name, False)
    asked = given.get(name, default)
    return default if asked is None and not family.captures else asked


def _hidden_states(model: Any, family: Family, given: dict[str, Any]) -> set[int] | Literal[True] | str | None:
    """Which hidden states a call wants, or why they cannot be given."""
    asked = _asked(model, family, given, "output_hidden_states")
    if not asked:
        return None
    if asked is True or not family.captures:
        return True
    from transformers.utils import output_capturing

    if not hasattr(output_capturing, "resolve_hidden_states_indices"):
        return "hidden states chosen by index, which this version of transformers does not know"
    selected = output_capturing.selected_hidden_states(asked)
    return set(output_capturing.resolve_hidden_states_indices(model, selected))


def _argument_refusal(model: Any, family: Family, given: dict[str, Any]) -> str | None:
    config = model.config
    for name, value in family.settings.items():
        if getattr(model, name) != value:
            return f"the encoder's {name} is {getattr(model, name)}"
    if getattr(config, "is_decoder", False) or given.get("is_causal", getattr(config, "is_causal", None)):
        return "causal attention"
    for name in ("output_attentions", "output_cross_attentions"):
        if _asked(model, family, given, name):
            return "attention matrices were asked for (output_attentions)"
    attention = config._attn_implementation
    if attention not in _SAME_ATTENTION and attention is not None:
        return f"the attention implementation {attention!r} is not one of transformers' own"
    for name, value in given.items():
        if value is None or name in _IGNORED or name in _UNDERSTOOD or name in family.inputs:
            continue
        if name in _DECODING:
            return f"{name} was given, which belongs to a decoder"
        return f"the argument {name} goes to transformers' attention functions"
    for name in ("cluster_ids", "cluster_group"):
        if given.get(name) is not None and not mixes_documents(model):
            return f"the argument {name} goes to transformers' attention functions"
    return None
