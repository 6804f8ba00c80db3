"""The fuzzer's fixed list of calls, and what it says of one that fails."""

from __future__ import annotations

import places
import pytest
import torch
from fuzz import compare, operations, run

CALLS, EVERYDAY, TOGETHER = 1200, 600, 50


@pytest.mark.parametrize(
    "first",
    [pytest.param(first, marks=[pytest.mark.slow] * (first >= EVERYDAY)) for first in range(0, CALLS, TOGETHER)],
)
def test_drawn_calls(first: int) -> None:
    """One after the other; a failure names the seed that repeats it."""
    for seed in range(first, first + TOGETHER):
        compare.run_seed(seed)


def test_the_list_reaches_every_operation_and_place() -> None:
    calls = [compare.draw_call(seed) for seed in range(100)]
    assert {call.operation for call in calls} == set(operations.OPERATIONS)
    here = {
        place
        for operation in operations.OPERATIONS
        for place in places.places_of(operation)
        if places.unavailable(place) is None
    }
    assert {place for call in calls for place in call.places()} == here


def test_a_seed_stands_for_one_call() -> None:
    one, other = compare.draw_call(77), compare.draw_call(77)
    assert str(one) == str(other)
    for name, tensor in one.setting.tensors("cpu").items():
        assert torch.equal(tensor, other.setting.tensors("cpu")[name])
        assert tensor.stride() == other.setting.tensors("cpu")[name].stride()


@pytest.mark.parametrize("fault", ["value", "gradient", "second run", "written"])
def test_a_fault_is_found_and_can_be_repeated(
    fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each kind of fault, in the results of every operation with a gradient."""
    forward, runs = compare.forward, []

    def faulty(case: object, tensors: compare.Tensors, backend: str) -> tuple[torch.Tensor, ...]:
        runs.append(backend)
        outputs = forward(case, tensors, backend)  # type: ignore[arg-type]
        first = outputs[0]
        if fault == "value":
            first = first + 0.01 * (1 + first.detach().abs().max())
        if fault == "gradient":
            first = 1.01 * first - 0.01 * first.detach()
        if fault == "second run" and len(runs) % 2:
            first = first * (1 + 2 * torch.finfo(first.dtype).eps)
        if fault == "written":
            tensors["hidden"].data.untyped_storage()[0] = 1
        return (first, *outputs[1:])

    seed = next(s for s in range(200) if compare.draw_call(s).operation == "span_pool")
    monkeypatch.setattr(compare, "forward", faulty)
    with pytest.raises(compare.CallFailed, match=f"--seed {seed}"):
        compare.run_seed(seed)
    assert run.main(["--seed", str(seed)]) == 1
    assert "1 failed" in capsys.readouterr().out
