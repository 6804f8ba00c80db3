"""gpu-check without a GPU: a driver whose stages hang, crash and are killed, and what can be read afterwards."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import children
import pytest

pytest.importorskip("spanbert_kernels.cli")  # which imports the commands of the records itself
check = pytest.importorskip("gpu.check")
from gpu import kernels, stages, steps  # noqa: E402
from gpu.stages import STAGES, Stage  # noqa: E402

HANGS = """
import multiprocessing, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
worker.start()
print("worker", worker.pid, "\\xff".encode("latin-1"), flush=True)
sys.stdout.buffer.write(b"no text: \\xff\\n")
sys.stdout.flush()
time.sleep(600)
"""
MEASURES = """
import json, os
with open(os.environ["SPANBERT_KERNELS_BENCH_ROWS"], "a") as file:
    file.write(json.dumps({"failure": {"suite": "span_pool", "workload": "max", "reason": "off"}}) + "\\n")
"""
ALIVE = """
import os
with open(os.environ["SPANBERT_KERNELS_BENCH_ROWS"], "a") as file:
    file.write('{"alive": true}\\n')
"""
# Ways to end, as commands: what they are called, and what the journal says of them.
ENDS = {
    "hangs": (HANGS, "stopped after "),
    "crashes": ("raise SystemExit(3)", "failed with status 3"),
    "is killed": ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
    "works": ("print('7 passed')", "passed"),
}


def step(name: str, code: str, **more: object) -> steps.Step:
    return steps.Step(name, [sys.executable, "-c", code], **more)  # type: ignore[arg-type]


def stage(*found: steps.Step, **more: object) -> Stage:
    return Stage("a stand-in", more.pop("least", 0), more.pop("most", 60), lambda machine, journal: found, **more)  # type: ignore[arg-type]


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> check.Journal:
    monkeypatch.setattr(check, "START", time.monotonic())
    monkeypatch.setattr(check, "MACHINE", "print('{}')")
    return check.Journal(tmp_path / "journal.jsonl")


def ended(pid: int) -> bool:
    """Whether a process has gone, or is only waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("way", ENDS)
def test_however_a_step_ends_its_line_is_there(journal: check.Journal, way: str) -> None:
    code, status = ENDS[way]
    limit = 1.0 if way == "hangs" else 60.0
    failed = check.run_stage("first", stage(step("only", code)), {}, limit, journal)
    assert failed == (way != "works")
    begun, line = journal.lines()
    assert begun["begun"] == "only"
    assert line["status"].startswith(status)
    assert line["stage"] == "first"
    if way == "works":
        assert line["summary"] == "7 passed"
    if way == "hangs":  # what it printed is text, and the worker that it left has gone with it
        assert "no text: \N{REPLACEMENT CHARACTER}" in line["tail"]
        worker, patience = int(line["tail"][0].split()[1]), time.monotonic() + 60
        while not ended(worker):
            assert time.monotonic() < patience
            time.sleep(0.01)


def test_every_stage_fails_and_the_next_is_run(journal: check.Journal, tmp_path: Path) -> None:
    stages = {name: stage(step("only", code), most=1.5) for name, (code, _) in ENDS.items()}
    stages["wants more"] = stage(step("only", "print()"), least=1e6)
    assert check.check(stages, 60, journal, tmp_path) == 3
    lines = [line for line in journal.lines() if "status" in line]
    assert [line["stage"] for line in lines] == list(stages)
    assert lines[-1]["status"].startswith("not run: ")
    assert lines[-1]["status"].endswith("it wants 1000000")
    assert check.summary(journal.lines()).count("\n") == len(stages) - 1


def test_a_stage_that_others_need(journal: check.Journal, tmp_path: Path) -> None:
    stages = {"build": stage(step("only", "raise SystemExit(1)"), needed=True), "values": stage(step("only", ""))}
    assert check.check(stages, 60, journal, tmp_path) == 1
    assert journal.lines()[-1] == {
        "at": pytest.approx(0, abs=60),
        "stage": "build",
        "status": "nothing behind it is run without it",
    }


def test_what_is_carried_and_does_not_load_is_built(journal: check.Journal) -> None:
    made_good = step("libraries", "raise SystemExit(1)", else_=step("build", "print('built')"))
    assert check.run_stage("build", stage(made_good), {}, 60, journal) == 0
    assert [line["status"] for line in journal.lines() if "status" in line] == ["failed with status 1", "passed"]
    assert check.run_stage("build", stage(step("libraries", "", else_=step("build", "1 / 0"))), {}, 60, journal) == 0


