"""Pair pooling: two rows of every pair and what is made of them, written in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spanbert_kernels.ops import checks
from spanbert_kernels.ops.choices import Backend
from spanbert_kernels.ops.pair_pool import reference
from spanbert_kernels.ops.pair_pool.operators import OPERATION, PairPool, PairSources, PairWork
from spanbert_kernels.ops.pair_pool.parts import PairPart, parse_parts

__all__ = ["pair_pool"]


def pair_pool(
    first: Tensor,
    second: Tensor | None,
    pairs: Tensor,
    parts: Sequence[str],
    features: Tensor | None = None,
    feature_rows: Tensor | None = None,
    *,
    first_sentinel: Tensor | None = None,
    second_sentinel: Tensor | None = None,
    mask: Tensor | None = None,
    validate: bool = False,
    backend: Backend | None = None,
) -> Tensor:
    """One vector for every pair (i, j), made of `x = first[i]` and `y = second[j]`, without gathering either.

    The pairs are in any order, and i may be above or below j: endpoints of spans, two mentions, a head and a candidate.

    Args:
        first: `[T1, H]`; float32, bfloat16, float16 or float64.
        second: `[T2, H]` in its dtype, or None for `first`; where no part combines x and y, its H may be another.
        pairs: int32 or int64 `[N, 2]`, rows of first and second.
        parts: any of `x`, `y`, two of them with `*`, `+`, `-` or `/` between (`x*y`, `y-x`), `|x-y|`, and `feature` (a
            row of `features`), in the order of the output; one may be named twice.
        features: `[R, E]`, for `feature`: widths, distances.
        feature_rows: int32 or int64 `[N]`, the row of features for each pair.
        first_sentinel: `[H]`, the row that index -1 of first stands for: a learned vector before the first token.
        second_sentinel: `[H]`, the same for second.
        mask: bool `[N]`; a pair that is False gives zeros, whatever its indices are.
        validate: check the indices on any device (on a CPU they are always checked).
        backend: the backend to use; by default the best one here.

    Returns:
        `[N, sum of the parts' sizes]` in the dtype of `first`; what combines is computed in float32 (float64) and
        rounded once.

    Gradients reach `first`, `second`, `features` and the sentinels, summed in a fixed order; `|x-y|` has none where x
    is y. A second derivative is there on `eager`.

    Raises:
        ValueError: shapes, an unknown part, a missing input, an index without a row (the first one is named).
        TypeError: dtypes or devices.
        RuntimeError: a second derivative on another backend than `eager`.

    Source: the combinations are those of AllenNLP's endpoint extractor (Gardner et al. 2018) and of e2e-coref's pairs
    of mentions (Lee et al. 2017).

    Example:
        >>> rows = torch.tensor([[1.0, 5.0], [3.0, 2.0]])
        >>> pair_pool(rows, None, torch.tensor([[1, 0], [0, 1]]), ["x", "x-y"]).tolist()
        [[3.0, 2.0, 2.0, -3.0], [1.0, 5.0, -2.0, 3.0]]
    """
    named = parse_parts(parts)
    sources = check_sources(named, first, second, features, first_sentinel, second_sentinel)
    work = check_work(sources, named, pairs, feature_rows, mask, validate)
    chosen = OPERATION.choose(first, backend)
    with torch.autocast(first.device.type, enabled=False):
        if chosen == "eager":
            return reference.pair_pool(sources, work)
        output: Tensor = PairPool.apply(*sources, work, chosen, "pair_pool")
    return output


def check_sources(
    parts: Sequence[PairPart],
    first: Tensor,
    second: Tensor | None,
    features: Tensor | None,
    first_sentinel: Tensor | None = None,
    second_sentinel: Tensor | None = None,
) -> PairSources:
    """What pairs read, for these parts, all in the dtype of `first`."""
    checks.check_floating("first", first, 2, "[T1, H]")
    if second is None or second is first:
        second = first.view_as(first)  # torch.compile takes no tensor for two arguments of an autograd.Function
    checks.check_floating("second", second, 2, "[T2, H]")
    checks.check_same("second", second, "first", first)
    if any(len(part.reads()) > 1 for part in parts) and first.shape[1] != second.shape[1]:
        raise ValueError(
            f"parts that combine x and y need as many columns of both, got {first.shape[1]} and {second.shape[1]}"
        )
    if any(part.operation == "feature" for part in parts):
        if features is None:
            raise ValueError("part 'feature' needs features [R, E], got None")
        checks.check_floating("features", features, 2, "[R, E]")
        checks.check_device("features", features, "first", first)
        features = features.to(first.dtype)
    else:
        features = None
    return PairSources(
        first,
        second,
        _check_sentinel("first_sentinel", first_sentinel, first),
        _check_sentinel("second_sentinel", second_sentinel, second),
        features,
    )


def _check_sentinel(name: str, sentinel: Tensor | None, rows: Tensor) -> Tensor | None:
    if sentinel is None:
        return None
    checks.check_floating(name, sentinel, 1, "[H]")
    checks.check_device(name, sentinel, "first", rows)
    if len(sentinel) != rows.shape[1]:
        raise ValueError(f"{name} must have shape [{rows.shape[1]}], got {list(sentinel.shape)}")
    return sentinel.to(rows.dtype)


def check_work(
    sources: PairSources,
    parts: Sequence[PairPart],
    pairs: Tensor,
    feature_rows: Tensor | None,
    mask: Tensor | None,
    validate: bool,
) -> PairWork:
    """Which rows the pairs read; the indices are looked at where that costs no synchronisation, or is asked for."""
    first, second, first_sentinel, second_sentinel, features = sources
    checks.check_flag("validate", validate)
    checks.check_index("pairs", pairs, 2, "[N, 2]")
    checks.check_device("pairs", pairs, "first", first)
    if pairs.shape[1] != 2:
        raise ValueError(f"pairs must have shape [N, 2], got {list(pairs.shape)}")
    if mask is not None:
        _check_one_each("mask", mask, pairs)
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, got {mask.dtype}")
    if features is not None:
        if feature_rows is None:
            raise ValueError("part 'feature' needs feature_rows [N], got None")
        checks.check_index("feature_rows", feature_rows, 1, "[N]")
        _check_one_each("feature_rows", feature_rows, pairs)
    else:
        feature_rows = None
    if (validate or first.device.type == "cpu") and not torch.compiler.is_compiling():
        _check_range("pairs", pairs[:, 0], "first", first, first_sentinel, mask)
        _check_range("pairs", pairs[:, 1], "second", second, second_sentinel, mask)
        if feature_rows is not None and features is not None:
            _check_range("feature_rows", feature_rows, "features", features, None, mask)
    table_rows = None if feature_rows is None else feature_rows.long()
    return PairWork(pairs.long(), mask, table_rows, [part.code for part in parts], False)


def _check_one_each(name: str, tensor: Tensor, pairs: Tensor) -> None:
    checks.check_tensor(name, tensor, "[N]")
    checks.check_device(name, tensor, "pairs", pairs)
    if tensor.shape != pairs.shape[:1]:
        raise ValueError(f"{name} must have one entry for each of the {len(pairs)} pairs, got {list(tensor.shape)}")


def _check_range(
    name: str, index: Tensor, source: str, rows: Tensor, sentinel: Tensor | None, mask: Tensor | None
) -> None:
    bad = (index < (0 if sentinel is None else -1)) | (index >= len(rows))
    bad = bad if mask is None else bad & mask
    if bool(bad.any()):
        pair = int(bad.to(torch.uint8).argmax())
        raise ValueError(f"{name}: pair {pair} reads row {int(index[pair])} of {source}, which has {len(rows)}")
