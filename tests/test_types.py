"""What a type checker tells a project that uses the package."""

from __future__ import annotations

import ast
import importlib
import sys
import typing
from pathlib import Path

import children
import pytest
from torch import Tensor

from spanbert_kernels import ops
from spanbert_kernels.ops import backends

ROOT = Path(__file__).resolve().parent.parent
CONSUMER = ROOT / "tests" / "typing" / "consumer.py"
MODULES = ("", ".acceleration", ".host", ".integrations", ".models", ".nn", ".ops")


def test_the_consumer_uses_every_public_name() -> None:
    used = set()
    for node in ast.walk(ast.parse(CONSUMER.read_text())):
        used |= {getattr(node, field) for field in ("id", "attr", "name") if isinstance(getattr(node, field, 0), str)}
    public = {name for module in MODULES for name in importlib.import_module(f"spanbert_kernels{module}").__all__}
    assert public - used - {name for name in public if gives_a_tensor(name)} == set()


def gives_a_tensor(name: str) -> bool:
    """Whether it is an operation whose result has one type, whatever the arguments."""
    return name in backends._registry and typing.get_type_hints(getattr(ops, name)).get("return") is Tensor


@pytest.mark.slow
def test_a_strict_project_type_checks(tmp_path: Path) -> None:
    """Its expected errors are marked there, and a mark without its error is one."""
    options = ["--strict", "--config-file=", "--python-version=3.10", "--follow-imports=silent"]
    command = [sys.executable, "-m", "mypy", *options, f"--cache-dir={tmp_path}", str(CONSUMER)]
    done = children.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("Success"), done.stdout + done.stderr
