"""Spans as the kernels want them: a plan sorts once and serves every layer and call of a batch.

Two kinds. A sorted plan keeps the spans of a tensor ordered by (first token, width) and the row each came from.
An enumerated plan stands for *all spans up to a width* of packed documents and stores no pair: row by row, for each
token in turn, the spans that start there, narrowest first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spanbert_kernels.ops import checks
from spanbert_kernels.ops.repeats import Repeats
from spanbert_kernels.ops.streams import Made, make_for_all


class SpanWork(NamedTuple):
    """Spans in the form that raw operators take.

    The CPU kernels take a span tensor's bounds in any order (`rows` absent), a sorted plan, or an enumeration
    (`cu_seqlens` and `max_width` alone), and sort for themselves. The GPU kernels always get sorted bounds and the two
    work lists that let a block of tokens find its spans: those that hold token t lie in `reach[t] : first[t + 1]`.

    Attributes:
        starts, ends: int64 `[N]`, first token and token after the last.
        rows: int64 `[N]`, the output row of each span; absent: its own index.
        cu_seqlens: int64 `[D + 1]` of an enumeration, whose spans `first[t] : first[t + 1]` start at token t and are
            1, 2, 3, ... tokens wide.
        first: int64 `[T + 1]`, the number of sorted spans that start before each token (spans without tokens are
            `(0, 0)` and come first of all).
        reach: int64 `[T]`, the first sorted span that ends after each token, N if none does.
        num_spans: N.
        max_width: tokens in the widest span, 0 where that is not known without looking.
    """

    starts: Tensor | None
    ends: Tensor | None
    rows: Tensor | None
    cu_seqlens: Tensor | None
    first: Tensor | None
    reach: Tensor | None
    num_spans: int
    max_width: int


@dataclass(frozen=True)
class SpanPlan:
    """Spans over `num_tokens` packed tokens, in an order kernels can use. Made by `plan_spans` and `enumerate_spans`.

    Attributes:
        num_spans: N.
        num_tokens: T, the number of tokens the plan was made for.
        max_width: tokens in the widest span.
        total_width: tokens of all spans together, which share nothing in this count.
        device: where the plan's tensors are.
        starts, ends, rows: int64 `[N]` of a sorted plan: first token, token after the last, row in the output.
        cu_seqlens: int64 `[D + 1]` of an enumerated plan.

    Example:
        >>> plan = plan_spans(torch.tensor([[2, 3], [0, 1], [1, 3]]), num_tokens=5)
        >>> len(plan), plan.num_tokens, plan.max_width, plan.total_width
        (3, 5, 3, 7)
        >>> plan.pairs().tolist()
        [[2, 3], [0, 1], [1, 3]]
    """

    num_spans: int
    num_tokens: int
    max_width: int
    total_width: int
    device: torch.device
    starts: Tensor | None = None
    ends: Tensor | None = None
    rows: Tensor | None = None
    cu_seqlens: Tensor | None = None
    _repeats: Repeats | None = field(default=None, init=False, repr=False, compare=False)
    _lists: dict[str, Made[Any]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return self.num_spans

    @property
    def repeats(self) -> Repeats:
        """What is kept of the calls that get this plan."""
        if self._repeats is None:
            object.__setattr__(self, "_repeats", Repeats())
        assert self._repeats is not None
        return self._repeats

    def bounds(self) -> tuple[Tensor, Tensor]:
        """First token and token after the last of every span, int64 `[N]` each, in the order of the output rows."""
        found: tuple[Tensor, Tensor] = self._once("bounds", self._make_bounds)
        return found

    def _make_bounds(self) -> tuple[Tensor, Tensor]:
        if self.cu_seqlens is not None:
            return _enumerate(self.cu_seqlens, self.num_tokens, self.max_width, self.num_spans)
        assert self.starts is not None
        assert self.ends is not None
        assert self.rows is not None
        inverse = torch.empty_like(self.rows)
        inverse[self.rows] = torch.arange(self.num_spans, device=self.device)
        return self.starts[inverse], self.ends[inverse]

    def device_work(self) -> SpanWork:
        """The work lists of the GPU kernels: made at the first call, the same tensors for every later one."""
        work: SpanWork = self._once("work", self._make_work)
        if not torch.compiler.is_compiling():
            self.repeats.work = work
        return work

    def prepare(self) -> None:
        """Make now what a GPU's kernels need, on the current stream, and not at the first call: before a CUDA graph is
        captured.

        Raises:
            RuntimeError: one is being captured already.
        """
        self.device_work()

    def _make_work(self) -> SpanWork:
        start, end, rows = self.starts, self.ends, self.rows
        if start is None or end is None:
            start, end = self.bounds()
        first, reach = first_and_reach(start, end, self.num_tokens)
        return SpanWork(start, end, rows, self.cu_seqlens, first, reach, self.num_spans, self.max_width)

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns, made once: not inside a graph, and fit for autograd wherever that first call stands."""
        if torch.compiler.is_compiling():
            return make()
        if name not in self._lists:
            self._lists[name] = make_for_all(make, (self.starts, self.ends, self.rows, self.cu_seqlens), in_graph=False)
        return self._lists[name].here()

    def pairs(self) -> Tensor:
        """The spans as an int64 tensor `[N, 2]` of (start, end), end inclusive, in the order of the output rows.

        Example:
            >>> enumerate_spans(torch.tensor([0, 2, 3]), max_width=2).pairs().tolist()
            [[0, 0], [0, 1], [1, 1], [2, 2]]
        """
        start, end = self.bounds()
        return torch.stack([start, end - 1], dim=1)


