"""BERT-base through `accelerate`, against transformers' attention implementations and against other runtimes.

Inference in float32, bfloat16 and int8, each against the others in the same precision, and a training step: forward and
backward to all parameters. Errors are against transformers in float64 with the float32 weights, whatever the precision.
The step is compared without dropout, whose masks differ: the states and every 61st number of the gradients; what is
timed has dropout. A runtime that is not installed, or fails, is named in the row with the reason.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

import torch
from batches import VOCABULARY, document_lengths, padded_batch, padding_share, real_lengths
from goals import AVX2, ZEN, Goal, PeakGoal
from registry import BOTH, FORWARD, Inputs, Prepared, Provider, Suite, Unavailable, Work, Workload, register
from runtimes import Runtime, warm
from runtimes.ctranslate2_encoder import ctranslate2
from runtimes.onnx_runtime import onnx_runtime
from runtimes.openvino import openvino
from runtimes.pytorch import bare_products, dynamic_int8, frozen
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from spanbert_kernels import accelerate

EAGER, SDPA, FROZEN = "transformers, eager", "transformers, sdpa", "torch.compile, frozen"
OPENVINO, ONNX, CTRANSLATE2 = "OpenVINO", "ONNX Runtime", "CTranslate2"
DYNAMIC, FLOOR = "PyTorch, dynamic int8", "oneDNN's products alone"
TRANSFORMERS = (EAGER, SDPA)
F32, BF16, INT8 = torch.float32, torch.bfloat16, torch.int8
CONFIG = {"vocab_size": VOCABULARY, "attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}
COMPARED = 61


@cache
def initial() -> BertModel:
    torch.manual_seed(0)
    return BertModel(BertConfig(**CONFIG), add_pooling_layer=False).eval()


@lru_cache(maxsize=1)
def rounded(dtype: torch.dtype) -> BertModel:
    return copy.deepcopy(initial()).to(dtype)


def model_of(dtype: torch.dtype, attention: str) -> Any:
    """A model of its own that shares its weights; those of int8 are made of float32."""
    source = initial() if dtype in (F32, INT8) else rounded(dtype)
    model = copy.deepcopy(source, {id(each): each for each in (*source.parameters(), *source.buffers())})
    model.set_attn_implementation(attention)
    return model


def inputs(workload: Workload, dtype: torch.dtype) -> Inputs:
    options = workload.options
    if "real" in options:
        lengths = real_lengths(options["real"], options["per_cluster"])[0].clamp(max=512)
    elif "lengths" in options:
        lengths = torch.tensor(options["lengths"])
    else:
        lengths = document_lengths(options.get("documents", 16), options.get("sigma", 0.7))
    return Inputs((), {"lengths": lengths, "batch": padded_batch(lengths), "dtype": dtype})


def work(workload: Workload, inputs: Inputs) -> Work:
    """Products with the weights for real tokens alone, attention inside documents; weights and states once."""
    lengths: Tensor = inputs.given["lengths"]
    config, tokens, passes = BertConfig(**CONFIG), int(lengths.sum()), 3 if workload.direction == BOTH else 1
    size = config.hidden_size
    per_layer = 4 * size * size + 2 * size * config.intermediate_size
    pairs = 4 * int(lengths.square().sum()) * size
    axes = {"tokens": tokens, "documents": len(lengths), "padding": padding_share(lengths)}
    products = config.num_hidden_layers * (2 * tokens * per_layer + pairs)
    moved = config.num_hidden_layers * per_layer + 2 * tokens * size
    return Work(axes, passes * moved * workload.dtype.itemsize, passes * products)


def prepared(workload: Workload, inputs: Inputs, model: Any, way: Callable[..., Any] | None = None) -> Prepared:
    """A model as it is called, or as `way` calls it; a step's dropout is what its options say while it is timed."""
    model.train(workload.direction == BOTH)
    batch, dropout = inputs.given["batch"], workload.options.get("dropout", 0.0)
    mask, layers = batch["attention_mask"].bool(), [each for each in model.modules() if isinstance(each, nn.Dropout)]

    def compared(tensor: Tensor) -> Tensor:
        return tensor[mask] if tensor.shape[:2] == mask.shape else tensor.flatten()[::COMPARED]

    def step(p: float) -> Callable[[], Tensor]:
        def run() -> Tensor:
            for layer in layers:
                layer.p = p
            states: Tensor = (way or model)(**batch).last_hidden_state
            return states

        return run

    timed = step(dropout) if dropout else None
    return Prepared(step(0.0), tuple(model.parameters()), compared, parameters=True, timed=timed)


