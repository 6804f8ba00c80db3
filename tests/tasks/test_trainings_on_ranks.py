"""A training on several ranks is that of one process: the same examples a step, gradients, losses, files and ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import children
import psutil
import pytest
import torch
from safetensors.torch import load_file

from spanbert_kernels.tasks.checkpoints import RANKS, fault
from spanbert_kernels.tasks.registry import TASKS

pytest.importorskip("accelerate")
TESTS = Path(__file__).parent.parent
ROUNDING = 2e-6  # of the largest gradient of a step
KILLS, STEPS = 20, 10


def program(name: str, *arguments: str | os.PathLike[str]) -> tuple[list[dict[str, Any]], str]:
    """What a program of this folder says in lines of JSON, and its errors."""
    path = Path(__file__).parent / f"{name}.py"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    done = children.run([sys.executable, path, *arguments], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")], done.stderr


def run(folder: Path, *names: str, named: str = "trainings_on_ranks") -> None:
    """Trainings of a program, none of which may fail."""
    outcomes, errors = program(named, folder, *names)
    assert [each["name"] for each in outcomes] == list(names), errors
    assert not any(code for each in outcomes for code in each["codes"]), errors


def seen(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(f"{folder / name}.{rank}").read_text())
    return found


def same_gradients(first: Path, second: Path) -> None:
    """Of each step, but for rounding; the second may have begun later."""
    wanted, found = torch.load(first), torch.load(second)
    assert len(found) > 1
    for one, other in zip(wanted[-len(found) :], found, strict=True):
        assert float((one - other).abs().max()) <= ROUNDING * float(one.abs().max())


def same_steps(folder: Path, one: str, other: str) -> None:
    """Gradients of each step, losses and weights, but for rounding; the other may have begun later."""
    same_gradients(folder / f"{one}.gradients.0", folder / f"{other}.gradients.0")
    assert seen(folder, other)["losses"] == pytest.approx(seen(folder, one)["losses"], rel=1e-5)
    weights = [load_file(folder / name / "model.safetensors") for name in (one, other)]
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-4), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("ranks")
    run(found, "one", "two", "dropping", "dropping_on", "two_on_one", "scored", "sharded")
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
    """Also where a training goes on that was of other ranks."""
    trainings = [("one", 0), ("two", 0), ("two", 1), ("two_on_one", 0)]
    assert len({seen(folder, name, rank)["seed"] for name, rank in trainings}) == len(trainings)


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


def test_ranks_that_hold_a_share_each_take_the_same_steps(folder: Path) -> None:
    """And what they write is as whole as what one process writes; gradients are clipped by their norm in most steps."""
    same_steps(folder, "one", "sharded")
    assert seen(folder, "sharded")["paths"] == {"packed-training": STEPS}
    assert (folder / "sharded" / "config.json").read_text() == (folder / "one" / "config.json").read_text()
    states = [torch.load(folder / name / "checkpoint-5" / "optimizer.pt") for name in ("one", "sharded")]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    torch.testing.assert_close(states[1]["state"], states[0]["state"], rtol=1e-4, atol=1e-7)


def test_shares_make_up_the_whole(folder: Path) -> None:
    """Half each, but for a bias of one row."""
    whole, *shares = (seen(folder, *where)["held"] for where in (("two", 0), ("sharded", 0), ("sharded", 1)))
    for name, size in whole.items():
        parts = [share[name] for share in shares]
        assert sum(parts) == size
        assert max(parts) < 0.51 * size


@pytest.mark.slow
def test_shares_go_on_as_other_shares_and_as_a_whole(folder: Path) -> None:
    """On more ranks than some parameters have rows, too."""
    run(folder, "sharded_on", "sharded_on_one", "sharded_on_three", "one_on_sharded", "sharded_scored")
    wanted, found = ((folder / name / "model.safetensors").read_bytes() for name in ("sharded", "sharded_on"))
    assert found == wanted
    for name in ("sharded_on_one", "sharded_on_three", "one_on_sharded"):
        same_steps(folder, "one", name)
    assert seen(folder, "sharded_scored")["best"] == [0.5, 2]
    weights = [load_file(folder / name / "model.safetensors") for name in ("scored", "sharded_scored")]
    torch.testing.assert_close(weights[1], weights[0], rtol=0.0, atol=1e-5)


@pytest.mark.slow
def test_batches_by_tokens_four_ranks_and_other_changes_of_their_number(folder: Path) -> None:
    run(folder, "tokens_of_one", "tokens_of_two", "four", "two_on_three", "one_on_two")
    same_steps(folder, "tokens_of_one", "tokens_of_two")
    same_steps(folder, "one", "four")
    same_steps(folder, "two", "two_on_three")
    same_steps(folder, "one", "one_on_two")


@pytest.mark.slow
def test_every_task_takes_the_steps_of_one_process(tmp_path: Path) -> None:
    """Whatever its loss is a mean over, and with examples that are clusters."""
    run(tmp_path, *TASKS, "pretraining", named="tasks_on_ranks")
    for name in (*TASKS, "pretraining"):
        same_gradients(tmp_path / f"{name}.1", tmp_path / f"{name}.2")
        same_gradients(tmp_path / f"{name}.1", tmp_path / f"{name}.fsdp")
        whole, shares = (json.loads((tmp_path / f"{name}-{kind}.json").read_text()) for kind in ("2", "fsdp"))
        assert shares["paths"] == whole["paths"], name
        assert list(whole["paths"]) == ["packed-training"], name
        assert shares["held"]["weights"] < 0.52 * whole["held"]["weights"], name
        weights = [load_file(tmp_path / f"{name}-{kind}" / "model.safetensors") for kind in ("2", "fsdp")]
        for own in weights:  # a softmax takes no notice of it: a gradient of rounding alone, which Adam makes a step of
            own.pop("attention.bias", None)
            if name == "parsing":  # nor of what is added to all heads of a word
                own["arc.weight"] = own["arc.weight"][..., :-1]
        torch.testing.assert_close(weights[1], weights[0], rtol=0.0, atol=1e-5)


@pytest.mark.slow
def test_a_rank_that_hangs_is_waited_for_so_long_and_no_longer(tmp_path: Path) -> None:
    run(tmp_path, "hanging")
    error = seen(tmp_path, "hanging")["error"]
    assert error.startswith(
        "the training has ended, as another rank has ended or does not answer: rank 0 had no answer within 2 s; "
        "--resume goes on from "
    )
    assert error.endswith("checkpoint-2")


@pytest.mark.slow
def test_killed_ranks_are_started_again_and_end_like_an_uninterrupted_training(tmp_path: Path) -> None:
    """From the newest checkpoint. The rank that is left says so and does not wait."""
    (counts, ended), _ = program("killed_ranks", tmp_path / "uninterrupted", "0")
    assert ended == {"codes": [0, 0]}
    outcomes, errors = program("killed_ranks", tmp_path, str(KILLS), json.dumps(counts))
    assert len(outcomes) == KILLS
    model = (tmp_path / "uninterrupted" / "model.safetensors").read_bytes()
    for outcome in outcomes:
        (first, second), again = outcome["codes"]
        codes = (second, first) if outcome["at"][0] else (first, second)
        assert (codes, again) == ((-signal.SIGKILL, 1), [0, 0]), outcome
        assert (Path(outcome["folder"]) / "model.safetensors").read_bytes() == model, outcome
    said = re.findall(
        r"RankLost: the training has ended, as (?:rank (\d) of 2|another rank)[^\n]*?(?:-(\d+))?\n", errors
    )
    assert len(said) == KILLS
    for number, (rank, step) in enumerate(said):
        assert rank in ("", str(outcomes[number]["at"][0]))
        left = STEPS - int(step or 0)
        assert seen(tmp_path, str(number))["paths"] == ({"packed-training": left} if left else {})


@pytest.mark.slow
def test_torchrun_goes_on_by_itself(tmp_path: Path, tagged_file: Callable[..., Path]) -> None:
    """The command, one of whose processes is killed when the first checkpoint is there; its end is a sentence."""
    data, outputs = tagged_file("train.conll", 60), [tmp_path / "killed", tmp_path / "whole"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    command += ["-m", "spanbert_kernels.cli", "train", "tagging", "--data", str(data), "--size", "tiny"]
    command += ["--steps", "12", "--save-steps", "4", "--batch-size", "4"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = children.run([*command, "--output", str(outputs[1])], capture_output=True, text=True, env=env)
    assert whole.returncode == 0, whole.stderr
    with children.started([*command, "--output", str(outputs[0])], stderr=subprocess.PIPE, text=True, env=env) as job:
        while not (outputs[0] / "checkpoint-4").exists():
            assert job.poll() is None
            time.sleep(0.01)
        ranks = {each.environ().get("RANK"): each for each in psutil.Process(job.pid).children(recursive=True)}
        ranks["1"].kill()
        _, said = job.communicate()
    assert job.returncode == 0, said
    lines = [line for line in said.splitlines() if line.startswith(("Error:", "Warning:"))]
    assert len(lines) == 2, said
    assert re.fullmatch(r"Error: the training has ended, as .*; --resume goes on from .*checkpoint-\d+", lines[0])
    assert lines[1] == "Warning: restart 1: going on from the newest checkpoint"
    models = [(output / "model.safetensors").read_bytes() for output in outputs]
    assert models[0] == models[1]
