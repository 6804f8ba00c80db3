"""A pytest plugin for transformers' own model tests: every model is accelerated as soon as it has been made.

`PEERS_ACCELERATE=0` in the environment leaves the models as they are, so that both runs differ in nothing else. What
became of each test, and how many calls took which path, goes as JSON into the file that `PEERS_OUTCOMES` names. With
`PEERS_RUNS=1` the real tokens of random masks stand side by side, for families that run packed only then.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers  # before a checkout's conftest.py puts its own sources first

from spanbert_kernels import accelerate
from spanbert_kernels.acceleration.forward import PackedForward

ACCELERATE, RUNS, OUTCOMES = "PEERS_ACCELERATE", "PEERS_RUNS", "PEERS_OUTCOMES"

_outcomes: dict[str, str] = {}
_paths: Counter[str] = Counter()


def pytest_configure() -> None:
    """Before the first test: one thread, and models that are accelerated where they end their own construction."""
    torch.set_num_threads(1)
    if os.environ.get(ACCELERATE) == "0":
        return
    own, note = transformers.PreTrainedModel.post_init, PackedForward._note

    def post_init(model: Any) -> None:
        own(model)
        try:
            accelerate(model)
        except ValueError as error:
            if "nothing to accelerate" not in str(error):
                raise

    def count(forward: PackedForward, path: str) -> None:
        _paths[path] += 1
        note(forward, path)

    transformers.PreTrainedModel.post_init = post_init
    PackedForward._note = count


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Masks without holes, if they are asked for; some tests draw them as ids that are 0 or 1."""
    if os.environ.get(RUNS) != "1":
        return
    for module in {getattr(item, "module", None) for item in items} | {_common()}:
        for name in ("random_attention_mask", "ids_tensor"):
            if hasattr(module, name):
                setattr(module, name, _without_holes(getattr(module, name)))


def _without_holes(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def made(*args: Any, **kwargs: Any) -> torch.Tensor:
        values = make(*args, **kwargs)
        if values.dim() == 2 and values.numel() > 0 and values.max() <= 1:
            values = values.sort(dim=-1, descending=True).values
            values[:, 0] = 1  # the first token is what heads read
        return values

    return made


def _common() -> Any:
    return sys.modules.get("tests.test_modeling_common")


def pytest_runtest_setup() -> None:
    """The same random numbers for a test in both runs."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    generator = getattr(_common(), "global_rng", None)
    if generator is not None:
        generator.seed(0)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test fails where its set-up or its end does; it passes or is skipped where all of it does."""
    if report.when == "call" or report.outcome != "passed":
        before = _outcomes.get(report.nodeid)
        _outcomes[report.nodeid] = "failed" if before == "failed" else report.outcome


def pytest_sessionfinish() -> None:
    """Everything into the file."""
    found = {"outcomes": _outcomes, "paths": _paths}
    Path(os.environ[OUTCOMES]).write_text(json.dumps(found))
