"""Padded batches, and a model run over them, the shortest examples first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from spanbert_kernels.tasks.means import IGNORED as IGNORED
from spanbert_kernels.tasks.progress import counted
from spanbert_kernels.tasks.training import on_path

Example = Any  # what a batch is made of: arrays by name, or several such
Collate = Callable[[list[Any]], dict[str, Tensor]]


def padded(examples: Sequence[Mapping[str, Any]], fills: Mapping[str, int]) -> dict[str, Tensor]:
    """Named arrays of the examples as int64 `[B, longest]`, filled up with what `fills` says.

    With `input_ids` among them, there is an `attention_mask`, too.

    Example:
        >>> padded([{"input_ids": [1, 2]}, {"input_ids": [3]}], {"input_ids": 0})["attention_mask"].tolist()
        [[1, 1], [1, 0]]
    """
    batch = {}
    for name, fill in fills.items():
        rows = [np.asarray(example[name], dtype=np.int64) for example in examples]
        array = np.full((len(rows), max(map(len, rows))), fill, dtype=np.int64)
        for row, values in zip(array, rows, strict=True):
            row[: len(values)] = values
        batch[name] = torch.from_numpy(array)
    if "input_ids" in fills:
        lengths = torch.tensor([len(example["input_ids"]) for example in examples])
        batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1]) < lengths[:, None]).long()
    return batch


def joined(rows: Sequence[NDArray[np.int64]], sizes: Sequence[int] = (), column: int | slice = slice(None)) -> Tensor:
    """Arrays one after the other; what a column of each counts, or all of it, goes on behind the `sizes` before it.

    Example:
        >>> joined([np.array([[0, 7]]), np.array([[0, 8], [1, 9]])], [3, 2], column=0).tolist()
        [[0, 7], [3, 8], [4, 9]]
    """
    found = [np.array(row) for row in rows]
    for row, start in zip(found, np.cumsum([0, *sizes]), strict=False):
        row[..., column] += start
    return torch.from_numpy(np.concatenate(found))


def numbered(rows: Sequence[NDArray[np.int64]]) -> Tensor:
    """Arrays one after the other, each row with the number of its array in front.

    Example:
        >>> numbered([np.array([[7]]), np.array([[8], [9]])]).tolist()
        [[0, 7], [1, 8], [1, 9]]
    """
    return joined([np.insert(row, 0, number, axis=1) for number, row in enumerate(rows)])


def repeated(sizes: Sequence[int]) -> Tensor:
    """The number of each of several groups, as often as it has members.

    Example:
        >>> repeated([2, 1]).tolist()
        [0, 0, 1]
    """
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def without(collate: Collate, names: Collection[str]) -> Collate:
    """Makes the same batches, but for what bears these names."""

    def batch_of(examples: list[Any]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in collate(examples).items() if name not in names}

    return batch_of


@torch.no_grad()
def outputs(
    model: nn.Module,
    examples: Sequence[Any],
    collate: Collate,
    size: Callable[[Any], int],
    batch_size: int,
    backend: str,
) -> Iterator[tuple[list[Any], Any]]:
    """Batches of examples of about one size, and the model's output for each."""
    order = sorted(examples, key=size)
    with on_path(model.eval(), backend):
        for begin in counted(range(0, len(order), batch_size), "predicting"):
            chosen = order[begin : begin + batch_size]
            yield chosen, model(**collate(chosen))
