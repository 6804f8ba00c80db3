"""spaCy's span categoriser: spans suggested all at once, and pooled where they stand instead of being copied out first.

The names for a config are entry points of this package, so that spaCy finds them where it is installed:
`spanbert_kernels.SpanCategorizer.v1` (architectures), `spanbert_kernels.mean_max_reducer.v1` (layers),
`spanbert_kernels.ngram_suggester.v1` and `spanbert_kernels.ngram_range_suggester.v1` (misc). Models have the same
layers and parameters as spaCy's, so that what one has saved the other loads.
"""

# thinc reads the annotations of layers when it validates data: they are no strings here.
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from spanbert_kernels import host
from spanbert_kernels.host import layers

# thinc's reductions, by the modules that define them, and the parts that they are.
PARTS = {
    "thinc.layers.reduce_first": "start",
    "thinc.layers.reduce_last": "end",
    "thinc.layers.reduce_mean": "mean",
    "thinc.layers.reduce_sum": "sum",
    "thinc.layers.reduce_max": "max",
}


class SelectedSpans(NamedTuple):
    """Spans of tokens that nobody has copied out: `tokens [T, H]`, and their first tokens and those after the last."""

    tokens: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class PooledLater(NamedTuple):
    """What parts of spans will make a row, for the layer that multiplies it with its weight; thinc asks its shape."""

    spans: SelectedSpans
    parts: list[str]

    @property
    def ndim(self) -> int:
        return 2

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.spans.starts), len(self.parts) * self.spans.tokens.shape[1]


def span_categorizer(tok2vec: Any, reducer: Any, scorer: Any) -> Any:
    """`@architectures = "spanbert_kernels.SpanCategorizer.v1"` in the place of `spacy.SpanCategorizer.v1`.

    Args:
        tok2vec, reducer, scorer: as of spaCy's. A reducer whose first layers are thinc's `reduce_first`, `reduce_last`,
            `reduce_mean`, `reduce_sum`, `reduce_max`, one or several concatenated, reads spans where they stand; for
            others they are copied out, with all indices at once.

    Returns:
        The thinc model, of the same layers as spaCy's.
    """
    from spacy.ml.models.spancat import build_spancat_model

    model = build_spancat_model(tok2vec, reducer, scorer)
    _replace(model.layers[1], _select if pool_in_place(reducer) else _extract)
    return model


def mean_max_reducer(hidden_size: int) -> Any:
    """`@layers = "spanbert_kernels.mean_max_reducer.v1"` in the place of `spacy.mean_max_reducer.v1`."""
    from spacy.ml.models.spancat import build_mean_max_reducer

    reducer = build_mean_max_reducer(hidden_size)
    pool_in_place(reducer)
    return reducer


def ngram_suggester(sizes: list[int]) -> Callable[..., Any]:
    """`@misc = "spanbert_kernels.ngram_suggester.v1"` in the place of `spacy.ngram_suggester.v1`.

    Args:
        sizes: the widths of the spans, in the order in which those of a document come.

    Returns:
        What spaCy's returns: a function of documents, and of thinc's `ops`, that suggests all spans of these widths.
    """
    return partial(suggest_spans, sizes=sizes)


def ngram_range_suggester(min_size: int, max_size: int) -> Callable[..., Any]:
    """`@misc = "spanbert_kernels.ngram_range_suggester.v1"` in the place of `spacy.ngram_range_suggester.v1`."""
    return ngram_suggester(list(range(min_size, max_size + 1)))


def suggest_spans(docs: Iterable[Any], sizes: list[int], *, ops: Any = None) -> Any:
    """All spans of some widths, document by document and width by width, as spaCy's `ngram_suggester` lists them."""
    from thinc.api import get_current_ops
    from thinc.types import Ragged

    ops = get_current_ops() if ops is None else ops
    bounds, counts = spans_of_widths(np.fromiter(map(len, docs), dtype=np.int64), np.array(sizes, dtype=np.int64))
    # Without spans spaCy's has no columns either.
    return Ragged(ops.asarray2i(bounds if len(bounds) else bounds.reshape(0, 0)), ops.asarray1i(counts))


