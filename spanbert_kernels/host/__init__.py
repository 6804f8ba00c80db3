"""Span work on the host: numpy arrays in and out, without PyTorch.

The functions are compiled (csrc/host) where the installation could build that, and release the interpreter's lock while
they work; elsewhere the same functions run in numpy. `load()` says which. Spans are two arrays, `starts` and `ends`,
int32 or int64 `[N]`: the first token and the token *after* the last. A span with `end <= start` has no token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spanbert_kernels.host import checks, library
from spanbert_kernels.host.checks import Indices
from spanbert_kernels.host.library import load
from spanbert_kernels.host.pooling import pool_spans, span_linear

__all__ = ["first_and_reach", "load", "mask_spans", "pool_spans", "prune_spans", "sort_spans", "span_linear"]


def prune_spans(
    starts: NDArray[Any],
    ends: NDArray[Any],
    scores: NDArray[Any],
    k: int | NDArray[Any],
    non_crossing: bool = True,
    *,
    documents: NDArray[Any] | None = None,
    limits: Sequence[tuple[NDArray[Any], NDArray[Any]]] = (),
    compiled: bool | None = None,
) -> Indices:
    """The k best spans of which no two overlap in part: best score first, what crosses a span kept before is left out.

    Args:
        starts, ends: int32 or int64 `[N]`, first token and token after the last. Two spans cross if each has tokens
            that the other lacks and they share some; nested and equal spans do not cross, nor do those without tokens.
        scores: float16, float32 or float64 `[N]`; of equal scores the earlier span comes first. -inf ranks last.
        k: how many spans to keep; with `documents` int32 or int64 `[D]`, how many of each document.
        non_crossing: False keeps the k best whether they cross or not.
        documents: int32 or int64 `[N]`, the document of each span; each document has a budget of its own.
        limits: further budgets, those of sentences or of starts: pairs of the group of each span, int32 or int64 `[N]`,
            and of how many spans each group keeps at most, `[G]`. A span needs a place in all of its groups.
        compiled: True or False asks for one of the two ways; by default the compiled one where it was built.

    Returns:
        int64, indices of the spans kept, ordered by (start, end, index); fewer than k where no more can be kept.

    Raises:
        ValueError: shapes, a negative k, NaN among the scores (the first is named), or a span that starts before 0.
        TypeError: dtypes, or arguments that are not numpy arrays.
        RuntimeError: the compiled way was asked for, but was not built.

    Source: ExtractSpans of Lee et al. 2018 and of Joshi et al. 2019 (coref_kernels.cc), which differs where fewer than
    k are found: it repeats its first span.

    Example:
        >>> import numpy as np
        >>> prune_spans(np.array([0, 1, 3]), np.array([2, 3, 4]), np.array([0.5, 2.0, 1.0]), k=3)
        array([1, 2])
    """
    starts, ends, scores, *budgets = checks.prunable(starts, ends, scores, k, documents)
    further = [checks.grouped(groups, of_each, len(starts)) for groups, of_each in limits]
    values = (scores, *budgets, bool(non_crossing), checks.most_tokens(len(starts)), further)
    prune = library.way(compiled).prune_spans
    kept: Indices | None = prune(starts, ends, *values)
    if kept is None:
        checks.rankable(starts, ends, scores)
        kept = prune(*checks.ranked(starts, ends), *values)
        assert kept is not None
    return kept


def sort_spans(
    starts: NDArray[Any], ends: NDArray[Any], num_tokens: int, *, compiled: bool | None = None
) -> tuple[Indices, Indices, Indices]:
    """Spans in the order in which kernels take them.

    Args:
        starts, ends: int32 or int64 `[N]`, first token and token after the last.
        num_tokens: T, the tokens that the spans lie in.
        compiled: True or False asks for one of the two ways; by default the compiled one where it was built.

    Returns:
        int64 `[N]` each: starts and ends by (start, end), equal spans in their order, those without tokens as (0, 0);
        and the index that each came from. O(N + T) by counting where compiled.

    Raises:
        ValueError: shapes, or a span with tokens that leaves `0 .. T` (the first is named).
        TypeError: dtypes, or arguments that are not numpy arrays.
        RuntimeError: the compiled way was asked for, but was not built.

    Example:
        >>> import numpy as np
        >>> starts, ends, rows = sort_spans(np.array([2, 0, 4]), np.array([4, 3, 1]), num_tokens=5)
        >>> starts.tolist(), ends.tolist(), rows.tolist()
        ([0, 0, 2], [0, 3, 4], [2, 1, 0])
    """
    starts = checks.indices("starts", starts)
    ends = checks.indices("ends", ends, len(starts))
    num_tokens = checks.count("num_tokens", num_tokens)
    checks.inside(starts, ends, num_tokens)
    result: tuple[Indices, Indices, Indices] = library.way(compiled).sort_spans(starts, ends, num_tokens)
    return result


def first_and_reach(
    starts: NDArray[Any], ends: NDArray[Any], num_tokens: int, *, compiled: bool | None = None
) -> tuple[Indices, Indices]:
    """The work lists that let a token find its spans: those that hold token t lie in `reach[t] : first[t + 1]`.

    Args:
        starts, ends: int32 or int64 `[N]`, as `sort_spans` returns them.
        num_tokens: T, the tokens that the spans lie in.
        compiled: True or False asks for one of the two ways; by default the compiled one where it was built.

    Returns:
        `first [T + 1]`, the number of spans that start before each token, and `reach [T]`, the index of the first span
        that ends after it, N if none does; int64.

    Raises:
        ValueError: shapes, starts that do not ascend, or a span with tokens that leaves `0 .. T`.
        TypeError: dtypes, or arguments that are not numpy arrays.
        RuntimeError: the compiled way was asked for, but was not built.

    Example:
        >>> import numpy as np
        >>> first, reach = first_and_reach(np.array([0, 0, 2]), np.array([1, 3, 3]), num_tokens=4)
        >>> first.tolist(), reach.tolist()
        ([0, 2, 2, 3, 3], [0, 1, 1, 3])
    """
    num_tokens = checks.count("num_tokens", num_tokens)
    starts, ends = checks.ordered(starts, ends, num_tokens)
    result: tuple[Indices, Indices] = library.way(compiled).first_and_reach(starts, ends, num_tokens)
    return result


def mask_spans(
    tokens: NDArray[Any],
    cu_seqlens: NDArray[Any],
    word_starts: NDArray[Any],
    *,
    seed: int,
    mask_token: int,
    random_tokens: NDArray[Any],
    budget: float = 0.15,
    geometric_p: float = 0.2,
    max_words: int = 10,
    masked: float = 0.8,
    randomised: float = 0.1,
    compiled: bool | None = None,
) -> tuple[Indices, Indices, Indices]:
    """SpanBERT's masking: spans of whole words of geometric length until a share of a document's tokens is masked.

    Args:
        tokens: int32 or int64 `[T]`, word pieces without the special ones.
        cu_seqlens: int32 or int64 `[D + 1]`, offsets of the documents.
        word_starts: bool `[T]`, where a word begins; a document begins one, too.
        seed: of all draws; a document's depend on it and on the document's place alone.
        mask_token: the id of the mask token.
        random_tokens: int32 or int64 `[R]`, what a random token is drawn from: the tokens of the corpus themselves, for
            the published distribution.
        budget: the share of a document's tokens, rounded up. The last span is cut where it ends, be it inside a word.
        geometric_p, max_words: the lengths in words are geometric with p, truncated and normalised to 1 .. max_words.
        masked, randomised: chances of a span to become mask tokens, or random ones; else it stays as it is. Drawn once
            for all tokens of a span.
        compiled: True or False asks for one of the two ways; by default the compiled one where it was built.

    Returns:
        int64: `inputs [T]`, the tokens after masking; `starts [S]` and `ends [S]` (the token after the last), in order.
        Spans that overlap or touch are one, so a span may have more than `max_words` words.

    Raises:
        ValueError: shapes, offsets, shares that are not from 0 to 1 or are together more than 1, no random tokens.
        TypeError: dtypes, or arguments that are not numpy arrays.
        RuntimeError: the compiled way was asked for, but was not built.

    Source: Joshi et al. 2020, SpanBERT, section 3.1, and its published code, PairWithSpanMaskingScheme.

    Example:
        >>> words = np.array([True, True, False, True, True, True, False, True])
        >>> inputs, starts, ends = mask_spans(
        ...     np.arange(8), np.array([0, 8]), words, seed=2, mask_token=-1, random_tokens=np.arange(8), budget=0.3
        ... )
        >>> int((ends - starts).sum()), bool(((inputs == -1) | (inputs < 8)).all())
        (3, True)
    """
    tokens = checks.indices("tokens", tokens)
    bounds = checks.offsets("cu_seqlens", cu_seqlens, len(tokens))
    words = checks.flags("word_starts", word_starts, len(tokens))
    vocabulary = checks.indices("random_tokens", random_tokens)
    if len(vocabulary) == 0:
        raise ValueError("random_tokens must name at least one token, got none")
    checks.share("masked + randomised", checks.share("masked", masked) + checks.share("randomised", randomised))
    if not 0.0 < geometric_p <= 1.0:
        raise ValueError(f"geometric_p must be above 0 and at most 1, got {geometric_p}")
    if checks.count("max_words", max_words) == 0:
        raise ValueError("max_words must be at least 1, got 0")
    chances = geometric_p * (1.0 - geometric_p) ** np.arange(max_words)
    cumulative = np.cumsum(chances / chances.sum())
    shares = (checks.share("budget", budget), cumulative, masked, masked + randomised)
    result: tuple[Indices, Indices, Indices] = library.way(compiled).mask_spans(
        tokens, bounds, words, int(seed) % 2**64, *shares, int(mask_token), vocabulary
    )
    return result
