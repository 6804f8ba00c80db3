"""AllenNLP's span extractors over the operations: its constructor arguments, parameters, results and errors.

Where the original raises its ConfigurationError, these raise a ValueError of the same text. A combination that means
nothing is refused when the module is made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spanbert_kernels.ops import checks, pair_pool, span_pool
from spanbert_kernels.ops.choices import Part


def width_bucket(widths: Tensor, buckets: int, alone: int = 4) -> Tensor:
    """The bucket of each width: those up to `alone` have one of their own, the others share one from a power of two to
    the next.

    Example:
        >>> width_bucket(torch.tensor([0, 1, 4, 5, 7, 8, 15, 64, 500]), buckets=10).tolist()
        [0, 1, 4, 5, 5, 6, 6, 9, 9]
    """
    logarithmic = (widths.clamp(min=1).float().log() / math.log(2)).floor().long() + (alone - 1)
    return torch.where(widths <= alone, widths, logarithmic).clamp(0, buckets - 1)


def combined_parts(name: str, combination: str) -> list[str]:
    """The argument of this name, a combination, as `pair_pool` names its parts; 1 and 2 are x and y.

    Example:
        >>> combined_parts("combination", "1,y,x*2")
        ['x', 'y', 'x*y']
    """
    if not isinstance(combination, str):
        raise TypeError(f"{name} must be a string, got {type(combination).__name__}: {checks.shown(combination)}")
    parts = combination.replace("1", "x").replace("2", "y").split(",")
    for part in parts:
        if len(part) not in (1, 3) or part[0] not in "xy" or part[-1] not in "xy":
            raise ValueError(f"{name}: Invalid combination: {part}")
        if len(part) == 3 and part[1] not in "*+-/":
            raise ValueError(f"{name}: Invalid operation: {part[1]}")
    return parts


class WidthEmbedding(nn.Embedding):
    """An embedding that says its size, as AllenNLP's does, and begins as that one."""

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)

    def get_output_dim(self) -> int:
        """Columns of a row."""
        return self.embedding_dim


class TimeDistributed(nn.Module):
    """A module under the name that AllenNLP's parameters have, applied to the last dimension."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module

    def forward(self, states: Tensor) -> Tensor:
        """What the module gives."""
        output: Tensor = self._module(states)
        return output


class SpanBatch(NamedTuple):
    """What an extractor is called with.

    Attributes:
        tokens: `[B L, H]`.
        indices: int64 `[B, S, 2]`, first and last token in each sequence.
        begin: int64 `[B, 1]`, where each sequence begins among the tokens.
        length: L.
        lengths: int64 `[B]`, real tokens, where somebody says.
        mask: bool `[B, S]`, spans that count, where somebody says.
    """

    tokens: Tensor
    indices: Tensor
    begin: Tensor
    length: int
    lengths: Tensor | None
    mask: Tensor | None


class SpanExtractor(nn.Module):
    """What AllenNLP's four extractors share: how they are made and called, and the embedding of widths.

    Args:
        input_dim: H, columns of the sequence.
        num_width_embeddings: rows of the embedding of widths, with `span_width_embedding_dim`.
        span_width_embedding_dim: its columns.
        bucket_widths: whether widths share rows (`width_bucket`).

    Raises:
        ValueError: one of the embedding's sizes without the other.
    """

    def __init__(
        self,
        input_dim: int,
        num_width_embeddings: int | None = None,
        span_width_embedding_dim: int | None = None,
        bucket_widths: bool = False,
    ) -> None:
        super().__init__()
        checks.check_integer("input_dim", input_dim, 0)
        checks.check_flag("bucket_widths", bucket_widths)
        sizes = {"num_width_embeddings": num_width_embeddings, "span_width_embedding_dim": span_width_embedding_dim}
        for name, value in sizes.items():
            if value is not None:
                checks.check_integer(name, value, 0)
        self._input_dim = input_dim
        self._num_width_embeddings = num_width_embeddings
        self._bucket_widths = bucket_widths
        self._span_width_embedding: WidthEmbedding | None = None
        if num_width_embeddings is not None and span_width_embedding_dim is not None:
            self._span_width_embedding = WidthEmbedding(num_width_embeddings, span_width_embedding_dim)
        elif num_width_embeddings is not None or span_width_embedding_dim is not None:
            raise ValueError(
                "To use a span width embedding representation, you must"
                "specify both num_width_embeddings and span_width_embedding_dim."
            )

    def get_input_dim(self) -> int:
        """Columns of the sequence."""
        return self._input_dim

    def get_output_dim(self) -> int:
        """Columns of a span's vector."""
        width = 0 if self._span_width_embedding is None else self._span_width_embedding.get_output_dim()
        return self._vector_dim() + width

    def _vector_dim(self) -> int:
        return self._input_dim

    def forward(
        self,
        sequence_tensor: Tensor,
        span_indices: Tensor,
        sequence_mask: Tensor | None = None,
        span_indices_mask: Tensor | None = None,
    ) -> Tensor:
        """The vectors of all spans.

        Args:
            sequence_tensor: `[B, L, H]`.
            span_indices: int64 `[B, S, 2]`, first and last token.
            sequence_mask: bool `[B, L]`, real tokens.
            span_indices_mask: bool `[B, S]`; spans that are False give zeros.

        Returns:
            `[B, S, get_output_dim()]`.
        """
        if sequence_tensor.shape[-1] != self._input_dim:
            raise ValueError(f"Dimension mismatch expected ({sequence_tensor.shape[-1]}) received ({self._input_dim}).")
        sequences, length, size = sequence_tensor.shape
        batch = SpanBatch(
            sequence_tensor.reshape(-1, size),
            span_indices,
            torch.arange(sequences, device=span_indices.device)[:, None] * length,
            length,
            None if sequence_mask is None else sequence_mask.sum(-1),
            None if span_indices_mask is None else span_indices_mask.bool(),
        )
        return self._vectors(batch).view(sequences, span_indices.shape[1], self.get_output_dim())

    def _vectors(self, batch: SpanBatch) -> Tensor:
        """`[B S, D]`, the columns of widths among them."""
        raise NotImplementedError

    def _widths(self, batch: SpanBatch) -> tuple[Tensor | None, Tensor | None]:
        """The embedding of widths and each span's row of it, int64 `[B S]`."""
        if self._span_width_embedding is None:
            return None, None
        mask, rows = batch.mask, batch.indices[..., 1] - batch.indices[..., 0]
        count = self._span_width_embedding.num_embeddings
        if self._bucket_widths:
            rows = width_bucket(rows, count)
        elif _any((rows < 0) | (rows >= count), mask):
            raise IndexError("index out of range in self")
        rows = rows if mask is None else torch.where(mask, rows, 0)
        return self._span_width_embedding.weight, rows.reshape(-1)


