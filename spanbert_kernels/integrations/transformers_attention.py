"""`attn_implementation="spanbert_kernels"`: document_attention inside transformers' bidirectional encoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.masking_utils import AttentionMaskInterface, bidirectional_mask_function, causal_mask_function
from transformers.modeling_utils import AttentionInterface

from spanbert_kernels import ops
from spanbert_kernels.integrations.padding_mask import PaddingMask, packing_in_graph
from spanbert_kernels.nn.packing import Packing

NAME = "spanbert_kernels"
# Arguments that reach every attention function and would change what it returns.
_REFUSED = {
    "head_mask": "head_mask",
    "sliding_window": "sliding-window attention (sliding_window)",
    "softcap": "soft-capped scores (softcap)",
    "s_aux": "attention sinks (s_aux)",
    "sinks": "attention sinks (sinks)",
    "position_bias": "a position bias (position_bias)",
    "past_key_values": "a cache of keys (past_key_values)",
}
_INSTEAD = 'load the model with attn_implementation="sdpa" or "eager" for that'


def register_attention(name: str = NAME) -> None:
    """Makes `attn_implementation=name` known to transformers; importing `spanbert_kernels.models` does it, too.

    For bidirectional encoders (BERT, RoBERTa, ELECTRA and their kind): attention runs over the real tokens of the batch
    alone, and over each document of a batch that comes packed with `cu_seq_lens_q`. The values at real tokens are
    those of the other implementations; what an attention layer returns at padding is 0. Doing it twice changes nothing.

    Args:
        name: the name to give as `attn_implementation`.

    Raises:
        ValueError: the name belongs to another implementation.

    Example:
        >>> register_attention()
        >>> from transformers import BertConfig, BertModel
        >>> config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
        >>> model = BertModel(config).eval()
        >>> model.set_attn_implementation("spanbert_kernels")
        >>> with torch.no_grad():
        ...     output = model(torch.tensor([[2, 3, 0]]), torch.tensor([[1, 1, 0]]))
        >>> model.config._attn_implementation, output.last_hidden_state.shape
        ('spanbert_kernels', torch.Size([1, 3, 8]))
    """
    # Always both: without a mask function of that name, transformers hands down None and padding is attended to.
    wanted: tuple[tuple[Any, Callable[..., Any]], ...] = (
        (AttentionInterface, packed_attention),
        (AttentionMaskInterface, padding_mask),
    )
    for interface, function in wanted:
        known = interface()
        if name in known and known[name] is not function:
            raise ValueError(f"{name!r} is the name of another attention implementation: choose a different one")
    for interface, function in wanted:
        interface.register(name, function)


def padding_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = bidirectional_mask_function,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> PaddingMask | Tensor | None:
    """Transformers' mask function under our name: `attention_mask [B, L]`, bool, or None, and no `[B, 1, L, L]` of it.

    Raises:
        ValueError: a mask that says more than which tokens are padding.
    """
    if mask_function is causal_mask_function:
        raise _cannot("causal attention")
    if mask_function is not bidirectional_mask_function:
        raise _cannot("a mask that is not one of padding (causal, sliding window, or a mask_function of your own)")
    if q_length != kv_length:
        raise _cannot(f"cross-attention or a cache ({q_length} queries, {kv_length} keys)")
    if torch.compiler.is_compiling():
        return attention_mask
    return PaddingMask(attention_mask, batch_size, q_length)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: PaddingMask | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Transformers' attention function under our name.

    Args:
        module: the attention layer.
        query, key, value: `[B, heads, L, head_dim]`.
        attention_mask: what `padding_mask` returned; None: nothing is padding.
        dropout: share of the attention entries dropped; 0 outside training.
        scaling: by default `head_dim ** -0.5`.
        kwargs: what the model was called with. Read are `cu_seq_lens_q`, `cu_seq_lens_k` and `max_length_q`, of a batch
            packed as one row.

    Returns:
        `[B, L, heads, head_dim]`, 0 at padding, and None: there are no attention matrices.

    Raises:
        ValueError: what is asked for is not bidirectional self-attention under a padding mask; the text names it.
    """
    _check_call(module, query, key, attention_mask, kwargs)
    packing = _packing_of(query, attention_mask, kwargs)
    if _without_kernels(query, packing):
        real = packing.keys_mask
        output = F.scaled_dot_product_attention(query, key, value, real, dropout, scale=scaling).transpose(1, 2)
        return output if real is None else output.masked_fill(~real.view(packing.batch, packing.length, 1, 1), 0), None
    q, k, v = (packing.pack(part.transpose(1, 2)) for part in (query, key, value))  # [T, heads, head_dim]
    # A graph has no use for the plan, which waits behind a lock until Python 3.12.
    documents = packing.cu_seqlens if torch.compiler.is_compiling() else packing.documents
    output = ops.document_attention(q, k, v, documents, dropout_p=dropout, scale=scaling, max_seqlen=packing.max_seqlen)
    assert isinstance(output, Tensor)
    padded = packing.pad(output)
    if isinstance(attention_mask, Tensor) and torch.compiler.is_compiling():
        padded = padded.masked_fill(~attention_mask.bool()[:, :, None, None], 0)
    return padded, None


