"""Checkpoints and models are there whole or not at all; a training goes on from the newest whole checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import children
import pytest
import torch
import torch.nn.functional as F
from changes_to_files import before_each
from safetensors.torch import load_file
from small_training import train

from spanbert_kernels import SpanBERTForTokenClassification
from spanbert_kernels.ops import measured, products
from spanbert_kernels.tasks import checkpoints
from spanbert_kernels.tasks.atomic import CannotWrite
from spanbert_kernels.tasks.checkpoints import CannotResume, PassedOver, newest_whole

pytest.importorskip("accelerate")
KILLS = 20


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trainings") / "uninterrupted"
    train(folder)
    return folder


def same_model(first: Path, second: Path) -> bool:
    one, other = (load_file(folder / "model.safetensors") for folder in (first, second))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_whatever_the_moment_of_a_kill_there_is_a_whole_checkpoint_or_none(tmp_path: Path, uninterrupted: Path) -> None:
    """Looked at before every change to the folder; what three of those moments left is gone on from."""
    output, newest, left = tmp_path / "model", [0], dict[str, Path]()

    def look() -> None:
        try:
            found, passed_over = newest_whole(output)
        except CannotResume as error:
            before_the_first = "there is no checkpoint" in str(error) and newest == [0]
            assert before_the_first, error  # noqa: PT017
            return
        step = int(found.name.split("-")[1])
        assert passed_over == []
        assert step >= newest[-1]
        newest.append(step)
        being_saved = sorted(path.name for path in output.glob(".*.partial"))
        for name in being_saved:
            if name not in left:
                left[name] = shutil.copytree(output, tmp_path / f"left{len(left)}")
        if (output / "config.json").exists():
            assert same_model(output, uninterrupted)
            assert (output / "vocab.txt").exists()

    with before_each(output, look):
        train(output)
    assert sorted(set(newest)) == [0, 2, 4, 6]
    assert sorted(left) == [".checkpoint-4.partial", ".checkpoint-6.partial", ".files.partial"]
    assert same_model(output, uninterrupted)
    assert sorted(path.name for path in output.iterdir() if path.is_dir()) == ["checkpoint-4", "checkpoint-6"]
    for folder in left.values():
        train(folder, resume=True)
        assert same_model(folder, uninterrupted)
        assert list(folder.glob(".*partial*")) == []


def test_a_model_in_the_place_of_an_older_one_is_never_half_of_each(tmp_path: Path) -> None:
    names = ("config.json", "model.safetensors", "vocab.txt")
    for name in names:
        (tmp_path / name).write_text("old")
    seen = []

    def look() -> None:
        if (tmp_path / "config.json").exists():
            seen.append([(tmp_path / name).read_bytes() == b"old" for name in names])

    with before_each(tmp_path, look):
        train(tmp_path, steps=1, save_steps=None)
        look()
    assert [len(set(each)) for each in seen] == [1] * len(seen)
    assert (seen[0], seen[-1]) == ([True] * 3, [False] * 3)


def test_a_resumed_training_multiplies_as_it_began(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a checkpoint recorded comes before what would be measured where it is gone on from."""
    if products.CHOICE.candidates["onednn"].refusal() is not None:
        pytest.skip("oneDNN does not multiply float32 here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(products, "FEWEST_ROWS", 1)
    # Products as small as these may well be the same in both.
    other = {"torch": F.linear, "onednn": lambda *inputs: 1.001 * F.linear(*inputs)}
    monkeypatch.setattr(products, "PRODUCTS", other)
    monkeypatch.setattr(products.CHOICE, "_found", {})
    monkeypatch.setattr(products.CHOICE, "latest", None)
    monkeypatch.delenv(products.VARIABLE)
    seconds = {"torch": 2.0, "onednn": 1.0}
    monkeypatch.setattr(measured, "fastest_seconds", lambda functions: seconds)
    output = tmp_path / "model"
    train(output)
    assert not same_model(output, uninterrupted)
    whole = (output / "model.safetensors").read_bytes()
    (choices,) = {(path / checkpoints.CHOICES).read_text() for path in output.glob("checkpoint-*")}
    assert json.loads(choices)["products float32"] == "onednn"
    shutil.rmtree(output / "checkpoint-6")
    seconds["torch"] = 0.5
    monkeypatch.setenv(products.VARIABLE, measured.MEASURE)
    assert products.CHOICE.found().way == "torch"
    train(output, resume=True)
    assert (output / "model.safetensors").read_bytes() == whole


@pytest.mark.slow
def test_killed_trainings_end_like_an_uninterrupted_one(tmp_path: Path, uninterrupted: Path) -> None:
    """Half of them at random moments, half before a random change to a file."""
    program = Path(__file__).parent / "killed_trainings.py"
    paths = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(program.parent.parent), os.environ.get("PYTHONPATH", "")]),
    }
    done = children.run([sys.executable, program, tmp_path, str(KILLS)], capture_output=True, text=True, env=paths)
    assert done.returncode == 0, done.stderr
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outcomes) == KILLS
    for outcome in outcomes:
        first, second, last = outcome["codes"]
        assert (first, second in (0, -signal.SIGKILL), last) == (-signal.SIGKILL, True, 0), outcome
        assert same_model(Path(outcome["folder"]), uninterrupted), outcome


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7\n")


