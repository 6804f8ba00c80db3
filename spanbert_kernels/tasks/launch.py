"""What torchrun, or another launcher that sets the same variables, tells each of the processes that it started."""

from __future__ import annotations

import os

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> bool:
    """Whether this process is one of several, or the only one that such a launcher started."""
    return all(name in os.environ for name in VARIABLES)


def rank() -> int:
    """The number of this process, 0 where it is the only one.

    Example:
        >>> rank(), ranks()
        (0, 1)
    """
    return int(os.environ["RANK"]) if launched() else 0


def ranks() -> int:
    """How many processes there are."""
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def hush() -> None:
    """Leaves out what PyTorch's C++ code warns each rank of, unless the user has chosen; before PyTorch is loaded."""
    if launched():
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def restarts() -> int:
    """How often torchrun has started these processes again, since one had ended."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) if launched() else 0


def restarts_left() -> bool:
    """Whether torchrun would start them again."""
    return launched() and restarts() < int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
