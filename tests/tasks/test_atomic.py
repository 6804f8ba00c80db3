"""Files written aside: what a failure, a link, a device or a mode makes of them."""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from spanbert_kernels.tasks import atomic
from spanbert_kernels.tasks.atomic import CannotWrite


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("error", [Stopped(), KeyError("x"), OSError(errno.ENOSPC, "No space left on device")])
def test_a_failure_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    file, folder = tmp_path / "a.txt", tmp_path / "folder"
    file.write_text("old")
    folder.mkdir()
    (folder / "config.json").write_text("old")
    for write in (atomic.new_file(file), atomic.new_folder(folder), atomic.files_into(folder, "config.json")):
        with pytest.raises((Stopped, KeyError, CannotWrite)) as caught, write as aside:  # noqa: PT012
            (aside / "config.json" if aside.is_dir() else aside).write_text("half")
            raise error
        assert isinstance(caught.value, CannotWrite if isinstance(error, OSError) else type(error))
        assert (file.read_text(), (folder / "config.json").read_text()) == ("old", "old")
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.txt", "config.json", "folder"]


def test_a_file_keeps_its_mode_and_a_link_its_place(tmp_path: Path) -> None:
    target, link = tmp_path / "target.txt", tmp_path / "link.txt"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    atomic.write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    mask = os.umask(0o027)
    try:
        atomic.write_text(tmp_path / "other.txt", "new")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "other.txt").stat().st_mode) == 0o640


def test_a_device_and_a_pipe_are_written_to_and_stay(tmp_path: Path) -> None:
    atomic.write_text(Path("/dev/null"), "gone")
    assert Path("/dev/null").is_char_device()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        atomic.write_text(pipe, "through")
        assert os.read(reader, 99) == b"through"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 251 + ".txt")
    atomic.write_text(path, "new")
    assert path.read_text() == "new"


@pytest.fixture
def small_files() -> Iterator[None]:
    """While it lasts, no file can grow beyond some bytes, whoever writes it: as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "save",
    [
        lambda path: path.write_text("x" * 10**6),
        lambda path: torch.save(torch.zeros(10**5), path),
        lambda path: torch.save({str(i): torch.zeros(3) for i in range(9)}, path),
        lambda path: save_file({"x": torch.zeros(10**5)}, path),
    ],
    ids=["python", "torch", "torch at the end", "safetensors"],
)
def test_what_cannot_be_written_is_said_alike_of_every_library(
    tmp_path: Path, small_files: None, save: Callable[[Path], object]
) -> None:
    """Each has an error of its own for it."""
    with (
        pytest.raises(CannotWrite, match=rf"^cannot write {tmp_path}/model( to its end)?: "),
        atomic.new_folder(tmp_path / "model") as aside,
    ):
        save(aside / "weights")
    assert list(tmp_path.iterdir()) == []


def test_a_new_file_replaces_nothing_before_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    synced: list[str] = []
    monkeypatch.setattr(atomic, "to_disk", lambda each: synced.append(path.read_text()))
    atomic.write_text(path, "new")
    assert synced == ["old", "new"]  # the file, then its folder