def changed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = [
    *((name, damage) for name in checkpoints.NEEDED for damage in (Path.unlink, cut, empty, pointer)),
    *((name, damage) for name in ("rng_state.pth", "model.safetensors") for damage in (Path.unlink, cut, empty)),
    ("optimizer.pt", changed),
    *((checkpoints.CHOICES, damage) for damage in (cut, empty)),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES, ids=lambda value: getattr(value, "__name__", value))
def test_a_damaged_checkpoint_is_passed_over_and_named(
    tmp_path: Path, uninterrupted: Path, name: str, damage: Callable[[Path], None]
) -> None:
    """Left alone, the Trainer goes on without what is missing, and nobody hears of it."""
    for step in (4, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
        for path in (uninterrupted / f"checkpoint-{step}").iterdir():
            (tmp_path / f"checkpoint-{step}" / path.name).write_bytes(path.read_bytes())
    damage(tmp_path / "checkpoint-6" / name)
    found, ((passed_over, reason),) = newest_whole(tmp_path)
    assert (found.name, passed_over.name) == ("checkpoint-4", "checkpoint-6")
    assert reason.startswith(f"its {name} ")
    damage(tmp_path / "checkpoint-4" / name)
    with pytest.raises(CannotResume, match=rf"no whole checkpoint in .*6: its {name} .*; checkpoint-4: its"):
        newest_whole(tmp_path)


def test_the_training_says_what_it_passed_over(tmp_path: Path, uninterrupted: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoint-6" / "optimizer.pt").unlink()
    (tmp_path / "model.safetensors").unlink()
    with pytest.warns(
        PassedOver, match=r"checkpoint-6 is passed over: its optimizer.pt is missing; going on from .*-4"
    ):
        train(tmp_path, resume=True)
    assert same_model(tmp_path, uninterrupted)
    assert newest_whole(tmp_path)[0].name == "checkpoint-6"


def test_a_state_of_another_step_is_no_part_of_the_checkpoint(tmp_path: Path, uninterrupted: Path) -> None:
    shutil.copytree(uninterrupted / "checkpoint-4", tmp_path / "checkpoint-5")
    with pytest.raises(CannotResume, match=r"its trainer_state\.json is of step 4"):
        newest_whole(tmp_path)


def test_a_checkpoint_of_another_training_is_an_error(tmp_path: Path, uninterrupted: Path) -> None:
    shutil.copytree(uninterrupted / "checkpoint-4", tmp_path / "checkpoint-4")
    path = tmp_path / "checkpoint-4" / "optimizer.pt"
    state = torch.load(path, weights_only=True)
    state["param_groups"][0]["params"].pop()
    torch.save(state, path)
    with pytest.raises(CannotResume, match=r"cannot go on from .*-4: it is damaged, or of a training with other"):
        train(tmp_path, resume=True)


def test_a_new_training_takes_the_place_of_an_older_one(tmp_path: Path, uninterrupted: Path) -> None:
    """An older one's checkpoint of more steps would be gone on from instead of this one's."""
    shutil.copytree(uninterrupted / "checkpoint-6", tmp_path / "checkpoint-1000")
    train(tmp_path, steps=2)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def test_a_model_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(uninterrupted, tmp_path, dirs_exist_ok=True)

    def full(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SpanBERTForTokenClassification, "save_pretrained", full)
    with pytest.raises(CannotWrite, match=r"cannot write .*: no space left on device"):
        train(tmp_path, learning_rate=0.5, save_steps=None)
    assert same_model(tmp_path, uninterrupted)
    assert list(tmp_path.glob(".*")) == []