DRIVER = """
import sys, time
sys.path.insert(0, {tests!r})
from gpu import check, steps
from gpu.stages import Stage
check.MACHINE = "print('{{}}')"
codes = {{"first": {measures!r}, "second": {hangs!r}}}
stages = {{
    name: Stage("", 0, 600, lambda machine, journal, code=code: [
        steps.Step("only", [sys.executable, "-c", code], {{"SPANBERT_KERNELS_BENCH_ROWS": str(journal)}})])
    for name, code in codes.items()
}}
sys.exit(check.main(["--out", {out!r}, "--budget", "600"], stages))
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_whoever_ends_the_check_the_json_is_there(tmp_path: Path, sent: signal.Signals) -> None:
    tests = str(Path(__file__).resolve().parents[1])
    code = DRIVER.format(tests=tests, measures=MEASURES, hangs=ALIVE + HANGS, out=str(tmp_path))

    def found() -> list[dict[str, object]]:
        return check.Journal(next(tmp_path.glob("*-gpu-check.jsonl"), tmp_path / "none")).lines()

    with children.started([sys.executable, "-c", code], stdout=-3, stderr=-3) as process:
        while not any("alive" in line for line in found()):
            assert process.poll() is None
            time.sleep(0.05)
        os.kill(process.pid, sent)
        process.wait()
    (record,) = tmp_path.glob("*-gpu.json")
    assert [failure["workload"] for failure in json.loads(record.read_text())["failures"]] == ["max"]
    last = found()[-1]
    assert ("alive" in last) if sent == signal.SIGKILL else (last["status"] == "cut off")


def test_a_line_that_was_cut_is_passed_over(journal: check.Journal) -> None:
    journal.write(stage="values", status="passed")
    with journal.path.open("a") as file:
        file.write('{"row": {"sui')
    assert [line["status"] for line in journal.lines()] == ["passed"]


def test_an_unknown_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        check.main(["values", "benches"])
    assert refused.value.code == 2
    assert f"there is no stage benches; there are {', '.join(STAGES)}" in capsys.readouterr().err


def test_the_stages_name_what_is_there(tmp_path: Path) -> None:
    """Every file that a command names exists, and the whole check fits into the time that a machine is lent for."""
    root = steps.ROOT
    for name, each in STAGES.items():
        assert each.least <= each.most <= 600, name
        for found in each.steps({}, tmp_path / "journal"):
            files = [word for word in found.command if word.startswith(("tests/", "benchmarks/"))]
            assert files or found.command[1].startswith("setup.py"), name
            assert all((root / file).exists() for file in files), found
    assert list(STAGES) == ["build", "values", "roof", "encoder", "bench", "sanitize", "rest"]


def lines() -> Iterable[dict[str, object]]:
    entry = {"milliseconds": 0.01, "quartiles": [0.009, 0.011], "rounds": 0, "error": 1e-3, "share": 0.8, "peak": 1.0}
    row = {
        "suite": "span_pool",
        "workload": "mean, 16 x 64",
        "direction": "forward",
        "dtype": "bfloat16",
        "device": "cuda",
        "axes": {"tokens": 1024},
        "scaling": None,
        "curve": None,
        "bytes": 1000,
        "operations": 500,
        "floor": 0.008,
        "providers": {"ours": {"kind": "ours", **entry, "ran": "triton", "replayed": 0.009}},
        "goals": [],
    }
    found = {"gpu": "A GPU", "capability": "90", "memory_gib": 80.0, "torch": "2.13", "commit": "abc", "dirty": True}
    yield {"at": 1.0, "machine": found}
    yield {"collected": 2, "package": "x"}
    yield {"ceilings": {"copy, GB/s": 4000.0, "bfloat16, GFLOP/s": 700_000.0}}
    yield {"row": row}
    yield {"failure": {"suite": "span_pool", "workload": "max", "reason": "off"}}
    yield {"at": 13.0, "stage": "bench", "step": "headlines", "status": "passed", "seconds": 12.34}


def test_its_record_makes_a_report(tmp_path: Path) -> None:
    from records.record import load
    from records.report import render

    path = tmp_path / "record.json"
    path.write_text(json.dumps(check.record_of(list(lines()))))
    record = load(path)
    assert record.rows[0].ours.replayed == 0.009
    assert record.ceilings["copy, GB/s"] == 4000
    assert record.dirty
    assert record.seconds == 12.3
    assert set(record.versions) == {"torch"}
    assert [failure["workload"] for failure in record.failures] == ["max"]
    page = render([record])
    assert "A GPU" in page
    assert "Roofline" in page
    assert "4,000 GB/s" in page
    assert "mean, 16 x 64, forward, bfloat16 on cuda" in page


def test_nothing_measured_makes_no_record() -> None:
    found: Sequence[dict[str, object]] = [{"at": 1.0, "machine": {}}, {"stage": "build", "status": "passed"}]
    assert check.record_of(found) is None


BREAKS = """
import os
def test_first(): pass
def test_breaks(): os.environ["BROKEN"] = str(os.getpid())
def test_behind(): assert os.environ.get("BROKEN") != str(os.getpid())
"""
PRETENDS = """
import os, torch
torch.cuda.is_available = torch.cuda.is_initialized = lambda: True
def synchronize():
    if os.environ.get("BROKEN") == str(os.getpid()):
        raise RuntimeError("an illegal memory access was encountered")
torch.cuda.synchronize = synchronize
"""


@pytest.mark.slow
def test_a_broken_context_ends_with_the_test_that_broke_it(tmp_path: Path) -> None:
    (tmp_path / "test_three.py").write_text(BREAKS)
    (tmp_path / "conftest.py").write_text(PRETENDS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "gpu.fence", *stages._processes(1), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(kernels.PATHS[:2])}
    printed = children.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment).stdout
    assert "crashed while running 'test_three.py::test_breaks'" in printed
    assert "1 failed, 3 passed" in printed  # what broke it passed before, and the one behind it in another process