def _fit_for_autograd() -> AbstractContextManager[Any]:
    """New tensors inside can be saved for a backward, under torch.inference_mode() too: a plan outlives that."""
    return nullcontext() if torch.compiler.is_compiling() else torch.inference_mode(False)


def _enumerate(cu_seqlens: Tensor, num_tokens: int, max_width: int, num_spans: int) -> tuple[Tensor, Tensor]:
    tokens = torch.arange(num_tokens, device=cu_seqlens.device)
    document_end = cu_seqlens[torch.searchsorted(cu_seqlens, tokens, right=True)]
    return _consecutive(tokens, (document_end - tokens).clamp(max=max_width), num_spans)


@checks.uncompiled
def enumerate_spans(cu_seqlens: Tensor, max_width: int) -> SpanPlan:
    """All spans of up to `max_width` tokens inside the documents, as a plan that stores no pair.

    Args:
        cu_seqlens: int32 or int64 `[D + 1]`, offsets of the documents in the packed tokens.
        max_width: tokens in the widest span, at least 1.

    Returns:
        A plan of N spans, for each token in turn those that start there, narrowest first.
        Reads the offsets once on the host.

    Raises:
        ValueError: offsets that do not ascend from 0, or a width below 1.
        TypeError: offsets that are not int32 or int64, a width that is no integer.

    Source: the spans that Lee et al. 2017 score; their code makes `[T, W]` candidates and masks those that leave the
    document.

    Example:
        >>> plan = enumerate_spans(torch.tensor([0, 4]), max_width=3)
        >>> len(plan), plan.max_width
        (9, 3)
    """
    max_width = checks.check_integer("max_width", max_width, 1)
    checks.check_index("cu_seqlens", cu_seqlens, 1, "[documents + 1]")
    checks.check_readable("cu_seqlens", cu_seqlens)
    checks.check_offsets("cu_seqlens", cu_seqlens, None, "tokens")
    offsets = cu_seqlens.tolist()
    checks.check_integer("the last of cu_seqlens", offsets[-1], 0)
    lengths = [after - before for before, after in itertools.pairwise(offsets)]
    widest = max([min(length, max_width) for length in lengths], default=0)
    count = total_width = 0
    for length in lengths:
        width = min(length, max_width)
        count += width * length - width * (width - 1) // 2
        # Of width w there are length + 1 - w.
        total_width += (length + 1) * width * (width + 1) // 2 - width * (width + 1) * (2 * width + 1) // 6
    with _fit_for_autograd():  # the plan outlives what the caller does
        own = torch.tensor(offsets, dtype=torch.int64, device=cu_seqlens.device)
    return SpanPlan(count, offsets[-1], widest, total_width, cu_seqlens.device, cu_seqlens=own)


