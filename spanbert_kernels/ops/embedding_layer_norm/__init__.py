"""What stands before a transformer's layers: rows of tables, their sum, LayerNorm, dropout."""

from __future__ import annotations

import torch
from torch import Tensor

from spanbert_kernels.ops import checks
from spanbert_kernels.ops.backends import Reasons
from spanbert_kernels.ops.choices import Backend
from spanbert_kernels.ops.dropout_add_layer_norm.operators import LARGEST_ROW
from spanbert_kernels.ops.embedding_layer_norm import reference
from spanbert_kernels.ops.embedding_layer_norm.operators import OPERATION, EmbeddingLayerNorm, Lookups

__all__ = ["embedding_layer_norm"]


def embedding_layer_norm(
    token_ids: Tensor,
    token_table: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    position_ids: Tensor | None = None,
    position_table: Tensor | None = None,
    type_ids: Tensor | None = None,
    type_table: Tensor | None = None,
    padding_idx: int | None = None,
    dropout_p: float = 0.0,
    eps: float = 1e-12,
    seed: Tensor | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """`dropout(LayerNorm(token_table[token_ids] + position_table[position_ids] + type_table[type_ids]))` in one pass.

    Args:
        token_ids: int32 or int64 `[T]`, of packed tokens.
        token_table: `[V, H]`, float32, bfloat16, float16 or float64.
        weight: `[H]`, like token_table.
        bias: `[H]`, like token_table.
        position_ids: like token_ids, with a table of their own.
        position_table: `[P, H]`, like token_table.
        type_ids: like token_ids, with a table of their own.
        type_table: `[Y, H]`, like token_table.
        padding_idx: the row of token_table that gets no gradient.
        dropout_p: share of the entries dropped, in [0, 1); the others are divided by `1 - dropout_p`.
        eps: added to the variance, not negative; BERT's is the default.
        seed: int64 tensor with one number; by default drawn from torch's generator, once per call.
        backend: the backend to use; by default the best one here.

    Returns:
        `[T, H]` in the dtype of the tables, computed in float32 (float64 for float64) and rounded once. On a GPU, where
        nobody looks at the ids, one outside its table gives zeros.

    Raises:
        ValueError: shapes that do not fit, ids without a table, a dropout outside [0, 1), a negative eps, and on a CPU
            an id outside its table.
        TypeError: dtypes or devices that differ.

    Source: Devlin et al. 2019, BERT. Dropout: `ops/philox.py`.

    Example:
        >>> table = torch.tensor([[1.0, 3.0], [4.0, 0.0]])
        >>> embedding_layer_norm(torch.tensor([1, 0, 1]), table, torch.ones(2)).round().tolist()
        [[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0]]
    """
    checks.check_floating("token_table", token_table, 2, "[V, H]")
    _check_lookup("token", token_ids, token_table, token_ids, token_table)
    for name, ids, table in (("position", position_ids, position_table), ("type", type_ids, type_table)):
        if ids is not None or table is not None:
            _check_lookup(name, ids, table, token_ids, token_table)
    for name, tensor in (("weight", weight), *([] if bias is None else [("bias", bias)])):
        checks.check_floating(name, tensor, 1, "[H]")
        checks.check_same(name, tensor, "token_table", token_table)
        if tensor.shape != token_table.shape[1:]:
            raise ValueError(f"{name} must be {list(token_table.shape[1:])}, got {list(tensor.shape)}")
    if padding_idx is not None:
        padding_idx = checks.check_integer("padding_idx", padding_idx, 0, token_table.shape[0] - 1)
    dropout = checks.check_dropout(dropout_p, seed, "token_table", token_table)
    checks.check_number("eps", eps)
    if eps < 0:
        raise ValueError(f"eps must not be negative, got {eps}")
    wide = token_table.shape[1] > LARGEST_ROW
    lacking: Reasons = (("triton", f"it takes rows of at most {LARGEST_ROW} columns"),) if wide else ()
    chosen = OPERATION.choose(token_table, backend, lacking)
    lookups = Lookups(token_ids, token_table, position_ids, position_table, type_ids, type_table)
    if chosen == "eager":
        with torch.autocast(token_table.device.type, enabled=False):
            return reference.embedding_layer_norm(lookups, padding_idx, weight, bias, dropout, eps)
    output: Tensor = EmbeddingLayerNorm.apply(*lookups, weight, bias, padding_idx, dropout, float(eps), chosen)
    return output


def _check_lookup(name: str, ids: Tensor | None, table: Tensor | None, tokens: Tensor, token_table: Tensor) -> None:
    if ids is None or table is None:
        missing, given = ("ids", "table") if ids is None else ("table", "ids")
        raise ValueError(f"{name}_{missing} must be given where {name}_{given} is")
    checks.check_floating(f"{name}_table", table, 2, "[rows, H]")
    checks.check_same(f"{name}_table", table, "token_table", token_table)
    checks.check_index(f"{name}_ids", ids, 1, "[T]")
    checks.check_device(f"{name}_ids", ids, "token_table", token_table)
    if ids.shape != tokens.shape:
        raise ValueError(f"{name}_ids must be {list(tokens.shape)}, got {list(ids.shape)}")
    if table.shape[1] != token_table.shape[1]:
        raise ValueError(f"{name}_table must have {token_table.shape[1]} columns, got {table.shape[1]}")
    if ids.device.type != "cpu" or torch.compiler.is_compiling() or ids.numel() == 0:
        return
    lowest, highest = (int(each) for each in ids.aminmax())
    if lowest < 0 or highest >= table.shape[0]:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"{name}_ids must be in 0 .. {table.shape[0] - 1}, got {wrong}")
