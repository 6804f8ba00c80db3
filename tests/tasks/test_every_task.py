"""What holds for every task: the same losses on both paths, and a resumed run that ends like an uninterrupted one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from task_trainings import trainer, write_without_dropout

from spanbert_kernels.tasks import training
from spanbert_kernels.tasks.base import TASKS
from spanbert_kernels.tasks.span_training import SpanTraining
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions


@pytest.fixture(scope="module")
def without_dropout(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint; the random numbers of dropout differ between the paths."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_without_dropout(folder)
    return str(folder)


@pytest.mark.parametrize("steps", [2, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [*TASKS, "pretraining"])
def test_both_paths_have_the_same_losses(
    tmp_path: Path, without_dropout: str, name: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every step."""
    usual = training.arguments_of
    every = {"logging_steps": 1}
    monkeypatch.setattr(training, "arguments_of", lambda options, **more: usual(options, **{**more, **every}))
    train, losses = trainer(name, tmp_path), {}
    for backend in ("auto", "eager"):
        options = TrainingOptions(tmp_path / backend, steps=steps, batch_size=2, quiet=True, backend=backend)
        done = train(Start(model=without_dropout), options, None)
        losses[backend] = done.values("loss")
        assert done.paths == ({"packed-training": steps} if backend == "auto" else {})
    assert len(losses["auto"]) == steps
    assert losses["auto"] == pytest.approx(losses["eager"], rel=1e-5 * steps, abs=1e-6)


@pytest.mark.parametrize("name", [*TASKS, "pretraining"])
def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path, name: str) -> None:
    """With dropout and span training, interrupted in the middle of the second epoch."""
    train = trainer(name, tmp_path)
    start = Start(size="tiny", vocabulary_size=120)

    def run(folder: str, **more: Any) -> dict[str, torch.Tensor]:
        options = TrainingOptions(
            tmp_path / folder,
            steps=6,
            batch_size=2 if name != "classification" else 1,
            quiet=True,
            save_steps=4,
            **more,
        )
        train(start, options, SpanTraining(4, "input"))
        return load_file(tmp_path / folder / "model.safetensors")

    whole = run("whole")
    shutil.copytree(tmp_path / "whole" / "checkpoint-4", tmp_path / "parts" / "checkpoint-4")
    before = load_file(tmp_path / "parts" / "checkpoint-4" / "model.safetensors")
    resumed = run("parts", resume=True)
    assert any(not torch.equal(before[key], whole[key]) for key in whole)
    assert resumed.keys() == whole.keys()
    for key, tensor in whole.items():
        assert torch.equal(resumed[key], tensor), key
