"""CTranslate2: float32 and int8. Beside this package the only one that leaves padding out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy
import torch
from registry import Unavailable
from torch import Tensor

from runtimes import Batch, folder, need

TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.int8: "int8"}


def ctranslate2(model: Any, precision: torch.dtype, batch: Batch) -> Callable[[], Tensor]:
    """Ids and lengths as its arrays, which spares it Python lists."""
    need("ctranslate2")
    from ctranslate2 import StorageView, get_supported_compute_types

    if TYPES[precision] not in get_supported_compute_types("cpu"):
        raise Unavailable(f"offers no {TYPES[precision]} on this processor")
    encoder = _encoder(model, precision)
    arrays = (batch["input_ids"].int().numpy(), batch["attention_mask"].sum(1).int().numpy())
    ids, lengths = map(StorageView.from_array, arrays)

    def call(arrays: Any = arrays) -> Tensor:  # which the views are of
        return torch.from_numpy(numpy.asarray(encoder.forward_batch(ids, lengths).last_hidden_state))

    return call


@lru_cache(maxsize=1)
def _encoder(model: Any, precision: torch.dtype) -> Any:
    from ctranslate2 import Encoder

    path, threads = str(_converted(model)), torch.get_num_threads()
    return Encoder(path, compute_type=TYPES[precision], intra_threads=threads, inter_threads=1)


@cache
def _converted(model: Any) -> Path:
    from ctranslate2.converters import TransformersConverter

    source, target = folder("bert"), folder("ctranslate2") / "model"
    model = copy.deepcopy(model)
    model.config.position_embedding_type = "absolute"  # which it asks for, and transformers no longer writes
    model.save_pretrained(source)
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    entries += [f"word{number}" for number in range(len(entries), model.config.vocab_size)]
    (source / "vocab.txt").write_text("\n".join(entries), encoding="utf-8")
    TransformersConverter(str(source)).convert(str(target))
    return target
