"""A plugin of pytest: Triton finds the kernels in the folder that SPANBERT_KERNELS_CARRIED names (`kernels.py`)."""

from __future__ import annotations

import os
from pathlib import Path

from gpu import kernels


def pytest_configure() -> None:
    kernels.use(Path(os.environ["SPANBERT_KERNELS_CARRIED"]))