@checks.uncompiled
def plan_spans(
    spans: Tensor,
    *,
    num_tokens: int | None = None,
    cu_seqlens: Tensor | None = None,
    end_inclusive: bool = True,
    mask: Tensor | None = None,
) -> SpanPlan:
    """Sort spans once, for many calls.

    Args:
        spans: int32 or int64 `[N, 2]`, packed (start, end); overlapping, repeated and empty spans are welcome.
        num_tokens: T, the tokens of the calls to come; by default as many as the spans reach, or the documents hold.
        cu_seqlens: int32 or int64 `[D + 1]`, offsets of the documents, no border of which a span may cross.
        end_inclusive: the end is the span's last token (default), or the one after it.
        mask: bool `[N]`; a span that is False has no token, whatever its numbers are.

    Returns:
        A sorted plan. Reads the largest width and end once on the host.

    Raises:
        ValueError: wrong shape, negative `num_tokens`, or a span that reaches outside `0 .. num_tokens` or across the
            border of a document (the first one is named).
        TypeError: spans or offsets that are not int32 or int64.

    Source: sorted so, the spans that hold a token lie in one run, between two binary searches (see `SpanWork`), as the
    rows of a CSR matrix lie between two offsets.

    Example:
        >>> plan = plan_spans(torch.tensor([[2, 3], [0, 1]]))
        >>> plan.starts.tolist(), plan.rows.tolist(), plan.max_width
        ([0, 2], [1, 0], 2)
    """
    if num_tokens is not None:
        num_tokens = checks.check_integer("num_tokens", num_tokens, 0)
    start, end = span_bounds(spans, end_inclusive, mask)
    checks.check_readable("spans", spans)
    if cu_seqlens is not None:
        checks.check_offsets("cu_seqlens", cu_seqlens, num_tokens, "tokens")
        checks.check_device("cu_seqlens", cu_seqlens, "spans", spans)
        num_tokens = checks.check_integer("the last of cu_seqlens", int(cu_seqlens[-1]), 0)
    with _fit_for_autograd():
        plan = _plan_bounds(start, end, num_tokens)
    if cu_seqlens is not None:
        check_documents(start, end, cu_seqlens)
    return plan


@checks.uncompiled
def spans_to_limits(
    starts: Tensor, limits: Tensor, *, max_width: int | None = None, num_tokens: int | None = None
) -> SpanPlan:
    """All spans that begin at some tokens and end before a limit of each, as a plan.

    Args:
        starts: int32 or int64 `[M]`, first tokens, in any order.
        limits: int32 or int64 `[M]`, for each the token that its spans end before: where its sentence or its document
            ends. One that is no further than its start leaves no span.
        max_width: tokens in the widest span; by default only the limits bound them.
        num_tokens: T, the tokens of the calls to come; by default as many as the spans reach.

    Returns:
        A sorted plan, its rows start by start in the order given, narrowest span first. Reads the number of spans, the
        largest width and the largest end on the host.

    Raises:
        ValueError: wrong shapes, a width below 1, or a start or a limit outside of `0 .. num_tokens` (it is
            named).
        TypeError: starts or limits that are not int32 or int64.

    Source: maverick-coref (Martinelli et al. 2024) scores the spans from predicted starts to the ends of sentences.

    Example:
        >>> sentence_ends = torch.tensor([3, 3, 3, 5, 5])
        >>> starts = torch.tensor([1, 4])
        >>> spans_to_limits(starts, sentence_ends[starts], num_tokens=5).pairs().tolist()
        [[1, 1], [1, 2], [4, 4]]
    """
    for name, tensor in (("starts", starts), ("limits", limits)):
        checks.check_index(name, tensor, 1, "[M]")
        checks.check_readable(name, tensor)
    checks.check_device("limits", limits, "starts", starts)
    if len(limits) != len(starts):
        raise ValueError(f"limits must have one entry for each of the {len(starts)} starts, got {len(limits)}")
    if num_tokens is not None:
        num_tokens = checks.check_integer("num_tokens", num_tokens, 0)
    widest = checks.MOST if max_width is None else checks.check_integer("max_width", max_width, 1)
    if num_tokens is None:
        num_tokens = checks.check_integer("the largest of limits", int(limits.max()) if len(limits) else 0, 0)
    with _fit_for_autograd():
        begin, end = starts.long().clone(), limits.long()
        for name, index in (("starts", begin), ("limits", end)):
            bad = (index < 0) | (index > num_tokens)
            if bool(bad.any()):
                row = int(bad.to(torch.uint8).argmax())
                raise ValueError(f"{name}[{row}] is {int(index[row])}, but there are {num_tokens} tokens")
        widths = (end - begin).clamp(0, widest)
        count = checks.check_integer("the number of spans", int(widths.sum()), 0)
        return _plan_bounds(*_consecutive(begin, widths, count), num_tokens)


