"""Vectors of spans that are formed when something reads them, while products with label vectors do without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

# What a tensor says of itself without its numbers.
_DESCRIBING: set[Callable[..., Any]] = {
    torch.Tensor.size,
    torch.Tensor.dim,
    torch.Tensor.numel,
    torch.Tensor.is_floating_point,
    *(
        getattr(torch.Tensor, name).__get__
        for name in ("shape", "ndim", "dtype", "device", "layout", "is_cuda", "is_sparse", "is_nested")
    ),
}


class SpanVectors(Protocol):
    """Vectors `[B, ..., D]` of B documents' spans, not yet formed."""

    def vectors(self) -> Tensor:
        """`[B, ..., D]`."""

    def scores(self, queries: Tensor) -> Tensor:
        """The product of every vector with its document's `queries [B, C, D]`: `[B, ..., C]`."""


class Unformed(torch.Tensor):
    """Stands for vectors `[B, ..., D]` in code that is not ours.

    `torch.einsum("b...d,bcd->b...c", self, queries)`, under whatever letters, is answered by `scores`. Everything else
    that reads numbers forms the vectors, once, and works on those, gradients included.

    Example:
        >>> class Twice:
        ...     def __init__(self, x): self.x = x
        ...     def vectors(self): return 2 * self.x
        ...     def scores(self, queries): return torch.full((1, 3, 2), 7.0)
        >>> vectors = unformed(Twice(torch.ones(1, 3, 4)), (1, 3, 4), torch.float32, torch.device("cpu"))
        >>> torch.einsum("bnd,bcd->bnc", vectors, torch.ones(1, 2, 4)).tolist()
        [[[7.0, 7.0], [7.0, 7.0], [7.0, 7.0]]]
        >>> vectors.sum().item(), torch.einsum("bnd,bcd->bnc", vectors, torch.ones(1, 2, 4))[0, 0].tolist()
        (24.0, [8.0, 8.0])
    """

    source: SpanVectors
    formed: Tensor | None

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _DESCRIBING:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        if func is torch.einsum and _asks_for_scores(*args):
            _, vectors, queries = args
            return vectors.source.scores(queries)
        return func(*tree_map_only(Unformed, _form, args), **tree_map_only(Unformed, _form, kwargs or {}))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Where PyTorch's own C++ code comes upon one, which asks no __torch_function__.
        return func(*tree_map_only(Unformed, _form, args), **tree_map_only(Unformed, _form, kwargs or {}))


def unformed(source: SpanVectors, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Unformed:
    """The vectors of `source`, whose shape, dtype and device are known."""
    made: Unformed = torch.Tensor._make_wrapper_subclass(Unformed, shape, dtype=dtype, device=device)
    made.source, made.formed = source, None
    return made


def _form(vectors: Unformed) -> Tensor:
    if vectors.formed is None:
        vectors.formed = vectors.source.vectors()
    return vectors.formed


def _asks_for_scores(equation: Any, *operands: Any) -> bool:
    """Whether an einsum is the product of unformed vectors with vectors of their documents, one number each."""
    if not isinstance(equation, str) or len(operands) != 2:
        return False
    vectors, queries = operands
    if not isinstance(vectors, Unformed) or vectors.formed is not None or isinstance(queries, Unformed):
        return False
    inputs, _, output = equation.replace(" ", "").partition("->")
    left, _, right = inputs.partition(",")
    if len(set(left)) != len(left) or len(left) != vectors.dim() or len(right) != 3 or not (left + right).isalpha():
        return False
    if left[0] != right[0] or left[-1] != right[2] or right[1] in left or output != left[:-1] + right[1]:
        return False
    same_dtype = queries.dtype == vectors.dtype or torch.is_autocast_enabled(vectors.device.type)
    sizes = queries.shape[0] == vectors.shape[0] and queries.shape[2] == vectors.shape[-1]
    return same_dtype and sizes and queries.device == vectors.device
