"""A pytest plugin under whose `torch_scatter` its own tests of segments test span_pool.

A segment is a span: its sum, mean and maximum are parts of span_pool, the minimum is the maximum of the negative.
Integers are pooled in float64. What no span says is done around it: the place of a maximum (the largest of the negative
positions that hold it), the segments of an index (by counting), results that are put into a tensor or added to it.

Not here: `scatter` in any order, `gather_*`, which repeats rows, and TorchScript, which knows nothing of our operators:
what the tests script is called as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from spanbert_kernels.ops import span_pool
from spanbert_kernels.ops.choices import Part


def pooled(src: Tensor, indptr: Tensor, part: Part) -> Tensor:
    """`src [B.., L, ..]` over the segments `indptr [B.., S + 1]`: `[B.., S, ..]`, in floating point."""
    along = indptr.dim() - 1
    batch, length, segments = src.shape[:along], src.shape[along], indptr.shape[-1] - 1
    first = torch.arange(batch.numel())[:, None] * length
    offsets = indptr.expand(*batch, -1).reshape(batch.numel(), segments + 1) + first
    spans = torch.stack([offsets[:, :-1], offsets[:, 1:]], -1).view(-1, 2)
    rows = src if src.is_floating_point() else src.double()
    rest = src.shape[along + 1 :]
    found = span_pool(rows.reshape(batch.numel() * length, rest.numel()), spans, [part], end_inclusive=False)
    return found.view(*batch, segments, *rest)


def repeated(values: Tensor, indptr: Tensor, length: int) -> Tensor:
    """The value of each row's segment."""
    along = indptr.dim() - 1
    rows = torch.arange(length).expand(*indptr.shape[:-1], -1).contiguous()
    segment = (torch.searchsorted(indptr.contiguous(), rows, right=True) - 1).clamp(0, values.shape[along] - 1)
    index = segment.view(*segment.shape, *[1] * (values.dim() - along - 1))
    return values.gather(along, index.expand(*segment.shape, *values.shape[along + 1 :]))


def largest(src: Tensor, indptr: Tensor, sign: int) -> tuple[Tensor, Tensor]:
    """The maximum of `sign * src` times the sign, and where it stands: L in a segment without rows."""
    along = indptr.dim() - 1
    values = sign * pooled(sign * src, indptr, "max")
    length = src.shape[along]
    position = torch.arange(length, dtype=torch.float64).view(-1, *[1] * (src.dim() - along - 1))
    held = repeated(values.detach(), indptr, length) == src.detach()
    place = -pooled(torch.where(held, -position, -torch.inf), indptr, "max").long()
    empty = (indptr.diff() == 0).view(*indptr.shape[:-1], -1, *[1] * (src.dim() - along - 1))
    return values.to(src.dtype), torch.where(empty, length, place)


def reduced(src: Tensor, indptr: Tensor, reduce: str) -> tuple[Tensor, Tensor]:
    """The result, and the places of a minimum or maximum; an integer's mean is rounded down, as theirs is."""
    if reduce in ("min", "max"):
        return largest(src, indptr, -1 if reduce == "min" else 1)
    values = pooled(src, indptr, "mean" if reduce == "mean" else "sum")
    return (values if src.is_floating_point() else values.floor()).to(src.dtype), indptr


def offsets_of(index: Tensor, segments: int | None) -> Tensor:
    """Offsets of an ascending index's segments, `[.., S + 1]`."""
    count = segments if segments is not None else (int(index.max()) + 1 if index.numel() else 0)
    bounds = torch.arange(count + 1).expand(*index.shape[:-1], -1).contiguous()
    return torch.searchsorted(index.contiguous(), bounds)


def by_offsets(src: Tensor, indptr: Tensor, out: Tensor | None = None, reduce: str = "sum") -> tuple[Tensor, Tensor]:
    """Over `indptr`; into `out`, if there is one."""
    values, places = reduced(src, indptr, reduce)
    return (values if out is None else out.copy_(values)), places


def by_index(
    src: Tensor, index: Tensor, out: Tensor | None = None, dim_size: int | None = None, reduce: str = "sum"
) -> tuple[Tensor, Tensor]:
    """Over the segments of an ascending index; with what `out` holds, if there is one, but for the mean."""
    along = index.dim() - 1
    indptr = offsets_of(index, dim_size if out is None else out.shape[along])
    values, places = reduced(src, indptr, reduce)
    if out is None:
        return values, places
    if reduce in ("sum", "add"):
        return out.add_(values), places
    if reduce == "mean":
        return out.copy_(values), places
    empty = (indptr.diff() == 0).view(*indptr.shape[:-1], -1, *[1] * (src.dim() - along - 1))
    combined = torch.minimum(out, values) if reduce == "min" else torch.maximum(out, values)
    return out.copy_(torch.where(empty, out, combined)), places


def named(way: Callable[..., tuple[Tensor, Tensor]], reduce: str) -> Callable[..., Tensor | tuple[Tensor, Tensor]]:
    """The function of one reduction, which gives the places of a minimum or maximum beside it."""
    places = reduce in ("min", "max")
    return lambda *arguments: way(*arguments, reduce=reduce) if places else way(*arguments, reduce=reduce)[0]


def pytest_configure() -> None:
    """Before the tests import it; their own settings come from the checkout."""
    module = ModuleType("torch_scatter")
    module.__path__ = [str(Path.cwd() / "torch_scatter")]
    for suffix, way in (("csr", by_offsets), ("coo", by_index)):
        for reduce in ("sum", "add", "mean", "min", "max"):
            setattr(module, f"segment_{reduce}_{suffix}", named(way, reduce))
        setattr(module, f"segment_{suffix}", lambda *arguments, way=way: way(*arguments)[0])
    sys.modules["torch_scatter"] = module
    torch.jit.script = lambda function: function