def _consecutive(begin: Tensor, widths: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Bounds of the spans of 1, 2, ... tokens, up to a width for each begin: `count` in all."""
    of = torch.repeat_interleave(torch.arange(len(begin), device=begin.device), widths, output_size=count)
    first_row = torch.cumsum(widths, 0) - widths
    start = begin[of]
    return start, start + 1 + torch.arange(count, device=begin.device) - first_row[of]


def _plan_bounds(start: Tensor, end: Tensor, num_tokens: int | None) -> SpanPlan:
    device = start.device
    if len(start) == 0:
        none = torch.zeros(0, dtype=torch.int64, device=device)  # `start` may be a view of what the caller has
        return SpanPlan(0, num_tokens or 0, 0, 0, device, none, none, none)
    total = num_tokens
    if total is None:
        total = checks.check_integer("the largest number in spans", max(int(start.max()), int(end.max()), 0), 0)
    check_range(start, end, total)
    # An empty span reads no token: moved to (0, 0), it sorts first and can be left in place by every kernel.
    empty = end <= start
    start, end = start.masked_fill(empty, 0), end.masked_fill(empty, 0)
    start, end, rows = _sort(start, end, total)
    widest, total_width = torch.stack([(end - start).max(), (end - start).sum()]).tolist()
    return SpanPlan(len(start), total, widest, total_width, device, start, end, rows)


def span_bounds(spans: Tensor, end_inclusive: bool, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """First token and token after the last, int64 `[N]` each, of a span tensor `[N, 2]`; (0, 0) where masked."""
    checks.check_flag("end_inclusive", end_inclusive)
    checks.check_index("spans", spans, 2, "[N, 2]")
    if spans.shape[1] != 2:
        raise ValueError(f"spans must have shape [N, 2], got {list(spans.shape)}")
    start, end = spans.long().unbind(1)
    # The largest int64 has no successor, and needs none to lie outside.
    end = end.clamp(max=torch.iinfo(torch.int64).max - 1) + 1 if end_inclusive else end
    if mask is None:
        return start, end
    checks.check_tensor("mask", mask, "[N]")
    checks.check_device("mask", mask, "spans", spans)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got {mask.dtype}")
    if mask.shape != start.shape:
        raise ValueError(f"mask must have one entry for each of the {len(start)} spans, got {list(mask.shape)}")
    return torch.where(mask, start, 0), torch.where(mask, end, 0)


def check_range(start: Tensor, end: Tensor, num_tokens: int) -> None:
    """Raise for the first span that reaches outside `0 .. num_tokens`, or starts there, be it empty."""
    bad = (start < 0) | (start > num_tokens) | (end > num_tokens)
    if bool(bad.any()):
        row = int(bad.to(torch.uint8).argmax())
        raise ValueError(
            f"spans: span {row} covers tokens {int(start[row])} to {int(end[row]) - 1}, "
            f"but hidden has {num_tokens} tokens (0 to {num_tokens - 1})"
        )


def check_documents(start: Tensor, end: Tensor, cu_seqlens: Tensor) -> None:
    """Raise for the first span with tokens of more than one document; the bounds are in range."""
    offsets = cu_seqlens.long().contiguous()
    document = torch.searchsorted(offsets[1:], start.contiguous(), right=True).clamp(max=max(len(offsets) - 2, 0))
    bad = (end > start) & (end > offsets[1:][document]) if len(offsets) > 1 else end > start
    if bool(bad.any()):
        row = int(bad.to(torch.uint8).argmax())
        raise ValueError(
            f"spans: span {row} covers tokens {int(start[row])} to {int(end[row]) - 1}, not in one document"
        )


def plan_bounds(plan: SpanPlan, end_inclusive: bool) -> tuple[Tensor, Tensor]:
    """The plan's bounds; it says itself what its spans' ends were."""
    check_no_ends(end_inclusive)
    return plan.bounds()


def check_no_ends(end_inclusive: bool) -> None:
    """Raise where a plan is told what the ends of its spans are."""
    checks.check_flag("end_inclusive", end_inclusive)
    if not end_inclusive:
        raise ValueError("end_inclusive=False is for a span tensor: a plan knows its ends, give it to plan_spans")


def resolve(
    spans: Tensor | SpanPlan, hidden: Tensor, end_inclusive: bool, validate: bool, mask: Tensor | None = None
) -> SpanPlan | tuple[Tensor, Tensor]:
    """The plan itself, checked against `hidden`; or the bounds of a span tensor, range-checked where that costs no
    synchronisation (on a CPU) or is asked for.
    """
    num_tokens = hidden.shape[0]
    checks.check_flag("validate", validate)
    if isinstance(spans, SpanPlan):
        check_no_ends(end_inclusive)
        if mask is not None:
            raise ValueError("mask is for a span tensor: give it to plan_spans")
        if spans.num_tokens != num_tokens:
            raise ValueError(f"spans: the plan was made for {spans.num_tokens} tokens, but hidden has {num_tokens}")
        if spans.device != hidden.device:
            raise TypeError(f"spans: the plan is on {spans.device}, but hidden is on {hidden.device}")
        return spans
    start, end = span_bounds(spans, end_inclusive, mask)
    checks.check_device("spans", spans, "hidden", hidden)
    if (validate or hidden.device.type == "cpu") and not torch.compiler.is_compiling():
        check_range(start, end, num_tokens)
    return start, end


def first_and_reach(starts: Tensor, ends: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """The work lists over sorted spans: `first` int64 `[T + 1]` and `reach` int64 `[T]`, as SpanWork has them.

    Example:
        >>> first, reach = first_and_reach(torch.tensor([0, 0, 2]), torch.tensor([1, 3, 3]), 3)
        >>> first.tolist(), reach.tolist()
        ([0, 2, 2, 3], [0, 1, 1])
    """
    tokens = torch.arange(num_tokens + 1, device=starts.device)
    first = torch.searchsorted(starts, tokens)
    if len(ends) == 0:
        return first, tokens[:-1] * 0
    return first, torch.searchsorted(ends.cummax(0).values, tokens[:-1], right=True)


def work_for(spans: SpanPlan | tuple[Tensor, Tensor], backend: str, num_tokens: int) -> SpanWork:
    """What the raw operators of `backend` take, from what `resolve` returns.

    A span tensor on a GPU is sorted on the device, without looking at it; a plan has done that once for all calls.
    """
    if isinstance(spans, SpanPlan):
        if backend != "cpu":
            return spans.device_work()
        return SpanWork(
            spans.starts, spans.ends, spans.rows, spans.cu_seqlens, None, None, spans.num_spans, spans.max_width
        )
    start, end = spans
    if backend == "cpu":
        return SpanWork(start, end, None, None, None, None, len(start), 0)
    # What cannot be read counts as empty: there is no looking at values here.
    empty = (end <= start) | (start < 0) | (end > num_tokens)
    start, end, rows = _sort(start.masked_fill(empty, 0), end.masked_fill(empty, 0), num_tokens)
    first, reach = first_and_reach(start, end, num_tokens)
    return SpanWork(start, end, rows, None, first, reach, len(start), 0)


def _sort(start: Tensor, end: Tensor, num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """By (start, end), stable; the third tensor says where each span was."""
    rows = torch.argsort(start * (num_tokens + 1) + end, stable=True)
    return start[rows], end[rows], rows


def width_index(widths: Tensor, table_rows: int, width_rows: Callable[[Tensor], Tensor] | None) -> Tensor:
    """The row of the width table for each width: `min(width, rows) - 1`, or what `width_rows` says; int64 `[N]`."""
    if width_rows is None:
        return widths.clamp(1, table_rows) - 1
    index = width_rows(widths.clamp(min=1))
    checks.check_index("the result of width_rows", index, 1, "[N]")
    checks.check_device("the result of width_rows", index, "the widths that it was given", widths)
    if index.shape != widths.shape:
        raise ValueError(f"width_rows must return one row per width ({len(widths)}), got {list(index.shape)}")
    if index.device.type == "cpu" and not torch.compiler.is_compiling() and len(index):
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= table_rows:
            raise ValueError(f"width_rows gave row {low if low < 0 else high}, but the table has {table_rows} rows")
    return index.long()


def check_width_rows(width_rows: object) -> None:
    if width_rows is not None and not callable(width_rows):
        raise TypeError(f"width_rows must be a function from widths to rows, got {type(width_rows).__name__}")
