"""Numbers on the command line: every option of every command refuses what is no finite number in its range."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from spanbert_kernels.cli import main
from spanbert_kernels.tasks.training import TrainingOptions

NEVER = ("nan", "inf", "-inf", "1e999", "-1", "1e30", str(10**30), "", "many")


def numbers() -> Iterator[tuple[str, click.Parameter]]:
    for name, command in main.commands.items():
        for parameter in command.params:
            if isinstance(parameter.type, (click.types.IntParamType, click.types.FloatParamType)):
                yield name, parameter


NUMBERS = list(numbers())


def test_every_number_has_two_ends() -> None:
    assert {("train", "--learning-rate"), ("demo", "--seed"), ("pretrain", "--held-out")} <= {
        (name, parameter.opts[0]) for name, parameter in NUMBERS
    }
    for name, parameter in NUMBERS:
        kind: Any = parameter.type
        assert getattr(kind, "min", None) is not None, (name, parameter.name)
        assert getattr(kind, "max", None) is not None, (name, parameter.name)


@pytest.mark.parametrize(("name", "parameter"), NUMBERS, ids=lambda value: getattr(value, "name", value))
def test_no_number_is_infinite_negative_or_none(
    monkeypatch: pytest.MonkeyPatch, name: str, parameter: click.Parameter
) -> None:
    monkeypatch.setattr(main.commands[name], "callback", lambda **values: None)

    def refused(value: object) -> bool:
        result = CliRunner().invoke(main, [name, f"{parameter.opts[0]}={value}"])
        return f"Invalid value for '{parameter.opts[0]}'" in result.output

    assert all(map(refused, NEVER))
    kind: Any = parameter.type
    assert [refused(kind.min), refused(kind.max)] == [kind.min_open, kind.max_open]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -1.0])
@pytest.mark.parametrize("name", ["learning_rate", "epochs", "batch_size", "steps", "save_steps", "evaluate_steps"])
def test_options_of_a_training_are_checked_without_a_command_line_too(name: str, value: float) -> None:
    if value == float("inf") and name not in ("learning_rate", "epochs"):
        return
    with pytest.raises(ValueError, match=rf"{name} must be .*, got {value}"):
        TrainingOptions(Path("x"), **{name: value})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1])
@pytest.mark.parametrize("name", ["weight_decay", "warmup"])
def test_shares_of_a_training(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be .*, got {value}"):
        TrainingOptions(Path("x"), **{name: value})
