"""The command itself, on the real suites: what a wrong kernel and what a slow one get."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import children
import pytest
from click.testing import CliRunner, Result
from records import running
from records.record import load

from spanbert_kernels import extras
from spanbert_kernels.cli import checkout

Run = Callable[..., Result]
WORKLOAD = "732 rows, dropout 0.1, forward and backward, float32"
# pytest plugins for the run that measures: each changes one operation before any suite is loaded.
WRONG = """
from spanbert_kernels import ops
right = ops.dropout_add_layer_norm
def dropout_add_layer_norm(x, residual, weight, bias, **options):
    return right(x, residual, weight, bias, **options) + bias - bias.detach()  # one gradient of four is wrong
ops.dropout_add_layer_norm = dropout_add_layer_norm
"""
WRONG_LATER = """
from spanbert_kernels import ops
right, calls = ops.dropout_add_layer_norm, []
def dropout_add_layer_norm(x, residual, weight, bias, **options):
    calls.append(None)
    result = right(x, residual, weight, bias, **options)
    return result if len(calls) <= 2 else result + bias - bias.detach()  # the first tells the gradient's shape
ops.dropout_add_layer_norm = dropout_add_layer_norm
"""
SLOWED = """
import time
from spanbert_kernels import ops
right = ops.dropout_add_layer_norm
def dropout_add_layer_norm(*arguments, **options):
    start = time.perf_counter()
    result = right(*arguments, **options)
    time.sleep(max(0.2, 5 * (time.perf_counter() - start)))  # beyond the noise of a busy machine too
    return result
ops.dropout_add_layer_norm = dropout_add_layer_norm
"""
DYING = """
import os
from spanbert_kernels import ops
ops.dropout_add_layer_norm = lambda *arguments, **options: os.kill(os.getpid(), 9)
"""

OLD = """
import os
def test_nothing():
    with open(os.environ["SPANBERT_KERNELS_BENCH_ROWS"], "a") as file:
        file.write({line!r})
