"""What is decided before Triton and the compiled libraries are loaded: where there is no GPU, Triton's kernels run in
its interpreter.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from spanbert_kernels.ops import library

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Side by side, threads of one worker only wait for those of another.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

# Other builds of the compiled libraries: sanitized ones, mutated ones.
if "SPANBERT_KERNELS_LIBRARIES" in os.environ:
    library.FOLDER = Path(os.environ["SPANBERT_KERNELS_LIBRARIES"])
