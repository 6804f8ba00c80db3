"""The embeddings of packed tokens in one pass on a GPU, where they are a sum of three tables' rows, as BERT's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spanbert_kernels import ops
from spanbert_kernels.acceleration.on_gpu import takes
from spanbert_kernels.acceleration.parts import eps_of
from spanbert_kernels.acceleration.stand_ins import is_read
from spanbert_kernels.ops.dropout_add_layer_norm.operators import LARGEST_ROW
from spanbert_kernels.ops.embedding_layer_norm.operators import Lookups
from spanbert_kernels.ops.philox import Dropout
from spanbert_kernels.ops.repeats import Repeats, unseen

_KNOWN = {
    ("transformers.models.bert.modeling_bert", "BertEmbeddings"),
    ("transformers.models.camembert.modeling_camembert", "CamembertEmbeddings"),
    ("transformers.models.electra.modeling_electra", "ElectraEmbeddings"),
    ("transformers.models.roberta.modeling_roberta", "RobertaEmbeddings"),
    ("transformers.models.xlm_roberta.modeling_xlm_roberta", "XLMRobertaEmbeddings"),
}
_NOTHING_DROPPED = Dropout(0.0, None)
_repeats = Repeats()  # of calls on as many tokens


def embedded(
    embeddings: Any, token_ids: Tensor | None, type_ids: Tensor | None, position_ids: Callable[[], Tensor]
) -> Tensor | None:
    """`[T, H]`, or None where the module has to be called.

    Args:
        embeddings: the encoder's module.
        token_ids: `[T]`.
        type_ids: `[T]`; None: zeros.
        position_ids: makes them, `[T]`.
    """
    if token_ids is None or (type(embeddings).__module__, type(embeddings).__name__) not in _KNOWN:
        return None
    tables = (embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings)
    norm, dropout = embeddings.LayerNorm, embeddings.dropout
    if not all(type(each) is nn.Embedding and _is_plain(each) for each in tables) or not is_read(norm):
        return None
    tokens, positions, types = tables
    dropout_p = dropout.p if dropout.training else 0.0
    # A row of positions that gets no gradient is nothing that the operation knows.
    frozen = positions.padding_idx is not None and torch.is_grad_enabled()
    if frozen or dropout_p >= 1 or norm.weight is None or tokens.weight.shape[1] > LARGEST_ROW:
        return None
    if not takes(*(each.weight for each in tables), norm.weight, norm.bias):
        return None
    if type_ids is None:
        type_ids = torch.zeros_like(token_ids)
    quick = not torch.is_grad_enabled() and dropout_p == 0 and unseen() and not ops.backends.is_recorded()
    if quick:
        from spanbert_kernels.ops.embedding_layer_norm.triton import forward

        lookups = Lookups(token_ids, tokens.weight, position_ids(), positions.weight, type_ids, types.weight)
        values = (lookups, norm.weight, norm.bias, _NOTHING_DROPPED, eps_of(norm))
        output: Tensor = _repeats.run("embedding_layer_norm", None, forward, values)[0]
        return output
    return ops.embedding_layer_norm(
        token_ids,
        tokens.weight,
        norm.weight,
        norm.bias,
        position_ids=position_ids(),
        position_table=positions.weight,
        type_ids=type_ids,
        type_table=types.weight,
        padding_idx=tokens.padding_idx,
        dropout_p=dropout_p,
        eps=eps_of(norm),
    )


def _is_plain(table: nn.Embedding) -> bool:
    """Whether a table is read as it is, and its gradient is dense."""
    return is_read(table) and table.max_norm is None and not table.sparse and not table.scale_grad_by_freq
