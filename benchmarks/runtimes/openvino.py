"""OpenVINO: float32, bfloat16, and NNCF's post-training quantisation to int8."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from batches import padded_batch
from torch import Tensor

from runtimes import Batch, States, need

CALIBRATION_BATCHES = 4
PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16"}


def openvino(model: Any, precision: torch.dtype, batch: Batch) -> Callable[[], Tensor]:
    """`INFERENCE_PRECISION_HINT` for floating point; of int8 what is not quantised runs as OpenVINO chooses."""
    need("openvino", *(["nncf"] if precision == torch.int8 else []))
    os.environ.setdefault("CI", "true")  # its telemetry stays silent where this is set
    compiled = _compiled(model, precision)
    given = {name: tensor.numpy() for name, tensor in batch.items()}
    return lambda: torch.from_numpy(compiled(given, share_inputs=True, share_outputs=True)[0])


@lru_cache(maxsize=1)
def _compiled(model: Any, precision: torch.dtype) -> Any:
    from openvino import Core

    options: dict[str, Any] = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    if precision in PRECISIONS:
        options["INFERENCE_PRECISION_HINT"] = PRECISIONS[precision]
    return Core().compile_model(_quantised(model) if precision == torch.int8 else _converted(model), "CPU", options)


@cache
def _converted(model: Any) -> Any:
    from openvino import convert_model

    with torch.no_grad():
        return convert_model(States(model), example_input=padded_batch(torch.tensor([12, 20, 7])))


@cache
def _quantised(model: Any) -> Any:
    import nncf

    def documents(seed: int) -> dict[str, Any]:
        lengths = torch.randint(8, 129, (4,), generator=torch.Generator().manual_seed(seed))
        return {name: tensor.numpy() for name, tensor in padded_batch(lengths).items()}

    data = nncf.Dataset([documents(seed) for seed in range(CALIBRATION_BATCHES)])
    transformer = nncf.ModelType.TRANSFORMER
    return nncf.quantize(_converted(model), data, model_type=transformer, subset_size=CALIBRATION_BATCHES)