def ours(workload: Workload, inputs: Inputs) -> Prepared:
    model, options = model_of(inputs.given["dtype"], "sdpa"), {}
    if workload.dtype == INT8:
        if "weights" not in inspect.signature(accelerate).parameters:  # the package of another commit
            raise Unavailable("accelerate has no int8")
        options["weights"] = "int8"
    try:
        accelerate(model, **options)
    except ValueError as refused:
        raise Unavailable(str(refused)) from None
    return prepared(workload, inputs, model)


def theirs(attention: str) -> Callable[[Workload, Inputs], Prepared]:
    return lambda workload, inputs: prepared(workload, inputs, model_of(inputs.given["dtype"], attention))


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


def one_by_one(workload: Workload, inputs: Inputs) -> Prepared:
    """Every document alone, which needs no padding; for the reference, which has time for nothing else."""
    if workload.direction == FORWARD:
        states = exact_states(tuple(inputs.given["lengths"].tolist()))
        return Prepared(lambda: states, (), parameters=True)
    model = model_of(torch.float64, "eager").train()
    documents = documents_of(inputs.given["batch"])

    def way() -> Tensor:
        return torch.cat([model(ids).last_hidden_state[0] for ids in documents])

    states_shape = len(torch.cat(documents, 1)[0]), model.config.hidden_size

    def compared(tensor: Tensor) -> Tensor:
        return tensor if tensor.shape == states_shape else tensor.flatten()[::COMPARED]

    return Prepared(way, tuple(model.parameters()), compared, parameters=True)


def documents_of(batch: dict[str, Tensor]) -> list[Tensor]:
    return [row[mask.bool()][None] for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]


@cache
def exact_states(lengths: tuple[int, ...]) -> Tensor:
    """The same for every precision."""
    model = copy.deepcopy(initial()).double()
    with torch.inference_mode():
        return torch.cat([model(ids).last_hidden_state[0] for ids in documents_of(padded_batch(torch.tensor(lengths)))])


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
    BF16: ("ours", *TRANSFORMERS, OPENVINO, FLOOR),
    INT8: ("ours", DYNAMIC, OPENVINO, ONNX, CTRANSLATE2),
}


def faster(factor: float, *against: str) -> Goal:
    return Goal(factor, against=against, on=ZEN)


def near_floor(factor: float) -> Goal:
    return Goal(at_most=factor, against=FLOOR, on=ZEN)


# What is asked for on two cores; on other processors it is reported.
GOALS: dict[tuple[str, torch.dtype], tuple[Goal, ...]] = {
    ("16 documents", F32): (faster(2.8, OPENVINO), faster(6, *TRANSFORMERS), faster(1.8, CTRANSLATE2),
                            faster(3.2, ONNX), near_floor(1.0)),
    ("16 documents", BF16): (faster(2.7, OPENVINO), faster(3.3, *TRANSFORMERS), near_floor(1.03)),
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
    return Workload(
        name,
        dtype=dtype,
        options={"providers": ways, **BATCHES[name]},
        goals=(*GOALS.get((name, dtype), ()), *([NEVER_SLOWER] if dtype == F32 else [])),
        error_goal=6e-3 if dtype == BF16 else None,
        seconds=2.0 if name in SENTENCES else 4.0,
        quick=(name, dtype) == ("one sentence of 24", F32),
    )


INT8_BATCHES = ("16 documents", "16 x 128", "one sentence of 24")
STEP = Workload(
    "8 documents, dropout 0.1",
    BOTH,
    options={"providers": ("ours", *TRANSFORMERS), "documents": 8, "dropout": 0.1},
    goals=(faster(3.8, *TRANSFORMERS),),
    peaks=("ours", SDPA),
    peak_goal=PeakGoal(fraction=0.5, against=SDPA, activations=True),
)
SUITE = register(
    Suite(
        "encoder",
        (
            *(inference(name, dtype) for dtype in (F32, BF16) for name in BATCHES),
            *(inference(name, INT8) for name in INT8_BATCHES),
            STEP,
        ),
        {
            "ours": Provider(ours, "ours"),
            EAGER: Provider(theirs("eager"), "eager"),
            DYNAMIC: Provider(their_int8, "eager"),
            SDPA: Provider(theirs("sdpa")),
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
        yardsticks=("transformers, sdpa",),
    )
)  # fmt: skip


def test_row(record: Callable[..., None], workload: Workload) -> None:
    record(workload)
