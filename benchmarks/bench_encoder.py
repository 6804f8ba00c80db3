"""BERT-base through `accelerate`, against transformers' attention implementations and against other runtimes.

Inference in float32, bfloat16 and int8, each against the others in the same precision. Errors are against transformers
in float64 with the float32 weights, whatever the precision. A runtime that is not installed, or fails, is named in the
row with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import encoders
import torch
from encoders import BF16, EAGER, F32, INT8, SDPA, TRANSFORMERS, initial, inputs, model_of, one_by_one, prepared, work
from goals import AVX2, ZEN, Goal
from registry import Inputs, Prepared, Provider, Suite, Workload, register
from runtimes import Runtime, warm
from runtimes.ctranslate2_encoder import ctranslate2
from runtimes.onnx_runtime import onnx_runtime
from runtimes.openvino import openvino
from runtimes.pytorch import bare_products, dynamic_int8, frozen

FROZEN = "torch.compile, frozen"
OPENVINO, ONNX, CTRANSLATE2 = "OpenVINO", "ONNX Runtime", "CTranslate2"
DYNAMIC, FLOOR = "PyTorch, dynamic int8", "oneDNN's products alone"


def their_int8(workload: Workload, inputs: Inputs) -> Prepared:
    return prepared(workload, inputs, dynamic_int8(model_of(F32, "sdpa")))


def runtime(run: Runtime, library: str) -> Provider:
    """A runtime that converts the float32 model; PyTorch's own takes the model in the workload's precision."""

    def build(workload: Workload, inputs: Inputs) -> Prepared:
        model = model_of(workload.dtype, "sdpa") if library == "torch" else initial()
        call = warm(run, model, workload.dtype, inputs.given["batch"])
        whole = prepared(workload, inputs, model)
        return Prepared(call, whole.leaves, whole.unpack, parameters=True)

    return Provider(build, backward=False, converts=True, library=library)


def floor(workload: Workload, inputs: Inputs) -> Prepared:
    products = bare_products(initial(), workload.dtype, int(inputs.given["lengths"].sum()))
    return Prepared(products, (), parameters=True)


SENTENCES = {f"one sentence of {tokens}": {"lengths": [tokens]} for tokens in (8, 24, 64, 128)}
MIDDLE = "8 documents of 30 to 58"
BATCHES: dict[str, dict[str, Any]] = {
    "16 documents": {},
    MIDDLE: {"lengths": range(30, 59, 4)},
    "16 x 128": {"lengths": [128] * 16},
    **SENTENCES,
}
COMPILED = ("one sentence of 24", F32)  # minutes of compilation are not spent on the others
WAYS = {
    F32: ("ours", *TRANSFORMERS, OPENVINO, ONNX, CTRANSLATE2, FLOOR),
    BF16: ("ours", SDPA, OPENVINO, FLOOR),  # transformers' own choice; its eager attention is no faster there
    INT8: ("ours", DYNAMIC, OPENVINO, ONNX, CTRANSLATE2),
}


# Seconds a call, and a figure that nothing is asked of.
LEFT_OUT = {("16 x 128", INT8): (ONNX, CTRANSLATE2)}


def faster(factor: float, *against: str) -> Goal:
    return Goal(factor, against=against, on=ZEN)


def near_floor(factor: float) -> Goal:
    return Goal(at_most=factor, against=FLOOR, on=ZEN)


# What is asked for on two cores; on other processors it is reported.
GOALS: dict[tuple[str, torch.dtype], tuple[Goal, ...]] = {
    ("16 documents", F32): (faster(2.8, OPENVINO), faster(6, *TRANSFORMERS), faster(1.8, CTRANSLATE2),
                            faster(3.2, ONNX), near_floor(1.0)),
    ("16 documents", BF16): (faster(2.7, OPENVINO), faster(3.3, SDPA), near_floor(1.03)),
    ("16 documents", INT8): (faster(2.0, OPENVINO),),
    (MIDDLE, F32): (faster(1.45, OPENVINO), near_floor(1.0)),
    (MIDDLE, BF16): (faster(1.45, OPENVINO), near_floor(1.03)),
    ("16 x 128", F32): (faster(1.08, OPENVINO), near_floor(1.0)),
    ("16 x 128", BF16): (faster(1.08, OPENVINO), near_floor(1.03)),
    ("16 x 128", INT8): (faster(0.95, OPENVINO),),
    ("one sentence of 24", F32): (faster(1.5, OPENVINO), near_floor(0.85), Goal(1.2, against=OPENVINO, on=AVX2)),
    ("one sentence of 24", BF16): (faster(1.5, OPENVINO), near_floor(0.85)),
    ("one sentence of 24", INT8): (faster(1.2, OPENVINO),),
    **{(f"one sentence of {tokens}", dtype): (faster(factor, OPENVINO),)
       for tokens, factor in ((8, 1.4), (64, 1.3), (128, 1.2)) for dtype in (F32, BF16)},
}  # fmt: skip
NEVER_SLOWER = Goal(1.0, against=TRANSFORMERS, on=AVX2)


def inference(name: str, dtype: torch.dtype) -> Workload:
    """A row of the table of runtimes."""
    ways = (*WAYS[dtype], *([FROZEN] if (name, dtype) == COMPILED else []))
    left_out = LEFT_OUT.get((name, dtype), ())
    return Workload(
        name,
        dtype=dtype,
        options={"providers": [way for way in ways if way not in left_out], **BATCHES[name]},
        goals=(*GOALS.get((name, dtype), ()), *([NEVER_SLOWER] if dtype == F32 else [])),
        error_goal=6e-3 if dtype == BF16 else None,
        seconds=2.0 if name in SENTENCES else 4.0,
        quick=(name, dtype) == ("one sentence of 24", F32),
    )


INT8_BATCHES = ("16 documents", "16 x 128", "one sentence of 24")
SUITE = register(
    Suite(
        "encoder",
        (
            *(inference(name, dtype) for dtype in (F32, BF16) for name in BATCHES),
            *(inference(name, INT8) for name in INT8_BATCHES),
        ),
        {
            "ours": Provider(encoders.ours, "ours"),
            EAGER: Provider(encoders.theirs("eager"), "eager"),
            DYNAMIC: Provider(their_int8, "eager"),
            SDPA: Provider(encoders.theirs("sdpa")),
            OPENVINO: runtime(openvino, "openvino"),
            ONNX: runtime(onnx_runtime, "onnxruntime"),
            CTRANSLATE2: runtime(ctranslate2, "ctranslate2"),
            FROZEN: runtime(frozen, "torch"),
            FLOOR: Provider(floor, "floor"),
            "in float64": Provider(one_by_one),
        },
        inputs,
        work,
        reference="in float64",
        yardsticks=(SDPA,),
    )
)  # fmt: skip


def test_row(record: Callable[..., None], workload: Workload) -> None:
    record(workload)
