"""A linear layer over pairs of rows, computed as project, then add."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from spanbert_kernels.ops import checks, products
from spanbert_kernels.ops.backends import Operation
from spanbert_kernels.ops.choices import Backend
from spanbert_kernels.ops.pair_pool import check_sources, check_work, reference
from spanbert_kernels.ops.pair_pool.operators import PairPool, PairSources, PairWork, output_size
from spanbert_kernels.ops.pair_pool.parts import PairPart, parse_parts

__all__ = ["pair_linear"]

OPERATION = Operation(
    "pair_linear",
    ("cpu", "eager"),
    summary="a linear layer over the rows of each pair, in any order: rows are projected once, pairs add",
    instead=("eager", "most of the time is PyTorch's product, and the rest gathers rows and adds them"),
)


def pair_linear(
    first: Tensor,
    second: Tensor | None,
    pairs: Tensor,
    parts: Sequence[str],
    weight: Tensor,
    bias: Tensor | None = None,
    features: Tensor | None = None,
    feature_rows: Tensor | None = None,
    *,
    validate: bool = False,
    backend: Backend | None = None,
) -> Tensor:
    """`pair_pool(first, second, pairs, parts, ...) weight^T + bias`, without the pooled vectors.

    `x`, `y`, their sums and differences, and `feature` are linear: their blocks of the weight are applied to the rows
    of first, second and features once, and pairs gather and add the projected rows. The other parts' blocks are applied
    to pooled pairs, and all blocks where there are fewer pairs than rows.

    Args:
        first: `[T1, H]`; float32, bfloat16, float16 or float64.
        second: `[T2, H]` in its dtype, or None for `first`; where no part combines x and y, its H may be another.
        pairs: int32 or int64 `[N, 2]`, rows of first and second, in any order.
        parts: as `pair_pool` has them: `x`, `y`, `x*y`, `x+y`, `x-y`, `x/y`, `|x-y|`, `feature`, ...
        weight: `[O, D]`, D the columns of that `pair_pool`: a Linear's weight.
        bias: `[O]`.
        features: `[R, E]`, for `feature`: distances.
        feature_rows: int32 or int64 `[N]`, the row of features for each pair.
        validate: check the indices on any device (on a CPU they are always checked).
        backend: the backend to use; by default the best one here.

    Returns:
        `[N, O]` in the dtype of `first`, computed in float32 (float64) and rounded once.

    Gradients reach `first`, `second`, `weight`, `bias` and `features`. A second derivative is there on `eager`.

    Raises:
        ValueError: shapes, an unknown part, a missing input, an index without a row (the first one is named).
        TypeError: dtypes or devices.
        RuntimeError: a second derivative on another backend than `eager`.

    Source: the first layer of wl-coref's span predictor (Dobrovolskii 2021), over a head, a candidate and their
    distance, and of e2e-coref's pair scorer (Lee et al. 2017).

    Example:
        >>> rows = torch.tensor([[1.0, 5.0], [3.0, 2.0]])
        >>> weight = torch.tensor([[1.0, 0.0, 0.0, 2.0]])
        >>> pair_linear(rows, None, torch.tensor([[1, 0], [0, 1]]), ["x", "y"], weight).tolist()
        [[13.0], [5.0]]
    """
    named = parse_parts(parts)
    sources = check_sources(named, first, second, features)
    work = check_work(sources, named, pairs, feature_rows, None, validate)
    chosen = OPERATION.choose(first, backend)
    columns = output_size(sources, work)
    checks.check_floating("weight", weight, 2, "[O, D]")
    checks.check_device("weight", weight, "first", first)
    if weight.shape[1] != columns:
        raise ValueError(
            f"weight must have shape [O, D] with D = {columns}, the columns of {', '.join(parts)}, "
            f"got {list(weight.shape)}"
        )
    if bias is not None:
        checks.check_floating("bias", bias, 1, "[O]")
        checks.check_device("bias", bias, "first", first)
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias must have shape [{weight.shape[0]}], got {list(bias.shape)}")
    wide = torch.promote_types(first.dtype, torch.float32)
    sources = PairSources(*[None if each is None else each.to(wide) for each in sources])  # type: ignore[arg-type]
    with torch.autocast(first.device.type, enabled=False):
        result = _linear(sources, work, named, weight.to(wide), None if bias is None else bias.to(wide), chosen)
    return result.to(first.dtype)


def _linear(
    sources: PairSources, work: PairWork, parts: list[PairPart], weight: Tensor, bias: Tensor | None, backend: Backend
) -> Tensor:
    sizes = [output_size(sources, work._replace(parts=[part.code])) for part in parts]
    blocks = dict(zip(range(len(parts)), weight.split(sizes, 1), strict=True))
    apart = [place for place, part in enumerate(parts) if part.operation != "feature" and part.factors() is None]
    if len(work.pairs) < len(sources.first) + len(sources.second):
        apart = list(blocks)
    addend = None
    if apart:
        pooled = _pool(sources, work._replace(parts=[parts[place].code for place in apart]), backend)
        addend = products.linear(pooled, torch.cat([blocks[place] for place in apart], 1), bias)
        bias = None
    together = [place for place in blocks if place not in apart]
    if not together:
        assert addend is not None
        return addend

    codes = []
    rows = [sources.first, sources.second]
    for side in range(2):
        own = [(parts[place].factors() or (0, 0))[side] for place in together]
        terms = [
            factor * blocks[place] if factor != 1 else blocks[place]
            for factor, place in zip(own, together, strict=True)
            if factor
        ]
        if not terms:
            rows[side] = rows[side][:, :0]  # which nobody reads
            continue
        rows[side] = products.linear(rows[side], sum(terms[1:], terms[0]), bias)
        codes.append(PairPart("take", side, side).code)
        bias = None
    features = None
    of_features = [blocks[place] for place in together if parts[place].operation == "feature"]
    if of_features and sources.features is not None:
        features = products.linear(sources.features, sum(of_features[1:], of_features[0]), bias)
        codes.append(PairPart("feature").code)
    projected = PairSources(rows[0], rows[1], None, None, features)
    added = _pool(projected, work._replace(parts=codes, summed=True), backend)
    return added if addend is None else added + addend


def _pool(sources: PairSources, work: PairWork, backend: Backend) -> Tensor:
    if sources.features is None or all(code != PairPart("feature").code for code in work.parts):
        sources, work = sources._replace(features=None), work._replace(feature_rows=None)
    if backend == "eager":
        return reference.pair_pool(sources, work)
    output: Tensor = PairPool.apply(*sources, work, backend, "pair_linear")
    return output
