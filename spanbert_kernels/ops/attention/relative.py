"""Terms of the logits that depend on how far a key is from its query, and the published rules for their table rows."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from spanbert_kernels.ops import checks
from spanbert_kernels.ops.attention_plans import can_look


class RelativeTerms(NamedTuple):
    """Tables with a row for each bucket of distances: DeBERTa's disentangled attention, T5's and MPNet's bias.

    With x the row for the distance `j - i` of key j from query i, both counted in their document, the logit is
    `scale * (q_i . k_j + q_i . keys[x] + k_j . queries[x]) + bias[x]`; tables that are None add nothing.

    Attributes:
        index: int32 or int64 `[2 * reach + 1]`, the row for each distance from -reach to reach; a distance beyond takes
            the row of the end. Not differentiable. `bucketed_index`, `log_bucketed_index` and `clipped_index` make it.
        bias: `[rows, heads]`, added after the scale.
        keys: `[rows, heads, head_dim]`, multiplied by the query: content to position.
        queries: `[rows, heads, head_dim]`, multiplied by the key: position to content.

    Example:
        >>> index = torch.tensor([0, 1, 1], dtype=torch.int32)  # what lies before, the token itself and what comes
        >>> RelativeTerms(index, bias=torch.zeros(2, 12)).reach
        1
    """

    index: Tensor  # type: ignore[assignment]  # tuples have a method of that name
    bias: Tensor | None = None
    keys: Tensor | None = None
    queries: Tensor | None = None

    @property
    def reach(self) -> int:
        """The largest distance with an entry of its own in `index`."""
        return self.index.shape[0] // 2


class DistanceTerms(NamedTuple):
    """What hangs on the distance of a key from its query, as raw operators take it: RelativeTerms, and a window.

    Attributes:
        window: keys that a query sees before and behind it; -1 for all.
        index: int32 `[2 * reach + 1]`; absent without tables.
        bias, keys, queries: the tables, of q's dtype.
    """

    window: int
    index: Tensor | None  # type: ignore[assignment]
    bias: Tensor | None
    keys: Tensor | None
    queries: Tensor | None

    @classmethod
    def of(cls, window: int | None, relative: RelativeTerms | None) -> DistanceTerms:
        index, *tables = relative or (None, None, None, None)
        return cls(-1 if window is None else window, None if index is None else index.int(), *tables)


def bucketed_index(buckets: int = 32, max_distance: int = 128) -> Tensor:
    """The index of T5 and MPNet: a bucket for each small distance, wider ones up to the largest, either way.

    Args:
        buckets: rows of the table, half of them for keys behind the query.
        max_distance: the distance from which on there is one bucket.

    Returns:
        int32 `[2 * max_distance + 1]`.

    Raises:
        ValueError: fewer than 4 buckets, an odd number of them, a distance without need of buckets.
        TypeError: what is no integer.

    Example:
        >>> bucketed_index(8, 4).tolist()
        [3, 3, 2, 1, 0, 5, 6, 7, 7]
    """
    _check_even("buckets", buckets, 4)
    exact = buckets // 4
    checks.check_integer("max_distance", max_distance, exact + 1)
    distance = torch.arange(-max_distance, max_distance + 1)
    size = distance.abs()
    # In float32, as those who trained the tables did it: the borders of the buckets hang on its rounding.
    wide = torch.log(size.float() / exact) / math.log(max_distance / exact) * (buckets // 2 - exact)
    wide = (exact + wide.clamp(min=0).long()).clamp(max=buckets // 2 - 1)
    return (torch.where(size < exact, size, wide) + (distance > 0) * (buckets // 2)).int()


def log_bucketed_index(buckets: int, max_distance: int) -> Tensor:
    """The index of DeBERTa v2 and v3: distances up to half of the buckets, then logarithmic ones.

    Args:
        buckets: half of the table's rows, `position_buckets`.
        max_distance: the distance from which on there is one bucket, `max_relative_positions`.

    Returns:
        int32 `[2 * max_distance + 1]`; the rows ascend from keys behind the query to those before it.

    Raises:
        ValueError: fewer than 4 buckets, an odd number of them, a distance without need of buckets.
        TypeError: what is no integer.

    Example:
        >>> log_bucketed_index(4, 6).tolist()
        [7, 7, 7, 7, 6, 5, 4, 3, 2, 1, 1, 1, 0]
    """
    _check_even("buckets", buckets, 4)
    exact = buckets // 2
    checks.check_integer("max_distance", max_distance, exact + 2)
    distance = -torch.arange(-max_distance, max_distance + 1)  # theirs are those of the query from the key
    size = torch.where(distance.abs() < exact, exact - 1, distance.abs())
    # In float32, as those who trained the tables did it.
    ratio = torch.log(size / exact) / torch.log(torch.tensor((max_distance - 1) / exact))
    bucket = torch.where(size <= exact, distance, (torch.ceil(ratio * (exact - 1)) + exact) * distance.sign())
    return (bucket.long() + buckets).clamp(0, 2 * buckets - 1).int()


def clipped_index(max_distance: int) -> Tensor:
    """The index of DeBERTa v1, and of v2 without buckets: a row for each distance up to the largest.

    Args:
        max_distance: half of the table's rows, `max_relative_positions`.

    Returns:
        int32 `[2 * max_distance + 1]`; the rows ascend from keys behind the query to those before it.

    Raises:
        ValueError: a distance below 1.
        TypeError: what is no integer.

    Example:
        >>> clipped_index(2).tolist()
        [3, 3, 2, 1, 0]
    """
    checks.check_integer("max_distance", max_distance, 1)
    return (max_distance - torch.arange(-max_distance, max_distance + 1)).clamp(0, 2 * max_distance - 1).int()


def _check_even(name: str, value: int, least: int) -> None:
    checks.check_integer(name, value, least)
    if value % 2:
        raise ValueError(f"{name} must be even, got {value}")


def check_relative(relative: object, q: Tensor) -> None:
    """The tables fit the queries `[T, heads, head_dim]` and each other, and the index the tables, as far as no GPU is
    waited for.
    """
    if not isinstance(relative, RelativeTerms):
        raise TypeError(f"relative must be RelativeTerms, got {type(relative).__name__}: {checks.shown(relative)}")
    index = relative.index
    checks.check_index("relative.index", index, 1, "[2 * reach + 1]")
    checks.check_device("relative.index", index, "q", q)
    if index.shape[0] % 2 == 0:
        raise ValueError(f"relative.index must have an odd number of entries, 2 * reach + 1, got {index.shape[0]}")
    heads, head_dim = q.shape[1:]
    shapes = {"bias": ((heads,), "[rows, heads]"), "keys": ((heads, head_dim), "[rows, heads, head_dim]")}
    shapes["queries"] = shapes["keys"]
    rows: dict[str, int] = {}
    for name, (shape, text) in shapes.items():
        table, called = getattr(relative, name), f"relative.{name}"
        if table is None:
            continue
        checks.check_floating(called, table, 1 + len(shape), text)
        checks.check_same(called, table, "q", q)
        if table.shape[1:] != shape:
            raise ValueError(f"{called} must be {text} with {list(shape)} as q has, got {list(table.shape)}")
        if table.shape[0] == 0:
            raise ValueError(f"{called} must have rows, got {list(table.shape)}")
        rows[called] = table.shape[0]
    if not rows:
        raise ValueError("relative must have a table: bias, keys or queries, and all three are None")
    if len(set(rows.values())) > 1:
        raise ValueError(f"the tables of relative must have the same number of rows, got {rows}")
    if can_look(index):
        (least, most), count = map(int, index.aminmax()), next(iter(rows.values()))
        if least < 0 or most >= count:
            raise ValueError(
                f"relative.index must name rows of tables with {count}, but names row {min(least, 0) or most}"
            )
