"""The embeddings of packed tokens where they are a sum of three tables' rows, as BERT's: in one pass on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from spanbert_kernels import ops
from spanbert_kernels.acceleration.gpu_program import Launches, is_current, lie_well, stream_of
from spanbert_kernels.acceleration.parts import eps_of
from spanbert_kernels.acceleration.stand_ins import is_read
from spanbert_kernels.nn.lookup import is_gained_by, look_up
from spanbert_kernels.ops.dropout_add_layer_norm.operators import LARGEST_ROW
from spanbert_kernels.ops.embedding_layer_norm.operators import Lookups
from spanbert_kernels.ops.on_gpu import takes
from spanbert_kernels.ops.philox import Dropout
from spanbert_kernels.ops.repeats import unseen

_KNOWN = {
    ("transformers.models.bert.modeling_bert", "BertEmbeddings"),
    ("transformers.models.camembert.modeling_camembert", "CamembertEmbeddings"),
    ("transformers.models.electra.modeling_electra", "ElectraEmbeddings"),
    ("transformers.models.roberta.modeling_roberta", "RobertaEmbeddings"),
    ("transformers.models.xlm_roberta.modeling_xlm_roberta", "XLMRobertaEmbeddings"),
}
_NOTHING_DROPPED = Dropout(0.0, None)


class Embedder:
    """The embeddings of an encoder that was looked through, and is still the same.

    Args:
        embeddings: its module.
    """

    def __init__(self, embeddings: Any) -> None:
        self._launches = Launches()
        self.tables: tuple[nn.Embedding, ...] = ()
        if (type(embeddings).__module__, type(embeddings).__name__) not in _KNOWN:
            return
        tables = (embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings)
        if all(type(each) is nn.Embedding and is_read(each) for each in tables) and is_read(embeddings.LayerNorm):
            self.tables, self.norm, self.dropout = tables, embeddings.LayerNorm, embeddings.dropout

    def __call__(
        self, token_ids: Tensor | None, type_ids: Tensor | None, position_ids: Callable[[], Tensor]
    ) -> Tensor | None:
        """`[T, H]`, or None where the module has to be called.

        Args:
            token_ids: `[T]`.
            type_ids: `[T]`; None: zeros.
            position_ids: makes them, `[T]`.
        """
        if token_ids is None or not self.tables or not all(map(_is_plain, self.tables)):
            return None
        device = token_ids.device.type
        if torch.is_autocast_enabled(device):  # which leaves sums and norms of float32 as they are
            if any(table.weight.dtype != torch.float32 for table in self.tables):
                return None
            with torch.autocast(device, enabled=False):
                return self(token_ids, type_ids, position_ids)
        tokens, positions, _ = self.tables
        dropout_p = self.dropout.p if self.dropout.training else 0.0
        # A row of positions that gets no gradient is nothing that the operation knows.
        frozen = positions.padding_idx is not None and torch.is_grad_enabled()
        held = [module._parameters.get("weight") for module in (*self.tables, self.norm)]
        weights = [each for each in held if each is not None]
        if frozen or dropout_p >= 1 or len(weights) < len(held) or weights[0].shape[1] > LARGEST_ROW:
            return None
        bias, eps = self.norm._parameters.get("bias"), eps_of(self.norm)
        if not takes(*weights, bias):
            return None
        if type_ids is None:
            type_ids = torch.zeros_like(token_ids)
        token_table, position_table, type_table, weight = weights
        lookups = (token_ids, token_table, position_ids(), position_table, type_ids, type_table)
        quick = not torch.is_grad_enabled() and dropout_p == 0 and unseen() and not ops.backends.is_recorded()
        given = (*lookups, weight) if bias is None else (*lookups, weight, bias)
        if quick and len(token_ids) and is_current(weight.device) and lie_well(given):
            key = (weight.device, eps, *[(each.shape, each.dtype) for each in given])
            return self._launches.run(stream_of(weight.device), key, _forward, given, eps)[0]
        return ops.embedding_layer_norm(
            token_ids,
            token_table,
            weight,
            bias,
            position_ids=lookups[2],
            position_table=position_table,
            type_ids=type_ids,
            type_table=type_table,
            padding_idx=tokens.padding_idx,
            dropout_p=dropout_p,
            eps=eps,
        )

    def words(self, token_ids: Tensor | None) -> Tensor | None:
        """The words' own rows `[..., H]`, where their gradient gains by that; None: the module looks them up as well.

        Args:
            token_ids: `[...]`.
        """
        if token_ids is None or not self.tables:
            return None
        words = self.tables[0]
        if not _is_plain(words) or _has_hooks(words) or not is_gained_by(words.weight):
            return None
        return look_up(token_ids, words.weight, words.padding_idx)


def _forward(*given: Any) -> tuple[Tensor, ...]:
    """The operator's kernel, of the lookups' tensors, the norm's, and what it adds to the variance."""
    from spanbert_kernels.ops.embedding_layer_norm.triton import forward

    *tensors, eps = given
    weight, bias = (*tensors[6:], None)[:2]
    made: tuple[Tensor, ...] = forward(Lookups(*tensors[:6]), weight, bias, _NOTHING_DROPPED, eps)
    return made


def _is_plain(table: nn.Embedding) -> bool:
    """Whether a table is read as it is, and its gradient is dense."""
    return table.max_norm is None and not table.sparse and not table.scale_grad_by_freq


def _has_hooks(module: nn.Module) -> bool:
    """Whether somebody would notice that a module is not called."""
    held = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(held)
