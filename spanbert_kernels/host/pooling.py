"""Span pooling of numpy arrays and the way back: what `ops.span_pool` and `ops.span_linear` compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spanbert_kernels.host import checks, library
from spanbert_kernels.host.checks import PARTS, Indices, Reals

Gradients = tuple[Reals, Reals, Reals | None]


def pool_spans(
    hidden: NDArray[Any],
    starts: NDArray[Any],
    ends: NDArray[Any],
    parts: Sequence[str],
    *,
    threads: int | None = None,
    compiled: bool | None = None,
) -> tuple[Reals, Callable[[NDArray[Any]], Reals]]:
    """One vector for every span, made of the parts asked for, and the way back: `ops.span_pool` for numpy arrays.

    Args:
        hidden: float16, float32 or float64 `[T, H]`: the tokens of all documents, one after the other.
        starts, ends: int32 or int64 `[N]`, first token and token after the last.
        parts: any of `start`, `end` (the boundary tokens), `mean`, `sum`, `max` (over the span's tokens), at most once.
        threads: how many to work on, by default as many as the process may use; the result does not depend on it.
        compiled: True or False asks for one of the two ways; by default the compiled one where it was built.

    Returns:
        `[N, len(parts) * H]`, the parts in the order asked, zeros for a span without tokens; and a function from the
        gradient of that to the gradient of `hidden`, `[T, H]`, which may be called any number of times while `hidden`
        stays as it is. Of equal maxima the first token gets the gradient. NaN propagates.

    Raises:
        ValueError: shapes, an unknown or repeated part, a span outside the tokens (the first is named).
        TypeError: dtypes, or arguments that are not numpy arrays.
        RuntimeError: the compiled way was asked for, but was not built.

    Example:
        >>> import numpy as np
        >>> hidden = np.array([[1.0, 5.0], [3.0, 2.0], [0.0, 9.0]])
        >>> pooled, backward = pool_spans(hidden, np.array([0, 1]), np.array([2, 3]), ["mean", "max"])
        >>> pooled.tolist()
        [[2.0, 3.5, 3.0, 5.0], [1.5, 5.5, 3.0, 9.0]]
        >>> backward(np.ones_like(pooled)).tolist()
        [[0.5, 1.5], [3.0, 1.0], [0.5, 1.5]]
    """
    tokens, codes = checks.tokens(hidden), checks.part_codes(parts)
    starts = checks.indices("starts", starts)
    ends = checks.indices("ends", ends, len(starts))
    checks.inside(starts, ends, len(tokens))
    width, dtype = len(codes) * tokens.shape[1], hidden.dtype
    workers = library.usable_threads() if threads is None else max(checks.count("threads", threads), 1)
    way = library.way(compiled)

    def backward(grad_output: NDArray[Any]) -> Reals:
        grad = checks.gradient(grad_output, len(starts), width, tokens.dtype)
        given: Reals = way.pool_spans_backward(grad, tokens, starts, ends, codes, workers)
        return given.astype(dtype, copy=False)

    pooled: Reals = way.pool_spans(tokens, starts, ends, codes, workers)
    return pooled.astype(dtype, copy=False), backward


def span_linear(
    hidden: NDArray[Any],
    starts: NDArray[Any],
    ends: NDArray[Any],
    parts: Sequence[str],
    weight: NDArray[Any],
    bias: NDArray[Any] | None = None,
    *,
    threads: int | None = None,
    compiled: bool | None = None,
) -> tuple[Reals, Callable[[NDArray[Any]], Gradients]]:
    """A linear layer over pooled spans, `pool_spans(...)[0] @ weight.T + bias`, and the way back.

    Where there are more spans than tokens the weight is applied to tokens, and spans add up what it gave: all parts are
    linear but `max`. Equal up to rounding.

    Args:
        hidden, starts, ends, parts, threads, compiled: as of `pool_spans`; the products are numpy's, on its threads.
        weight: `[O, len(parts) * H]`.
        bias: `[O]`.

    Returns:
        `[N, O]` in the dtype of `hidden`; and a function from the gradient of that to those of `hidden`, `weight` and
        `bias` (None where there is none). A span without tokens gives the bias.

    Raises:
        ValueError: shapes, an unknown or repeated part, a span outside the tokens (the first is named).
        TypeError: dtypes, or arguments that are not numpy arrays.
        RuntimeError: the compiled way was asked for, but was not built.

    Example:
        >>> import numpy as np
        >>> hidden, weight = np.array([[1.0], [3.0], [8.0]]), np.array([[1.0, 10.0]])
        >>> output, backward = span_linear(hidden, np.array([0, 1]), np.array([2, 3]), ["mean", "max"], weight)
        >>> output.tolist()
        [[32.0], [85.5]]
        >>> [each.tolist() for each in backward(np.ones_like(output))[:2]]
        [[[0.5], [11.0], [10.5]], [[7.5, 11.0]]]
    """
    tokens, codes = checks.tokens(hidden), checks.part_codes(parts)
    starts = checks.indices("starts", starts)
    ends = checks.indices("ends", ends, len(starts))
    checks.inside(starts, ends, len(tokens))
    weight, bias = checks.layer(weight, bias, len(codes) * tokens.shape[1], tokens.dtype)
    workers = library.usable_threads() if threads is None else max(checks.count("threads", threads), 1)
    layer = _Projected if len(starts) > len(tokens) and {*parts} != {"max"} else _Pooled
    done = layer(library.way(compiled), tokens, (starts, ends), codes, weight, workers)
    output = done.output if bias is None else done.output + bias
    dtype = hidden.dtype

    def backward(grad_output: NDArray[Any]) -> Gradients:
        grad = checks.gradient(grad_output, len(starts), len(weight), tokens.dtype)
        given = (*done.backward(grad), None if bias is None else grad.sum(0))
        grad_hidden, grad_weight, grad_bias = (
            None if each is None else each.astype(dtype, copy=False) for each in given
        )
        assert grad_hidden is not None
        assert grad_weight is not None
        return grad_hidden, grad_weight, grad_bias

    return output.astype(dtype, copy=False), backward


class _Pooled:
    """Pooled, then projected."""

    def __init__(
        self, way: Any, tokens: Reals, spans: tuple[Indices, Indices], codes: list[int], weight: Reals, threads: int
    ) -> None:
        self._weight = weight
        self._pooled: Reals = way.pool_spans(tokens, *spans, codes, threads)
        self._back = lambda grad: way.pool_spans_backward(grad, tokens, *spans, codes, threads)
        self.output = self._pooled @ weight.T

    def backward(self, grad: Reals) -> tuple[Reals, Reals]:
        return self._back(grad @ self._weight), grad.T @ self._pooled


class _Projected:
    """Projected, then pooled: all parts but the largest numbers, which have to be found first."""

    def __init__(
        self, way: Any, tokens: Reals, spans: tuple[Indices, Indices], codes: list[int], weight: Reals, threads: int
    ) -> None:
        size, out = tokens.shape[1], len(weight)
        self._tokens, self._shape = tokens, weight.shape
        self._linear = [place for place, code in enumerate(codes) if PARTS[code] != "max"]
        self._largest = [place for place, code in enumerate(codes) if PARTS[code] == "max"]
        blocks = weight.reshape(out, len(codes), size)
        self._blocks = np.ascontiguousarray(blocks[:, self._linear].transpose(1, 0, 2)).reshape(-1, size)
        self._pooled = None
        if self._largest:
            largest = [codes[place] for place in self._largest]
            self._pooled = _Pooled(
                way, tokens, spans, largest, np.ascontiguousarray(blocks[:, self._largest[0]]), threads
            )
        self.output = np.zeros((len(spans[0]), out), tokens.dtype) if self._pooled is None else self._pooled.output
        linear = [codes[place] for place in self._linear]
        way.add_spans(tokens @ self._blocks.T, *spans, linear, threads, self.output)
        self._back = lambda grad: way.add_spans_backward(grad, len(tokens), *spans, linear, threads)

    def backward(self, grad: Reals) -> tuple[Reals, Reals]:
        projected = self._back(grad)  # [T, parts * O]
        grad_hidden = projected @ self._blocks
        out, size = self._shape[0], self._tokens.shape[1]
        grad_weight = np.empty((out, self._shape[1] // size, size), grad.dtype)
        grad_weight[:, self._linear] = (projected.T @ self._tokens).reshape(-1, out, size).transpose(1, 0, 2)
        if self._pooled is not None:
            more, grad_weight[:, self._largest[0]] = self._pooled.backward(grad)
            grad_hidden += more
        return grad_hidden, grad_weight.reshape(self._shape)
