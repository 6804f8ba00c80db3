"""The encoder against transformers as padding grows, and on a corpus' documents: the ways of `bench_encoder.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bench_encoder
import encoders
from encoders import TRANSFORMERS
from registry import Suite, Workload, register


def row(name: str, seconds: float, options: dict[str, Any], **fields: Any) -> Workload:
    return Workload(name, options={"providers": ("ours", *TRANSFORMERS), **options}, seconds=seconds, **fields)


SUITE = register(
    Suite(
        "encoder_padding",
        (
            row("5 documents of gum, up to 512 tokens", 5.0, {"real": "gum", "per_cluster": 1}),
            *(
                row(f"4 documents, sigma {sigma:g}", 3.0, {"documents": 4, "sigma": sigma},
                    curve="encoder over padding", scaling="padding")
                for sigma in (0.0, 0.5, 1.0)
            ),
        ),
        bench_encoder.SUITE.providers,
        encoders.inputs,
        encoders.work,
        reference=bench_encoder.SUITE.reference,
    )
)  # fmt: skip


def test_row(record: Callable[..., None], workload: Workload) -> None:
    record(workload)
