"""A training step of BERT-base through `accelerate`, forward and backward to all parameters, against transformers.

It is compared without dropout, whose masks differ: the states and every 61st number of the gradients; what is timed has
dropout.
"""

from __future__ import annotations

from collections.abc import Callable

import bench_encoder
import encoders
from encoders import SDPA, TRANSFORMERS
from goals import ZEN, Goal, PeakGoal
from registry import BOTH, Suite, Workload, register

STEP = Workload(
    "8 documents, dropout 0.1",
    BOTH,
    options={"providers": ("ours", *TRANSFORMERS), "documents": 8, "dropout": 0.1},
    goals=(Goal(3.8, against=TRANSFORMERS, on=ZEN),),
    peaks=("ours", SDPA),
    peak_goal=PeakGoal(fraction=0.5, against=SDPA, activations=True),
)
SUITE = register(
    Suite(
        "encoder_training",
        (STEP,),
        bench_encoder.SUITE.providers,
        encoders.inputs,
        encoders.work,
        reference=bench_encoder.SUITE.reference,
        yardsticks=bench_encoder.SUITE.yardsticks,
    )
)


def test_row(record: Callable[..., None], workload: Workload) -> None:
    record(workload)
