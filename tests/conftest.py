"""Where there is no GPU, Triton's kernels run in its interpreter: decided before Triton is imported."""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Side by side, threads of one worker only wait for those of another.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)
