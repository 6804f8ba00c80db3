"""A pytest plugin for transformers' own model tests: every model is accelerated as soon as it has been made.

`PEERS_ACCELERATE=0` in the environment leaves the models as they are, so that both runs differ in nothing else. What
became of each test, and how many calls took which path, goes as JSON into the file that `PEERS_OUTCOMES` names.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers  # before a checkout's conftest.py puts its own sources first

from spanbert_kernels import accelerate
from spanbert_kernels.acceleration.forward import PackedForward

ACCELERATE, OUTCOMES = "PEERS_ACCELERATE", "PEERS_OUTCOMES"

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


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A test fails where its set-up or its end does; it passes or is skipped where all of it does."""
    if report.when == "call" or report.outcome != "passed":
        before = _outcomes.get(report.nodeid)
        _outcomes[report.nodeid] = "failed" if before == "failed" else report.outcome


def pytest_sessionfinish() -> None:
    """Everything into the file."""
    found = {"outcomes": _outcomes, "paths": _paths}
    Path(os.environ[OUTCOMES]).write_text(json.dumps(found))
