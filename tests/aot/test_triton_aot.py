"""Every configuration of every Triton kernel compiles for the GPUs at hand, without spills and within shared memory."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import children
import pytest

import spanbert_kernels.ops  # noqa: F401  (fills the registry)
from spanbert_kernels.ops import backends

pytest.importorskip("triton", reason="Triton is not installed")

FOLDER = Path(__file__).resolve().parent
# Bytes of shared memory that one block may use.
SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}
# Bytes that a thread may spill all the same, by configuration and architecture: GPUs of 12.0 multiply without a
# warpgroup's instructions, from registers alone, as those of 10.0 do in float32, and most of these have every part or
# gradient at once.
SPILLS = {
    ("attention_delta, gradient of bf16", 120): 8,
    ("attention_backward, gradient of bf16", 120): 40,
    ("key_backward, fp32 64, tables, tokens to tokens", 120): 8,
    ("key_backward, fp32 64, both, tokens to tokens", 120): 8,
    ("table_backward, fp32 64, tables, tokens to tokens", 120): 8,
    ("table_backward, fp32 64, both, tokens to tokens", 120): 8,
    ("query_backward, fp32 64, both, tokens to tokens", 100): 24,
    ("query_backward, fp32 64, both, tokens to tokens 2", 100): 32,
    ("query_backward, fp32 64, both, tokens to tokens 3", 100): 16,
    ("table_backward, fp32 64, both, tokens to tokens", 100): 8,
    ("table_backward, fp32 64, both, tokens to tokens", 80): 16,
}
EVERYDAY = 90
OVERSIZED = "oversized_kernels"
OPERATIONS = sorted(name for name, names in backends._registry.items() if "triton" in names)


def run_script(script: str, *arguments: str) -> Any:
    """What a script of this folder prints, run without the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(FOLDER / script), *arguments]
    done = children.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def compile_modules(
    *modules: str, architectures: Iterable[int] = SHARED, everyday: bool = False
) -> list[dict[str, Any]]:
    """What compile_triton.py says."""
    options = ["--everyday"] * everyday + [f"--architecture={number}" for number in architectures]
    results: list[dict[str, Any]] = run_script("compile_triton.py", *options, *modules)
    return results


def complaint(result: dict[str, Any]) -> str | None:
    """What is wrong with a configuration, if anything."""
    limit = SHARED[result["architecture"]]
    if "error" in result:
        return f"does not compile: {result['error']}"
    if max(result["stack"], result["local"]) > SPILLS.get((result["name"], result["architecture"]), 0):
        return f"spills: {result['stack']} bytes of stack, {result['local']} of local memory"
    if result["shared"] > limit:
        return f"wants {result['shared']} bytes of shared memory, there are {limit}"
    return None


# Minutes each: every test run compiles a part for one architecture, the slow tests everything for all.
@pytest.fixture(
    scope="module",
    params=[
        pytest.param((EVERYDAY, True), id="everyday"),
        *(pytest.param((number, False), id=f"sm_{number}", marks=pytest.mark.slow) for number in SHARED),
    ],
)
def compiled(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    from compile_triton import operation_modules, table

    architecture, everyday = request.param
    modules = [*operation_modules(), OVERSIZED]
    results = compile_modules(*modules, architectures=[architecture], everyday=everyday)
    print(f"\n{table(results)}")
    return results


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_configuration_fits(operation: str, compiled: list[dict[str, Any]]) -> None:
    own = [result for result in compiled if result["module"] == f"spanbert_kernels.ops.{operation}.triton"]
    found = [(result["name"], result["architecture"]) for result in own]
    assert len(set(found)) == len(found), "two configurations of one name"
    assert len({architecture for _, architecture in found}) == 1
    assert {result["name"]: complaint(result) for result in own if complaint(result) is not None} == {}


def test_no_module_is_left_out(compiled: list[dict[str, Any]]) -> None:
    """An operation with Triton kernels names the backend, and the other way round."""
    modules = {result["module"] for result in compiled} - {OVERSIZED}
    assert {module.split(".")[-2] for module in modules} == set(OPERATIONS)


def test_what_is_launched_is_listed_and_takes_no_longer() -> None:
    found = run_script("launches.py")
    assert found["launches"] > 100
    assert set(found["kernels"]) == set(found["listed kernels"])
    assert found["left out"] == []
    assert found["worse"] == []
    assert found["failing"] == []


@pytest.mark.slow
def test_every_launch_fits() -> None:
    results = compile_modules("launches")
    wrong = {(r["name"], r["architecture"]): complaint(r) for r in results if complaint(r) is not None}
    assert wrong == {}


def test_what_does_not_fit_is_seen(compiled: list[dict[str, Any]]) -> None:
    complaints = {r["name"]: complaint(r) or "" for r in compiled if r["module"] == OVERSIZED}
    assert complaints["product_kernel, fits"] == ""
    assert complaints["product_kernel, spills"].startswith("spills: ")
    assert "shared memory" in complaints["product_kernel, shared"]
