"""A training on several ranks is that of one process: the same examples a step, gradients, losses, files and ends."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import children
import pytest
import torch
from safetensors.torch import load_file

from spanbert_kernels.tasks.checkpoints import RANKS, fault

pytest.importorskip("accelerate")
ROUNDING = 2e-6  # of the largest gradient of a step


def run(folder: Path, *names: str) -> None:
    program = Path(__file__).parent / "trainings_on_ranks.py"
    paths = [str(program.parent.parent), os.environ.get("PYTHONPATH", "")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = children.run([sys.executable, program, folder, *names], capture_output=True, text=True, env=env)
    outcomes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [each["name"] for each in outcomes] == list(names), done.stderr
    assert not any(code for each in outcomes for code in each["codes"]), done.stderr


def seen(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"{folder / name}.{rank}").read_text())
    return found


def same_steps(folder: Path, one: str, other: str) -> None:
    """Gradients of each step, losses and weights, but for rounding; the other may have begun later."""
    first, second = (torch.load(f"{folder / name}.gradients.0") for name in (one, other))
    assert len(second) > 1
    for wanted, found in zip(first[-len(second) :], second, strict=True):
        assert float((wanted - found).abs().max()) <= ROUNDING * float(wanted.abs().max())
    assert seen(folder, other)["losses"] == pytest.approx(seen(folder, one)["losses"], rel=1e-5)
    weights = [load_file(folder / name / "model.safetensors") for name in (one, other)]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-4), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("ranks")
    run(found, "one", "two", "dropping", "dropping_on", "two_on_one", "scored")
    return found


def test_two_ranks_take_the_steps_of_one_process(folder: Path) -> None:
    """Which adds up the gradients of as many examples; the last step of an epoch is of one example, for two ranks."""
    same_steps(folder, "one", "two")
    (logged,) = seen(folder, "one")["logged"]
    assert seen(folder, "two")["logged"] == pytest.approx([logged], rel=1e-5)
    for name in ("losses", "logged", "paths", "best"):
        assert seen(folder, "two", 0)[name] == seen(folder, "two", 1)[name]
    assert list(seen(folder, "two")["paths"]) == ["packed-training"]


def test_the_first_rank_writes_whole_checkpoints(folder: Path) -> None:
    (checkpoint,) = (folder / "two").glob("checkpoint-5")
    assert fault(checkpoint) is None
    assert json.loads((checkpoint / RANKS).read_text()) == {"ranks": 2, "examples": 4}
    assert (folder / "two" / "vocab.txt").exists()
    assert list((folder / "two").rglob("*partial*")) == []
    (checkpoint / "rng_state_1.pth").rename(checkpoint / "elsewhere")
    assert fault(checkpoint) == "its rng_state_1.pth is missing"
    (checkpoint / "elsewhere").rename(checkpoint / "rng_state_1.pth")


def test_ranks_draw_numbers_of_their_own(folder: Path) -> None:
    assert seen(folder, "dropping", 0)["drawn"] != seen(folder, "dropping", 1)["drawn"]


def test_a_resumed_training_ends_like_an_uninterrupted_one(folder: Path) -> None:
    """In every bit, dropout included."""
    wanted, found = ((folder / name / "model.safetensors").read_bytes() for name in ("dropping", "dropping_on"))
    assert found == wanted
    assert seen(folder, "dropping_on", 1)["drawn"] == seen(folder, "dropping", 1)["drawn"]


def test_another_number_of_ranks_goes_on_with_the_same_steps(folder: Path) -> None:
    same_steps(folder, "two", "two_on_one")
    (said,) = seen(folder, "two_on_one")["said"]
    assert said.endswith(
        "checkpoint-5 has 4 examples a step (ranks: 2), this run would have 2 (ranks: 1): steps keep their 4, "
        "batches of a rank in a step: 2"
    )


def test_ranks_stop_by_the_scores_of_the_first(folder: Path) -> None:
    """By its own the other one would go on, and wait for it."""
    for rank in (0, 1):
        assert seen(folder, "scored", rank)["scores"] == [0.1, 0.5, 0.4, 0.3]
        assert seen(folder, "scored", rank)["best"] == [0.5, 2]
    assert list((folder / "scored").glob("*checkpoint*")) == []


@pytest.mark.slow
def test_batches_by_tokens_four_ranks_and_other_changes_of_their_number(folder: Path) -> None:
    run(folder, "tokens_of_one", "tokens_of_two", "four", "two_on_three", "one_on_two")
    same_steps(folder, "tokens_of_one", "tokens_of_two")
    same_steps(folder, "one", "four")
    same_steps(folder, "two", "two_on_three")
    same_steps(folder, "one", "one_on_two")
