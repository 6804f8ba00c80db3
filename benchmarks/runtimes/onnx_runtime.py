"""ONNX Runtime: float32 as its BERT optimiser fuses it, and int8 weights with dynamic quantisation."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from batches import padded_batch
from registry import Unavailable
from torch import Tensor

from runtimes import Batch, States, folder, need


def onnx_runtime(model: Any, precision: torch.dtype, batch: Batch) -> Callable[[], Tensor]:
    """As many threads as PyTorch has, in one pool."""
    need("onnx", "onnxruntime")
    session = _session(model, precision)
    given = {name: tensor.numpy() for name, tensor in batch.items()}
    return lambda: torch.from_numpy(session.run(None, given)[0])


@lru_cache(maxsize=1)
def _session(model: Any, precision: torch.dtype) -> Any:
    from onnxruntime import InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    path = _quantised(model) if precision == torch.int8 else _fused(model)
    return InferenceSession(path, options, providers=["CPUExecutionProvider"])


@cache
def _fused(model: Any) -> Path:
    """Its optimiser knows what PyTorch's older exporter makes of eager attention; from the newer one it fuses less."""
    from onnxruntime.transformers import optimizer

    exported, fused = folder("onnx") / "exported.onnx", folder("onnx") / "fused.onnx"
    model = copy.deepcopy(model)
    model.set_attn_implementation("eager")
    names, example = ["input_ids", "attention_mask"], padded_batch(torch.tensor([12, 20, 7]))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            States(model).eval(),
            tuple(example.values()),
            str(exported),
            dynamo=False,
            input_names=names,
            output_names=["states"],
            dynamic_axes={name: {0: "documents", 1: "tokens"} for name in [*names, "states"]},
            opset_version=17,
        )
    layers, heads, size = (
        getattr(model.config, name) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size")
    )
    optimised = optimizer.optimize_model(str(exported), "bert", num_heads=heads, hidden_size=size)
    found = optimised.get_fused_operator_statistics()["Attention"]
    if found < layers:
        raise Unavailable(f"its optimiser fuses {found} of {layers} attentions of this export")
    optimised.save_model_to_file(str(fused))
    return fused


@cache
def _quantised(model: Any) -> Path:
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = folder("onnx") / "quantised.onnx"
    of_fused_nodes = {"DefaultTensorType": TensorProto.FLOAT}  # whose results have no type that it could infer
    quantize_dynamic(_fused(model), path, per_channel=True, weight_type=QuantType.QInt8, extra_options=of_fused_nodes)
    return path
