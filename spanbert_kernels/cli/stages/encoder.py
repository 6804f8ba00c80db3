"""Stage 1: the encoder on padded batches, by transformers and accelerated."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from spanbert_kernels import ops
from spanbert_kernels.cli.agreement import Difference
from spanbert_kernels.cli.measuring import Effort, compare
from spanbert_kernels.cli.models import Encoders
from spanbert_kernels.cli.stages import StageResult
from spanbert_kernels.ops.backends import record

Batch = tuple[Tensor, Tensor]  # input_ids [B, L], attention_mask [B, L], int64 both, as a tokenizer gives them
WARM_UP = (2, 64)  # windows and tokens
PREDICTED = 512  # tokens whose predictions are made at once: a vocabulary has many columns


def pad_batches(windows: Sequence[Sequence[int]], size: int, pad: int) -> list[Batch]:
    """Windows in input order as padded batches of at most `size` rows.

    Example:
        >>> pad_batches([[5, 6], [7]], size=2, pad=0)
        [(tensor([[5, 6], [7, 0]]), tensor([[1, 1], [1, 0]]))]
    """
    batches = []
    for first in range(0, len(windows), size):
        rows = [torch.tensor(window) for window in windows[first : first + size]]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        lengths = torch.tensor([len(row) for row in rows])
        batches.append((ids, (torch.arange(ids.shape[1])[None, :] < lengths[:, None]).long()))
    return batches


def encode(encoder: Any, batch: Batch) -> Tensor:
    """-> `[B, L, H]`."""
    output: Tensor = encoder(input_ids=batch[0], attention_mask=batch[1]).last_hidden_state
    return output


def warm_up(batches: Sequence[Batch]) -> Batch:
    """The beginning of the first batch.

    Example:
        >>> [tensor.shape for tensor in warm_up([(torch.ones(16, 512), torch.ones(16, 512))])]
        [torch.Size([2, 64]), torch.Size([2, 64])]
    """
    rows, columns = WARM_UP
    ids, mask = batches[0]
    return ids[:rows, :columns], mask[:rows, :columns]


def compare_encoders(
    encoders: Encoders, batches: Sequence[Batch], effort: Effort, head: nn.Module | None = None
) -> tuple[StageResult, Tensor]:
    """The row, and hidden `[T, H]` of the real tokens, as the accelerated way makes them.

    With a `head`, the row says how many of its predictions differ.
    """
    hidden: list[Tensor] = []
    difference = Difference()
    changed = 0

    def inspect(index: int, baseline: Tensor, accelerated: Tensor) -> None:
        nonlocal changed
        mask = batches[index][1]
        hidden.append(accelerated[mask.bool()])
        if head is not None:
            changed += int((_predictions(head, baseline[mask.bool()]) != _predictions(head, hidden[-1])).sum())
        for row, length in enumerate(mask.sum(1).tolist()):
            difference.see(batches[index][0][row, :length], baseline[row, :length], accelerated[row, :length])

    with record() as calls:
        timing = compare(
            batches,
            partial(encode, encoders.baseline),
            partial(encode, encoders.accelerated),
            inspect,
            effort,
            largest=max(range(len(batches)), key=lambda i: batches[i][0].numel()),
            warm_up=warm_up(batches),
        )
    ids = difference.worst[0]
    worst = ids[None], torch.ones_like(ids)[None]
    in_float64 = encode(copy.deepcopy(encoders.baseline).double(), worst)[0]
    packed = torch.cat(hidden)
    result = StageResult(
        title="Encoder",
        baseline=f"transformers {type(encoders.baseline).__name__}, padded batches, {encoders.attention}",
        accelerated="spanbert_kernels.accelerate(model), the same batches",
        unit="tokens",
        count=len(packed),
        timing=timing,
        agreement=difference.judge(
            f"a window of {len(ids):,} tokens, alone and unpadded", in_float64, _defined(encoders, worst)
        ),
        backends=sorted(set(calls)),
        paths=[f"{path} ({number} calls)" for path, number in sorted(encoders.report.calls.items())],
        changed_predictions=None if head is None else changed,
    )
    return result, packed


def _defined(encoders: Encoders, batch: Batch) -> Tensor | None:
    """`[L, H]` of a batch of one, by plain PyTorch with the rounding of other weights than the model's."""
    if encoders.weights is None:
        return None
    with ops.backends.use("eager"):
        return encode(encoders.accelerated, batch)[0]


def _predictions(head: nn.Module, hidden: Tensor) -> Tensor:
    return torch.cat([head(some).argmax(-1) for some in hidden.split(PREDICTED)])