def _without_kernels(query: Tensor, packing: Packing) -> bool:
    """Whether our attention would be the eager one, unasked, where PyTorch's can take each row as a document."""
    if torch.compiler.is_compiling() or not packing.by_row:
        return False
    return ops.backends.without_kernels("document_attention", query.device.type, query.dtype) is not None


def _check_call(module: nn.Module, query: Tensor, key: Tensor, mask: Any, kwargs: dict[str, Any]) -> None:
    if torch.jit.is_tracing():
        raise _cannot("torch.jit.trace, which would keep the padding of this batch for all others,")
    # As in transformers: the argument goes before the layer, and a layer that says nothing is causal where there is no
    # mask. One of padding was made for attention in both directions.
    said = (kwargs.get("is_causal"), getattr(module, "is_causal", None), mask is None)
    if next(each for each in said if each is not None):
        raise _cannot("causal attention (is_causal)")
    for name, what in _REFUSED.items():
        if kwargs.get(name) is not None:
            raise _cannot(what)
    # transformers would return an empty tuple of them, without a word.
    if kwargs.get("output_attentions") or getattr(getattr(module, "config", None), "output_attentions", False):
        raise _cannot("attention matrices (output_attentions)")
    if query.shape[2] != key.shape[2]:
        raise _cannot(f"cross-attention or a cache ({query.shape[2]} queries, {key.shape[2]} keys)")
    if query.shape[1] != key.shape[1]:
        raise _cannot(f"grouped-query attention ({query.shape[1]} query heads, {key.shape[1]} key heads)")


def _packing_of(query: Tensor, mask: PaddingMask | Tensor | None, kwargs: dict[str, Any]) -> Packing:
    batch, _, length, _ = query.shape
    if isinstance(mask, Tensor) and mask.dim() != 2:
        mask = _real_keys(mask, batch, length)
    compiling = torch.compiler.is_compiling()
    if not isinstance(mask, PaddingMask) and not compiling:
        # A layer was called by itself, or behind a graph that was compiled.
        mask = PaddingMask(mask, batch, length)
    cu_seqlens = _offsets(batch, kwargs)
    if cu_seqlens is not None:
        longest = kwargs.get("max_length_q")
        if isinstance(mask, PaddingMask):
            return mask.given(cu_seqlens, longest)
        return Packing.from_offsets(cu_seqlens, longest, length)
    if isinstance(mask, PaddingMask):
        return mask.packing(query.device)
    if mask is None:
        return Packing.from_mask(None, batch, length, query.device)
    return packing_in_graph(mask.bool())


def _real_keys(mask: Tensor, batch: int, length: int) -> Tensor:
    """`[B, L]` of a mask `[B, 1, 1, L]`, the same for all queries: bool, or what is added to the scores."""
    if mask.dim() != 4 or mask.shape[1:] != (1, 1, length):
        raise _cannot(
            f"a mask of {mask.dim()} dimensions ({list(mask.shape)}), not one of padding [{batch}, {length}],"
        )
    row = mask[:, 0, 0]
    if row.dtype == torch.bool:
        return row.expand(batch, length)
    if torch.compiler.is_compiling():
        raise _cannot("a mask of numbers in a compiled function, where nothing can be read,")
    real, least = row == 0, torch.finfo(row.dtype).min
    if not (real | (row <= least)).all():
        raise _cannot(f"a mask that adds other numbers to the scores than 0 and {least:.3g}")
    return real.expand(batch, length)


def _offsets(batch: int, kwargs: dict[str, Any]) -> Tensor | None:
    """`cu_seq_lens_q`, if the batch came packed."""
    queries: Tensor | None = kwargs.get("cu_seq_lens_q")
    keys: Tensor | None = kwargs.get("cu_seq_lens_k")
    if queries is None and keys is None:
        return None
    if queries is None or keys is None:
        raise ValueError("cu_seq_lens_q and cu_seq_lens_k must be given together")
    if batch != 1:
        raise ValueError(f"a batch packed by cu_seq_lens_q is one row, got {batch} rows")
    same = queries is keys or queries.shape == keys.shape
    if same and queries is not keys and not torch.compiler.is_compiling() and queries.device.type == "cpu":
        same = torch.equal(queries, keys)  # on a GPU to look would mean to wait
    if not same:
        raise _cannot("attention between different documents (cu_seq_lens_k is not cu_seq_lens_q)")
    return queries


def _cannot(what: str) -> ValueError:
    return ValueError(f'the attention implementation "{NAME}" cannot do {what}: {_INSTEAD}')
