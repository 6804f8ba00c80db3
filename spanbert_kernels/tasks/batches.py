"""Padded batches, and a model run over them, the shortest examples first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spanbert_kernels.tasks.progress import counted
from spanbert_kernels.tasks.training import on_path

IGNORED = -100


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


@torch.no_grad()
def outputs(
    model: nn.Module,
    examples: Sequence[Mapping[str, Any]],
    collate: Callable[[list[Any]], dict[str, Tensor]],
    size: Callable[[Any], int],
    batch_size: int = 32,
    backend: str = "auto",
) -> Iterator[tuple[list[int], Any]]:
    """The model's output for batches of examples of about one size, with the numbers of the examples in each."""
    order = sorted(range(len(examples)), key=lambda i: size(examples[i]))
    with on_path(model.eval(), backend):
        for begin in counted(range(0, len(order), batch_size), "predicting"):
            chosen = order[begin : begin + batch_size]
            yield chosen, model(**collate([examples[i] for i in chosen]))
