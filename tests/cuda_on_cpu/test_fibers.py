"""The shim itself: kernels run as on a GPU, and what is wrong in one is noticed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import children
import pytest
import torch
from cuda_on_cpu import library

from spanbert_kernels.ops import plans
from spanbert_kernels.ops.span_pool import PARTS


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ here")
    path = tmp_path_factory.mktemp("fibers") / "cases"
    flags = [flag for flag in library.FLAGS if flag not in ("-fPIC", "-fvisibility=hidden")]
    children.run([compiler, *flags, str(library.HERE / "fiber_cases.cpp"), "-o", str(path)], check=True)
    return path


def run(program: Path, case: str, seed: int | None = None) -> tuple[int, list[str]]:
    environment = {**os.environ} if seed is None else {**os.environ, "SPANBERT_FIBERS_SEED": str(seed)}
    done = children.run([str(program), case], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_barriers_and_lanes(program: Path, seed: int | None) -> None:
    status, lines = run(program, "neighbours", seed)
    assert status == 0
    assert [int(line) for line in lines] == [63, *range(63)] * 4
    status, lines = run(program, "lanes", seed)
    assert status == 0
    assert [int(line) for line in lines[:64]] == [496 + 7 + 1] * 32 + [1520 + 39 + 1] * 32


def test_a_missing_barrier_shows_in_another_order(program: Path) -> None:
    """Also in the given order: thread 0 reads what was never written, NaN."""
    results = [run(program, "race", seed)[1] for seed in (None, 1, 2)]
    assert "nan" in results[0][0]
    assert results[0] != results[1] != results[2]


@pytest.mark.parametrize(
    ("case", "text"),
    [
        ("some wait", "threads of a block wait for each other at different places, one at line"),
        ("some lanes", "threads of a block wait for each other at different places, one at line"),
        ("places", "threads of a block wait for each other at different places, one at line"),
        ("beyond", "a write beyond the shared memory"),
        ("no blocks", "a launch of 0 blocks"),
    ],
)
def test_what_is_wrong_is_noticed(program: Path, case: str, text: str) -> None:
    status, lines = run(program, case)
    assert status == 1
    assert lines[0].startswith(f"error: {text}")


@pytest.fixture
def operators() -> Any:
    reason = library.load()
    if reason is not None:
        pytest.skip(reason)
    return getattr(torch.ops, library.NAMESPACE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_numbers_are_read_and_rounded_as_torch_does(operators: Any, dtype: torch.dtype) -> None:
    """Each bit pattern plus another one: subnormals, ties, overflow, infinities and NaN among them."""
    bits = torch.arange(2**16).sub(2**15).to(torch.int16)
    others = bits[torch.randperm(2**16, generator=torch.Generator().manual_seed(1))]
    hidden = torch.stack([bits, others]).view(dtype)
    work = plans.work_for((torch.tensor([0, 0]), torch.tensor([1, 2])), "cuda", 2)
    found, _, _ = operators.span_pool_forward(hidden, *work, None, None, None, [PARTS.index("sum")], False)
    expected = torch.stack([hidden[0].float(), hidden[0].float() + hidden[1].float()]).to(dtype)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_the_order_of_threads_and_blocks_does_not_matter(operators: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """All parts, forward and backward, of enough spans for groups in shared memory."""
    generator = torch.Generator().manual_seed(0)
    hidden, scores, table = (torch.randn(shape, generator=generator) for shape in ((70, 40), (70, 2), (5, 3)))
    start = torch.randint(0, 70, (120,), generator=generator)
    end = (start + torch.randint(0, 40, (120,), generator=generator)).clamp(max=70)
    work = plans.work_for((start, end), "cuda", 70)
    rest = (*work, scores, table, None, list(range(len(PARTS))))
    runs = []
    for seed in (None, "1", "2", "3"):
        if seed is not None:
            monkeypatch.setenv("SPANBERT_FIBERS_SEED", seed)
        output, argmax, lse = operators.span_pool_forward(hidden, *rest, True)
        grad = torch.linspace(-1, 1, output.numel()).view(output.shape)
        runs.append((output, argmax, lse, *operators.span_pool_backward(grad, hidden, argmax, lse, *rest)))
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))