def spans_of_widths(lengths: np.ndarray, widths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All spans of some widths in documents of these lengths.

    Args:
        lengths: int64 `[D]`.
        widths: int64 `[W]`.

    Returns:
        int32 `[N, 2]`, first token and token after the last, by document and then in the order of `widths`; and the
        number of spans of each document, int32 `[D]`.

    Example:
        >>> bounds, counts = spans_of_widths(np.array([3, 1]), np.array([1, 2]))
        >>> bounds.tolist(), counts.tolist()
        ([[0, 1], [1, 2], [2, 3], [0, 2], [1, 3], [0, 1]], [5, 1])
    """
    room = lengths[:, None] - widths  # [D, W]
    counts = np.where(room >= 0, np.minimum(room + 1, lengths[:, None]), 0)
    flat = counts.ravel()
    bounds = np.empty((int(flat.sum()), 2), dtype=np.int32)
    bounds[:, 0] = np.arange(len(bounds)) - np.repeat(np.cumsum(flat) - flat, flat)
    np.add(bounds[:, 0], np.repeat(np.tile(widths, len(lengths)), flat), out=bounds[:, 1], casting="unsafe")
    return bounds, counts.sum(1, dtype=np.int32)


def pool_in_place(reducer: Any) -> bool:
    """Let a reducer read spans where they stand, if its first layers are thinc's reductions; whether they are.

    A Maxout layer behind them is applied to tokens before spans are pooled, where that is less work, and its
    normalisation is ours too.
    """
    first, *rest = _steps(reducer)
    if getattr(first._func, "func", None) is _pool:
        return True
    parts = [
        PARTS.get(_home(layer)) for layer in (first.layers if _home(first) == "thinc.layers.concatenate" else [first])
    ]
    if None in parts or len(set(parts)) < len(parts):
        return False
    multiplies = bool(rest) and _home(rest[0]) == "thinc.layers.maxout"
    _replace(first, _pool, parts, multiplies)
    if multiplies:
        _replace(rest[0], _maxout)
        if len(rest) > 1 and _home(rest[1]) == "thinc.layers.layernorm":
            _replace(rest[1], _layer_norm)
    return True


def _steps(layer: Any) -> list[Any]:
    """The layers that run one after the other."""
    if _home(layer) == "thinc.layers.chain":
        return [step for each in layer.layers for step in _steps(each)]
    return [layer]


def _home(layer: Any) -> str:
    name: str = layer._func.__module__
    return name


def _replace(layer: Any, forward: Callable[..., Any], *arguments: Any) -> None:
    """Let a layer run `forward`, which is given the layer's own before the arguments of thinc."""
    from thinc.util import partial as named_partial

    layer.replace_callbacks(named_partial(forward, layer._func, *arguments), init=layer.init)


def _pool(
    original: Callable[..., Any], parts: list[str], later: bool, model: Any, X: Any, is_train: bool
) -> tuple[Any, Any]:
    from thinc.types import Ragged

    spans: Any = X
    if not isinstance(X, SelectedSpans):
        if not isinstance(X.data, np.ndarray):
            return original(model, X, is_train)
        ends = np.cumsum(X.lengths, dtype=np.int64)
        spans = SelectedSpans(X.data, ends - X.lengths, ends)
    pooled: Any = PooledLater(spans, parts)
    backward: Any = None
    if not later:
        pooled, backward = host.pool_spans(spans.tokens, spans.starts, spans.ends, parts)

    def backprop(grad: Any) -> Any:
        grad_tokens = grad if backward is None else backward(grad)
        return grad_tokens if spans is X else Ragged(grad_tokens, X.lengths)

    return pooled, backprop


def _maxout(original: Callable[..., Any], model: Any, X: Any, is_train: bool) -> tuple[Any, Any]:
    if not isinstance(X, PooledLater):
        return original(model, X, is_train)
    weight, bias = model.get_param("W"), model.get_param("b")
    pieces = weight.shape[1]
    output, backward = host.span_linear(*X.spans, X.parts, weight.reshape(-1, weight.shape[2]))
    best, which = layers.maxout(output, bias.ravel(), pieces)

    def backprop(grad: Any) -> Any:
        grad_output = model.ops.backprop_maxout(grad, which, pieces).reshape(len(best), -1)
        grad_tokens, grad_weight, _ = backward(grad_output)
        model.inc_grad("W", grad_weight.reshape(weight.shape))
        model.inc_grad("b", grad_output.sum(0).reshape(bias.shape))
        return grad_tokens

    return best, backprop


def _layer_norm(original: Callable[..., Any], model: Any, X: Any, is_train: bool) -> tuple[Any, Any]:
    gain, shift = model.get_param("G"), model.get_param("b")
    if not isinstance(X, np.ndarray) or X.dtype != gain.dtype:
        return original(model, X, is_train)
    normed, backward = layers.layer_norm(X, gain, shift, 1e-8)  # as thinc's

    def backprop(grad: Any) -> Any:
        grad_rows, grad_gain, grad_shift = backward(np.ascontiguousarray(grad, dtype=X.dtype))
        model.inc_grad("G", grad_gain)
        model.inc_grad("b", grad_shift)
        return grad_rows

    return normed, backprop


def _select(original: Callable[..., Any], model: Any, X: Any, is_train: bool) -> tuple[Any, Any]:
    from thinc.types import Ragged

    tokens, spans = X
    if not isinstance(tokens.dataXd, np.ndarray):
        return original(model, X, is_train)
    selected = SelectedSpans(tokens.dataXd, *_places(tokens, spans))
    return selected, lambda grad: (Ragged(grad, tokens.lengths), spans)


def _extract(original: Callable[..., Any], model: Any, X: Any, is_train: bool) -> tuple[Any, Any]:
    from thinc.types import Ragged

    tokens, spans = X
    if not isinstance(tokens.dataXd, np.ndarray) or len(spans.dataXd) == 0:
        return original(model, X, is_train)
    starts, ends = _places(tokens, spans)
    widths = ends - starts
    behind = np.cumsum(widths)
    indices = np.arange(behind[-1]) - np.repeat(behind - widths - starts, widths)
    indices = indices.astype(np.int32)  # which thinc adds up fastest

    def backward(grad: Any) -> tuple[Any, Any]:
        total = model.ops.alloc2f(*tokens.dataXd.shape)
        model.ops.scatter_add(total, indices, grad.dataXd)
        return Ragged(total, tokens.lengths), spans

    return Ragged(tokens.dataXd[indices], widths.astype(np.int32)), backward


def _places(tokens: Any, spans: Any) -> tuple[np.ndarray, np.ndarray]:
    """The first tokens of all documents' spans, and those after the last, among the tokens of all documents."""
    first = np.repeat(np.cumsum(tokens.lengths, dtype=np.int64) - tokens.lengths, spans.lengths)
    bounds = spans.dataXd.reshape(-1, 2)
    return bounds[:, 0] + first, bounds[:, 1] + first
