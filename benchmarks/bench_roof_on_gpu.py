"""The workloads of `benchmarks/roof` on a GPU, beside what their compiled code lets expect."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from roof import keeping
from roof.measured import measure
from roof.workloads import WORKLOADS

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", WORKLOADS)
def test_roof_on_gpu(keep_measured: Callable[..., None], name: str) -> None:
    workload = WORKLOADS[name]
    found: dict[str, Any] = measure(workload.on_gpu or workload.prepare)
    kept = keeping.load(keeping.newest()).rows("now").get(name)
    predicted = round(kept.predicted, 1) if kept else None
    keep_measured({"name": name, "predicted": predicted, "goal": workload.goal, **found})
    print(f"{name}: {found['measured']} us, predicted {predicted}, the call {found['call']}")
    gc.collect()
    torch.cuda.empty_cache()