def _any(bad: Tensor, mask: Tensor | None = None) -> bool:
    """Whether a span that counts is bad; nobody looks while a graph is made."""
    return not torch.compiler.is_compiling() and bool((bad if mask is None else bad & mask).any())


def _flat(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.reshape(-1)


def _check_inside(index: Tensor, batch: SpanBatch) -> None:
    if _any((index < 0) | (index >= batch.length), batch.mask):
        raise ValueError(f"All elements in indices should be in range (0, {batch.length - 1})")


class EndpointSpanExtractor(SpanExtractor):
    """AllenNLP's EndpointSpanExtractor: a combination of a span's first and last token.

    Args:
        input_dim: H, columns of the sequence.
        combination: `x` (first), `y` (last) and two of them with `*`, `+`, `-` or `/` between, with commas.
        num_width_embeddings: rows of the embedding of widths, with `span_width_embedding_dim`.
        span_width_embedding_dim: its columns.
        bucket_widths: whether widths share rows (`width_bucket`).
        use_exclusive_start_indices: x is the token before the first, a learned vector before the sequence.

    Raises:
        ValueError: a combination that means nothing, one of the embedding's sizes without the other; when called, a
            token outside of the sequence.
        IndexError: when called, a width that the embedding has no row for.

    Source: Gardner et al. 2018, AllenNLP.

    Example:
        >>> extractor = EndpointSpanExtractor(4, "x,y,x*y", num_width_embeddings=3, span_width_embedding_dim=2)
        >>> extractor(torch.randn(1, 5, 4), torch.tensor([[[0, 1], [2, 4]]])).shape
        torch.Size([1, 2, 14])
    """

    def __init__(
        self,
        input_dim: int,
        combination: str = "x,y",
        num_width_embeddings: int | None = None,
        span_width_embedding_dim: int | None = None,
        bucket_widths: bool = False,
        use_exclusive_start_indices: bool = False,
    ) -> None:
        super().__init__(input_dim, num_width_embeddings, span_width_embedding_dim, bucket_widths)
        self._combination = combination
        self._parts = combined_parts("combination", combination)
        checks.check_flag("use_exclusive_start_indices", use_exclusive_start_indices)
        self._use_exclusive_start_indices = use_exclusive_start_indices
        if use_exclusive_start_indices:
            self._start_sentinel = nn.Parameter(torch.randn(1, 1, int(input_dim)))

    def _vector_dim(self) -> int:
        return len(self._parts) * self._input_dim

    def _vectors(self, batch: SpanBatch) -> Tensor:
        start, end = batch.indices.unbind(-1)
        mask, sentinel = batch.mask, None
        if self._use_exclusive_start_indices:
            start, sentinel = start - 1, self._start_sentinel.view(-1)
            if _any(start < -1, mask):
                raise ValueError(
                    "Adjusted span indices must lie inside the the sequence tensor, "
                    f"but found: exclusive_span_starts: {start}."
                )
        _check_inside(start if sentinel is None else start.clamp(min=0), batch)
        _check_inside(end, batch)
        first = start + batch.begin if sentinel is None else torch.where(start < 0, -1, start + batch.begin)
        return _pool_pairs(batch, batch.tokens, first, end + batch.begin, self._parts, sentinel, *self._widths(batch))


def _pool_pairs(
    batch: SpanBatch,
    tokens: Tensor,
    first: Tensor,
    second: Tensor,
    parts: Sequence[str],
    sentinel: Tensor | None,
    table: Tensor | None = None,
    rows: Tensor | None = None,
) -> Tensor:
    pairs = torch.stack([first, second], -1).view(-1, 2)
    parts = parts if table is None else [*parts, "feature"]
    return pair_pool(tokens, None, pairs, parts, table, rows, first_sentinel=sentinel, mask=_flat(batch.mask))


class BidirectionalEndpointSpanExtractor(SpanExtractor):
    """AllenNLP's BidirectionalEndpointSpanExtractor: ends of spans in each direction of a bidirectional encoder.

    The first half of the columns runs forward, from the token before the span (x) to its last (y); the second half runs
    backward, from the token behind the span (x) to its first (y).

    Args:
        input_dim: H, columns of the sequence, even.
        forward_combination: of x and y of the first half, as EndpointSpanExtractor has them.
        backward_combination: of x and y of the second half.
        num_width_embeddings: rows of the embedding of widths, with `span_width_embedding_dim`.
        span_width_embedding_dim: its columns.
        bucket_widths: whether widths share rows (`width_bucket`).
        use_sentinels: learned vectors stand before and behind a sequence's real tokens; without them, its first token.

    Raises:
        ValueError: an odd H, a combination that means nothing, one of the embedding's sizes without the other; when
            called, a token outside of the sequence.
        IndexError: when called, a width that the embedding has no row for.

    Source: Gardner et al. 2018, AllenNLP; the differences are those of Cross and Huang 2016.

    Example:
        >>> extractor = BidirectionalEndpointSpanExtractor(4)
        >>> extractor(torch.randn(1, 5, 4), torch.tensor([[[0, 1], [2, 4]]])).shape
        torch.Size([1, 2, 4])
    """

    def __init__(
        self,
        input_dim: int,
        forward_combination: str = "y-x",
        backward_combination: str = "x-y",
        num_width_embeddings: int | None = None,
        span_width_embedding_dim: int | None = None,
        bucket_widths: bool = False,
        use_sentinels: bool = True,
    ) -> None:
        super().__init__(input_dim, num_width_embeddings, span_width_embedding_dim, bucket_widths)
        self._forward_combination = forward_combination
        self._backward_combination = backward_combination
        self._parts = (
            combined_parts("forward_combination", forward_combination),
            combined_parts("backward_combination", backward_combination),
        )
        if self._input_dim % 2 != 0:
            raise ValueError(
                "The input dimension is not divisible by 2, but the "
                "BidirectionalEndpointSpanExtractor assumes the embedded representation "
                "is bidirectional (and hence divisible by 2)."
            )
        checks.check_flag("use_sentinels", use_sentinels)
        self._use_sentinels = use_sentinels
        if use_sentinels:
            self._start_sentinel = nn.Parameter(torch.randn(1, 1, input_dim // 2))
            self._end_sentinel = nn.Parameter(torch.randn(1, 1, input_dim // 2))

    def _vector_dim(self) -> int:
        return sum(map(len, self._parts)) * (self._input_dim // 2)

    def _vectors(self, batch: SpanBatch) -> Tensor:
        begin, length = batch.begin, batch.length
        start, end = batch.indices.unbind(-1)
        if batch.mask is not None:  # a span that does not count is the first token's, as in the original
            start, end = start * batch.mask, end * batch.mask
        lengths = torch.full_like(begin, length) if batch.lengths is None else batch.lengths[:, None]
        before, behind = start - 1, end + 1
        if _any(before < -1):
            raise ValueError(
                "Adjusted span indices must lie inside the length of the sequence tensor, "
                f"but found: exclusive_span_starts: {before}, exclusive_span_ends: {behind} "
                f"for a sequence tensor with lengths {lengths.view(-1)}."
            )
        _check_inside(start, batch)
        _check_inside(end, batch)
        outside: Tensor = begin
        sentinels: tuple[Tensor | None, ...] = (None, None)
        if self._use_sentinels:
            outside, sentinels = begin * 0 - 1, (self._start_sentinel.view(-1), self._end_sentinel.view(-1))
        before = torch.where(before < 0, outside, before + begin)
        behind = torch.where(behind >= lengths, outside, behind + begin)
        forward, backward = batch.tokens.split(self._input_dim // 2, -1)
        return torch.cat(
            [
                _pool_pairs(batch, forward, before, end + begin, self._parts[0], sentinels[0]),
                _pool_pairs(batch, backward, behind, start + begin, self._parts[1], sentinels[1], *self._widths(batch)),
            ],
            -1,
        )


class _PoolingExtractor(SpanExtractor):
    """Over the tokens of a span: a part of `span_pool`, then the embedding of its width."""

    def _pool(self, part: Part, batch: SpanBatch, start: Tensor, end: Tensor, scores: Tensor | None) -> Tensor:
        table, rows = self._widths(batch)
        spans = (torch.stack([start, end], -1) + batch.begin[..., None]).view(-1, 2)
        parts: list[Part] = [part] if table is None else [part, "width"]

        def width_rows(widths: Tensor) -> Tensor:
            assert rows is not None
            return rows

        return span_pool(batch.tokens, spans, parts, scores, table, width_rows=width_rows, mask=_flat(batch.mask))


class SelfAttentiveSpanExtractor(_PoolingExtractor):
    """AllenNLP's SelfAttentiveSpanExtractor: a softmax inside each span over one score a token.

    A span's tokens outside of the sequence count for nothing; where that is all of them its vector is zeros, and so is
    its width's, which the original adds. The original's softmax also counts a logit of 0 for each token that its padded
    span lacks, and loses spans whose scores are all very negative; here these are like any other.

    Args:
        input_dim: H, columns of the sequence.
        num_width_embeddings: rows of the embedding of widths, with `span_width_embedding_dim`.
        span_width_embedding_dim: its columns.
        bucket_widths: whether widths share rows (`width_bucket`).

    Raises:
        ValueError: one of the embedding's sizes without the other.
        IndexError: when called, a width that the embedding has no row for.

    Source: Gardner et al. 2018, AllenNLP; the head attention of Lee et al. 2017.

    Example:
        >>> extractor = SelfAttentiveSpanExtractor(4)
        >>> extractor(torch.randn(1, 5, 4), torch.tensor([[[0, 1], [2, 4]]])).shape
        torch.Size([1, 2, 4])
    """

    def __init__(
        self,
        input_dim: int,
        num_width_embeddings: int | None = None,
        span_width_embedding_dim: int | None = None,
        bucket_widths: bool = False,
    ) -> None:
        super().__init__(input_dim, num_width_embeddings, span_width_embedding_dim, bucket_widths)
        self._global_attention = TimeDistributed(nn.Linear(input_dim, 1))

    def _vectors(self, batch: SpanBatch) -> Tensor:
        start, end = batch.indices.unbind(-1)
        start, end = start.clamp(min=0), end.clamp(max=batch.length - 1)
        empty = start > end
        scores = self._global_attention(batch.tokens).squeeze(-1)
        return self._pool("attention", batch, start.masked_fill(empty, 0), end.masked_fill(empty, -1), scores)


class MaxPoolingSpanExtractor(_PoolingExtractor):
    """AllenNLP's MaxPoolingSpanExtractor: the maximum over a span's tokens, those of `sequence_mask` alone.

    Args:
        input_dim: H, columns of the sequence.
        num_width_embeddings: rows of the embedding of widths, with `span_width_embedding_dim`.
        span_width_embedding_dim: its columns.
        bucket_widths: whether widths share rows (`width_bucket`).

    Raises:
        ValueError: one of the embedding's sizes without the other; when called, another H.
        IndexError: when called, a token outside of the sequence, a span that ends before it starts or that has no real
            token, or a width that the embedding has no row for.

    Source: Gardner et al. 2018, AllenNLP; Eberts and Ulges 2020.

    Example:
        >>> extractor = MaxPoolingSpanExtractor(2)
        >>> extractor(torch.tensor([[[1.0, 5.0], [3.0, 2.0]]]), torch.tensor([[[0, 1]]])).tolist()
        [[[3.0, 5.0]]]
    """

    def _vectors(self, batch: SpanBatch) -> Tensor:
        start, end = batch.indices.unbind(-1)
        if _any((batch.indices >= batch.length) | (batch.indices < 0)):
            raise IndexError(
                f"Span index out of range, max index ({batch.indices.max()}) or min index ({batch.indices.min()}) "
                f"not valid for sequence of length ({batch.length})."
            )
        if _any(start > end):
            raise IndexError("Span start above span end")
        if batch.lengths is not None:
            end = torch.minimum(end, batch.lengths[:, None] - 1)
            if _any(start > end):
                raise IndexError("Span indices were masked out entirely by sequence mask")
        return self._pool("max", batch, start, end, None)
