"""The suites themselves: every one can be loaded, its tables hold together, and its gate refuses what is wrong."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import children
from records import running

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LOAD = """
import memory
import multiprocessing
import registry
import torch
def compute():
    torch.set_num_threads(2)
    torch.ones(2**22).exp_()
assert memory.load_suites() == 2
forked = multiprocessing.get_context("fork").Process(target=compute, daemon=True)
forked.start()
forked.join(60)
ended = forked.exitcode == 0
forked.kill()
assert ended, "an import of a suite started threads, for which a forked process waits"
for name in {names}:
    suite = registry.load(name)
    if suite is None:  # measures by itself
        print(name, 0)
        continue
    assert suite.reference in suite.providers and suite.providers[suite.reference].kind != "ours", name
    for workload in suite.workloads:
        providers = suite.providers_of(workload)
        kinds = [each.kind for each in providers.values()]
        plain = [each for each in providers if providers[each].kind == "eager" or each in suite.yardsticks]
        assert kinds.count("ours") == 1 and kinds.count("eager") <= 1 <= len(plain), (name, workload.id, kinds)
        against = [[goal.against] if isinstance(goal.against, str) else goal.against or () for goal in workload.goals]
        assert all(set(each) <= set(providers) for each in against), (name, workload.id)
        assert set(workload.peaks) <= set(providers), (name, workload.id)
        assert (workload.curve is None) == (workload.scaling is None), (name, workload.id)
    quick = sum(workload.quick for workload in suite.workloads)
    print(name, quick)
"""
RULE = """
import torch
from measuring import Refused, assert_agrees
exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
eager = torch.tensor([1.0, 2.0 + 2e-6])
assert_agrees(torch.tensor([1.0, 2.0 + 3e-6]), eager, exact)
for wrong in (2.0 + 6e-6, float("nan"), float("inf")):
    try:
        assert_agrees(torch.tensor([1.0, wrong]), eager, exact)
    except Refused:
        print("refused")
"""

FLOOR = """
import torch
from measuring import floor_of
from on_gpu import Comparison
ceilings = {"copy, GB/s": 4.0, "float32, GFLOP/s": 10.0, "bfloat16, GFLOP/s": 100.0}
print(floor_of(8e6, 0, "float32", ceilings))  # 8 MB at 4 GB/s
print(floor_of(8e6, 1e9, "bfloat16", ceilings))  # a GFLOP at 100 a second takes longer
print(floor_of(8e6, 1e9, "float16", ceilings))  # not measured: as float32
print(floor_of(0, 1e9, "int8", ceilings))  # twice as many as in bfloat16
comparison = Comparison("span_pool", "mean", "forward", {}, 8e6, 1e9, ceilings, torch.ones(2))
comparison.providers["triton"] = {"kind": "ours", "milliseconds": 2.0}
comparison.providers["cuda"] = {"kind": "ours", "milliseconds": 1.0}
comparison.providers["gather"] = {"kind": "eager", "milliseconds": 3.0}
row = comparison.row()
print(row["floor"], {name: entry["kind"] for name, entry in row["providers"].items()})
"""
ROUNDS = """
from measuring import least_rounds
print([least_rounds(*each) for each in ((6.0, 1.0), (2.5, 0.5), (0.9, 0.2), (4.0, 2.0), (0.9, 0.5))])
"""
LIMITED = """
import memory
case = "memory", "span_pool mean, 128 tokens, forward, float32", "eager"
free = memory.peak_megabytes(*case)
print(memory.peak_megabytes(*case, 0.95 * free))  # the tenth that address space gets on top would let it pass
print(memory.peak_megabytes(*case, 0.5 * free))
print(memory.peak_megabytes(*case, 2 * free))
"""
HELD = """
import conftest
from spanbert_kernels.ops.library import cpu_isa
before = cpu_isa()
conftest.pytest_configure(None)
print(before, cpu_isa())
"""


def python(code: str, **more: str) -> list[str]:
    command, environment = [sys.executable, "-c", code], {**os.environ, **more}
    done = children.run(command, cwd=BENCHMARKS, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_every_suite_holds_together() -> None:
    lines = python(LOAD.format(names=running.suite_names()), OMP_NUM_THREADS="2")
    quick = {name: int(count) for name, count in map(str.split, lines)}
    assert set(quick) == set(running.suite_names())
    assert [name for name, count in quick.items() if not count] == [
        "demo",
        "encoder_families",
        "encoder_padding",
        "encoder_training",
        "memory",
    ]


def test_the_gate_with_the_package_of_another_commit(tmp_path: Path) -> None:
    """As `--compare` has it: a package that does not know the rule yet."""
    package = tmp_path / "spanbert_kernels"
    package.mkdir()
    for path in (BENCHMARKS.parent / "spanbert_kernels").iterdir():
        if path.name != "testing.py":
            (package / path.name).symlink_to(path)
    whose = f"{RULE}\nimport spanbert_kernels\nprint(spanbert_kernels.__file__)"
    assert python(whose, PYTHONPATH=str(tmp_path)) == ["refused"] * 3 + [str(package / "__init__.py")]


def test_floors_and_rounds() -> None:
    kinds = {"ours": "ours", "ours, triton": "peer", "gather": "eager"}
    *floors, rounds = python(FLOOR + ROUNDS)
    assert rounds == "[0, 1, 2, 2, 3]"
    assert floors == ["2.0", "10.0", "100.0", "5.0", f"10.0 {kinds}"]


def test_what_takes_more_than_its_limit_has_no_peak() -> None:
    *out, within = python(LIMITED)
    assert all(line.startswith("runs out of memory: takes more than") for line in out), out
    assert float(within) > 100


def test_kernels_are_held_to_the_level_that_pytorch_is_held_to() -> None:
    (line,) = python(HELD, ATEN_CPU_CAPABILITY="avx2")
    before, after = line.split()
    assert after == ("avx2" if before.startswith("avx512") else before)


def test_the_allocator_is_left_as_users_have_it() -> None:
    """But where peaks are taken, in processes of their own, for which freed memory must be gone."""
    tuned = {path.name for path in BENCHMARKS.rglob("*.py") if "mallopt" in path.read_text(encoding="utf-8")}
    assert tuned == {"memory.py"}
    assert "its mmap threshold stays at 128 KiB" in (BENCHMARKS.parent / "README.md").read_text(encoding="utf-8")
    assert "default allocator" in running.record_of(running.Progress(), False, 0.0, ("", False)).machine["processes"]


def test_the_operations_have_a_suite() -> None:
    assert {"span_pool", "span_gather", "document_attention", "encoder", "memory"} <= set(running.suite_names())


def test_the_gpu_suites_are_found() -> None:
    suites = ["bench_spans_on_gpu.py", "bench_attention_on_gpu.py"]
    command = [sys.executable, "-m", "pytest", *suites, "-m", "gpu", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = children.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for suite in suites:
        assert suite in done.stdout