"""


@pytest.fixture
def with_plugin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    def plug(code: str) -> None:
        (tmp_path / "changed_kernel.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setenv("PYTEST_PLUGINS", "changed_kernel")

    return plug


def quick(run: Run, *more: object) -> Result:
    return run("bench", "--suite", "dropout_add_layer_norm", "--quick", "--output", "record.json", *more)


def test_a_slowed_kernel_is_flagged(run: Run, with_plugin: Callable[[str], None]) -> None:
    """First as it is, then slowed: against the record of the first run."""
    result = quick(run)
    assert result.exit_code == 0, result.output
    record = load(Path("record.json"))
    (row,) = record.rows
    assert row.ours.ran in ("dropout_add_layer_norm: cpu", "dropout_add_layer_norm: eager")
    assert 0 < row.ours.error <= row.ours.allowed < 1e-2  # type: ignore[operator]
    assert set(row.providers) == {"ours", "three operators"}
    assert record.ceilings["copy, GB/s"] > 0
    assert record.quick
    assert "1 workloads" in result.output

    Path("record.json").rename("earlier.json")
    with_plugin(SLOWED)
    result = quick(run, "--compare", "earlier.json")
    assert result.exit_code == 1, result.output
    assert "SLOWER" in result.output
    assert load(Path("record.json")).rows[0].ours.milliseconds > 200  # type: ignore[operator]


def test_a_wrong_kernel_gets_no_row(run: Run, with_plugin: Callable[[str], None]) -> None:
    with_plugin(WRONG)
    result = quick(run)
    assert result.exit_code == 1, result.output
    record = load(Path("record.json"))
    assert record.rows == []
    (failure,) = record.failures
    assert (failure["suite"], failure["workload"]) == ("dropout_add_layer_norm", WORKLOAD)
    assert failure["reason"].startswith("ours: off by ")
    assert "FAILED: dropout_add_layer_norm" in result.output


def test_a_kernel_that_is_right_once_gets_no_row(run: Run, with_plugin: Callable[[str], None]) -> None:
    with_plugin(WRONG_LATER)
    result = quick(run)
    assert result.exit_code == 1, result.output
    record = load(Path("record.json"))
    assert record.rows == []
    assert record.failures[0]["reason"].startswith("ours: after it was timed off by ")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--suite", "span_gathers"), "there is no suite span_gathers; there are attention_by_distance"),
        (("--compare", "no-such-thing"), "neither a file nor a commit"),
        (("--compare", "file.txt"), "is not JSON"),
        (("--output", "nowhere/record.json"), "there is no folder nowhere"),
    ],
)
def test_wrong_input_is_one_line(run: Run, arguments: tuple[str, ...], reason: str) -> None:
    Path("file.txt").write_text("no record")
    result = run("bench", "--quick", *arguments)
    assert result.exit_code == 2
    assert reason in result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(("name", "words"), [("bench", ["--quick"]), ("report", ["a.json", "--output", "b.html"])])
def test_without_a_source_checkout(tmp_path: Path, name: str, words: list[str]) -> None:
    absent = {command.name: command for command in checkout.commands(tmp_path)}
    assert list(absent) == ["bench", "report"]
    result = CliRunner().invoke(absent[name], words)
    assert result.exit_code == 2
    assert f"Error: {name} is a command of the source repository" in result.output


def test_what_measures_is_asked_for_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    result = run("bench")
    assert result.exit_code == 2
    assert "Error: this needs pytest: pip install " in result.output


def test_suites_that_do_not_run_say_why(run: Run, with_plugin: Callable[[str], None]) -> None:
    with_plugin("raise RuntimeError('the plugin is broken')")
    result = quick(run)
    assert result.exit_code == 2
    assert "the plugin is broken" in result.output


def test_a_suite_that_dies_is_a_failure(run: Run, with_plugin: Callable[[str], None]) -> None:
    with_plugin(DYING)
    result = quick(run)
    assert result.exit_code == 1, result.output
    record = load(Path("record.json"))
    assert record.rows == []
    assert [failure["workload"] for failure in record.failures] == ["all that was left"]
    assert "exit code -9" in result.output


def test_a_suite_that_cannot_be_loaded_leaves_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Such as one that needs what the package of another commit lacks."""
    monkeypatch.setattr(running, "SUITES", tmp_path)
    (tmp_path / "bench_new.py").write_text("import nowhere")
    line = {"collected": 1, "package": str(running.PACKAGE), "skipped": {"suite": "old"}}
    (tmp_path / "bench_old.py").write_text(OLD.format(line=json.dumps(line) + "\n"))
    found = running.Progress()
    running.run(["new", "old"], False, found, lambda progress: None)
    assert [failure["suite"] for failure in found.failures] == ["new"]
    assert "No module named 'nowhere'" in found.failures[0]["reason"]
    assert found.skipped == [{"suite": "old"}]


def test_lines_are_read_whole() -> None:
    """The suites may be in the middle of a line when it is looked at."""
    pieces = iter(['{"a"', "", ": 1}\n", '{"b": 2}\n', "", ""])
    with children.started([sys.executable, "-c", "import time; time.sleep(0.5)"]) as process:
        assert list(running._follow(process, lambda: next(pieces, ""))) == ['{"a": 1}\n', '{"b": 2}\n']


@pytest.mark.slow
def test_against_another_commit(run: Run) -> None:
    """The commit before is built in a folder of its own and measured first."""
    if running.commit_named("HEAD~1") is None:
        pytest.skip("no repository with a commit before this one")
    result = quick(run, "--compare", "HEAD~1")
    assert result.exit_code in (0, 1), result.output
    assert "Against HEAD~1 (" in result.output
    assert "1 row within the noise" in result.output or "SLOWER" in result.output or "faster" in result.output
