"""Where a training goes on: from which checkpoint, by itself after a restart, and on another number of ranks."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spanbert_kernels.tasks import checkpoints, launch, ranks
from spanbert_kernels.tasks.checkpoints import PassedOver
from spanbert_kernels.tasks.dealing import DealtBatches, sizes_of

if TYPE_CHECKING:
    from spanbert_kernels.tasks.training import TrainingOptions


class Restarted(UserWarning):
    """torchrun has started the ranks again."""


class OtherRanks(UserWarning):
    """A training goes on with other ranks or other batches, and with the same steps."""


def to_resume(options: TrainingOptions) -> Path | None:
    """The checkpoint to go on from, which the first rank finds for all."""
    if launch.restarts():
        begun = ranks.agreed(bool(checkpoints.in_order(options.output)))
        what = "going on from the newest checkpoint" if begun else "from the beginning, as there is no checkpoint yet"
        warnings.warn(f"restart {launch.restarts()}: {what}", Restarted, stacklevel=1)
        if not begun:
            return None
    elif not options.resume:
        if launch.restarts_left() and ranks.agreed(bool(checkpoints.in_order(options.output))):
            raise ValueError(
                f"{options.output} holds checkpoints of an earlier training, which a restart would go on from: "
                "resume it now, remove them, or name another folder"
            )
        return None
    found: Any = None
    if launch.rank() == 0:
        try:
            found = checkpoints.newest_whole(options.output)
        except checkpoints.CannotResume as error:
            found = error
    found = ranks.agreed(found)
    if isinstance(found, checkpoints.CannotResume):
        raise found
    checkpoint, passed_over = found
    for path, reason in passed_over:
        warnings.warn(f"{path} is passed over: {reason}; going on from {checkpoint}", PassedOver, stacklevel=1)
    return Path(checkpoint)


def dealt(
    options: TrainingOptions, data: Any, batch_size: int, a_step: int, checkpoint: Path | None
) -> DealtBatches | None:
    """The batches of a rank; None where the Trainer makes them. Where a training goes on, steps stay what they were."""
    then, before = (1, None) if checkpoint is None else checkpoints.of_ranks(checkpoint)
    if launch.ranks() == 1 and before in (None, a_step):
        return None
    found = DealtBatches(sizes_of(data), before or a_step, batch_size, options.seed)
    if before not in (None, a_step):
        warnings.warn(
            f"{checkpoint} has {before:,} examples a step (ranks: {then:,}), this run would have {a_step:,} (ranks: "
            f"{launch.ranks():,}): steps keep their {before:,}, batches of a rank in a step: {found.accumulation:,}",
            OtherRanks,
            stacklevel=1,
        )
    return found
