"""Every command that loads a model or reads a file, with a damaged one: a line that names it, exit code 2."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from spanbert_kernels.cli import main
from spanbert_kernels.data import memory
from spanbert_kernels.data import text as data_text
from spanbert_kernels.models import damage as models_damage

pytest.importorskip("accelerate")
pytest.importorskip("sklearn")

Run = Callable[..., Result]
ROWS = "".join(json.dumps({"text": f"Anna went to {place} .", "label": place}) + "\n" for place in ("Oslo", "Rome") * 4)
TINY = ("--size", "tiny", "--vocabulary-size", 60, "--steps", 1, "--threads", 1)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 440449768\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from click.testing import CliRunner

    folder = tmp_path_factory.mktemp("models")
    (folder / "data.jsonl").write_text(ROWS)
    words = ["train", "classification", "--data", folder / "data.jsonl", "--output", folder / "model", *TINY]
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 0, result.output
    return folder / "model"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text(ROWS)
    return path


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def pointer(path: Path) -> None:
    path.write_text(POINTER)


def noise(path: Path) -> None:
    path.write_bytes(bytes(range(256)) * 9)


def nested(path: Path) -> None:
    path.write_text("[" * 10**5)


def a_list(path: Path) -> None:
    path.write_text("[1, 2]")


def loading(model: Path, data: Path, output: Path) -> dict[str, tuple[object, ...]]:
    """A command line of each command that loads a model."""
    return {
        "predict": ("predict", "classification", data, "--model", model),
        "evaluate": ("evaluate", "classification", "--data", data, "--model", model),
        "explain": ("explain", "classification", data, "--model", model, "--output", output.with_suffix(".html")),
        "train": ("train", "classification", "--data", data, "--model", model, "--output", output, "--steps", 1),
        "pretrain": ("pretrain", data, "--model", model, "--output", output, "--steps", 1, "--held-out", 0),
        "demo": ("demo", data, "--model", model, "--repeats", 1, "--output", output.with_suffix(".html")),
    }


MODEL_FILES = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
DAMAGES = [(name, damage) for name in MODEL_FILES for damage in (cut, empty, pointer, noise)]
DAMAGES += [(name, damage) for name in MODEL_FILES[1:] for damage in (nested, a_list)]
EVERY = [(command, "model.safetensors", pointer) for command in ("evaluate", "explain", "train", "pretrain", "demo")]
EVERY += [(command, "tokenizer.json", cut) for command in ("evaluate", "explain", "train", "pretrain", "demo")]


@pytest.mark.parametrize(
    ("command", "name", "damage"),
    [*(("predict", *each) for each in DAMAGES), *EVERY],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_damaged_model(
    run: Run, model: Path, data: Path, tmp_path: Path, command: str, name: str, damage: Callable[[Path], None]
) -> None:
    folder = shutil.copytree(model, tmp_path / "model")
    damage(folder / name)
    result = run(*loading(folder, data, tmp_path / "output")[command])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    line = result.stderr.splitlines()[-1]
    assert line.startswith("Error: ")
    assert str(folder) in line
    assert damage is a_list or name in line
    assert "Traceback" not in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data.jsonl", "here", "model"]


def test_weights_that_do_not_fit(run: Run, model: Path, data: Path, tmp_path: Path) -> None:
    """A size that differs is an error of torch, a weight that is missing a random one."""
    for change, reason in ({"hidden_size": 64}, "weights"), ({"num_hidden_layers": 3}, "lacks 16 of its weights"):
        folder = shutil.copytree(model, tmp_path / "model", dirs_exist_ok=True)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        result = run("predict", "classification", data, "--model", folder)
        assert result.exit_code == 2, result.output
        assert str(folder) in result.stderr.splitlines()[-1]
        assert reason in result.stderr.splitlines()[-1]


def reading(data: Path, model: Path, output: Path) -> dict[str, tuple[object, ...]]:
    """A command line of each command that reads a file."""
    lines = loading(model, data, output)
    del lines["train"]
    own = ("train", "classification", "--data", data, "--output", output, *TINY)
    return {**lines, "train": own, "report": ("report", data, "--output", output.with_suffix(".html"))}


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def listening(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as each:
        each.bind(str(path))


def device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def enormous(path: Path) -> None:
    """Of holes, which take no space on a disk."""
    os.truncate(path, 2**42)


@pytest.mark.parametrize("damage", [pipe, listening, device, enormous, pointer, noise], ids=lambda each: each.__name__)
@pytest.mark.parametrize("command", ["predict", "evaluate", "explain", "train", "pretrain", "demo", "report"])
def test_what_is_no_file_is_not_read(
    run: Run, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, damage: Callable[[Path], None]
) -> None:
    """A pipe that nobody writes to would never end, and a device neither."""
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    path = Path("data.jsonl")
    path.write_text(ROWS)
    damage(path)
    result = run(*reading(path, model, Path("output"))[command])
    assert result.exit_code == 2, result.output
    assert "data.jsonl" in result.stderr
    reason = {pipe: "a pipe", listening: "a socket", device: "a device", enormous: "4,194,304 MiB", pointer: "Git LFS"}
    assert reason.get(damage, "data.jsonl") in result.stderr
    assert not Path("output").exists()


def test_what_is_no_file_is_passed_over_in_a_folder(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text("A ship sails to the harbour. " * 5)
    os.mkfifo(folder / "b.txt")
    (folder / "c.txt").symlink_to("/dev/zero")
    (folder / "d.txt").symlink_to(folder / "nowhere")
    (folder / "e.txt").touch()
    enormous(folder / "e.txt")
    result = run("demo", folder, "--quick", "--repeats", 1, "--tokens", 600)
    assert result.exit_code == 0, result.output
    assert "1 document of 1 used" in result.stdout
    for reason in ("b.txt is a pipe", "c.txt is a device", "d.txt cannot be read", "e.txt has 4,194,304 MiB"):
        assert reason in result.stderr


def test_the_memory_there_is_is_that_of_the_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "max").write_text("5000\n")
    (tmp_path / "current").write_text("2000\n")
    monkeypatch.setattr(memory, "_GROUPS", ((str(tmp_path / "max"), str(tmp_path / "current")),))
    assert memory.available() == 3000
    (tmp_path / "max").write_text("max\n")
    assert memory.available() > 2**20


def test_a_pointer_is_known_to_data_and_models_alike() -> None:
    assert data_text.LFS_POINTER == models_damage.LFS_POINTER


@pytest.mark.parametrize("damage", [cut, empty, pointer, noise], ids=lambda each: each.__name__)
def test_a_damaged_vocabulary_or_head(run: Run, data: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nAnna\n")
    damage(vocabulary)
    output = ("--output", tmp_path / "output", *TINY)
    result = run("train", "classification", "--data", data, "--vocabulary", vocabulary, *output)
    if damage is not cut:  # a vocabulary that is shorter
        assert result.exit_code == 2, result.output
        assert str(vocabulary) in result.stderr
    heads = tmp_path / "model.pt"
    heads.write_bytes(b"PK\x03\x04" * 99)
    damage(heads)
    result = run("pretrain", data, "--heads", heads, "--held-out", 0, *output)
    assert result.exit_code == 2, result.output
    assert str(heads) in result.stderr
