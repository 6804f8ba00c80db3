"""Every public name says what it takes, what it gives back, and shows it in an example, which the doctests run."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator

import pytest

PUBLIC = ("acceleration", "host", "integrations", "models", "nn", "ops", "ops.backends", "tasks.explanation", "testing")


def public(module: str) -> Iterator[tuple[str, object]]:
    """The names that a module offers: those of `__all__`, or where there is none the classes and functions in it."""
    found = importlib.import_module(f"spanbert_kernels.{module}")
    own = [name for name, each in vars(found).items() if getattr(each, "__module__", "") == found.__name__]
    for name in getattr(found, "__all__", [name for name in own if not name.startswith("_")]):
        each = getattr(found, name)
        if inspect.isroutine(inspect.unwrap(each)) or inspect.isclass(each):
            yield name, each


def lacks(each: object) -> Iterator[str]:
    """Sections that a docstring should have and has not."""
    text = inspect.getdoc(each) or ""
    kind = inspect.isclass(each)
    function = each.__init__ if kind else each  # type: ignore[misc]
    names = [name for name in inspect.signature(function).parameters if name not in ("self", "args", "kwargs")]
    if names and not ("Args:" in text or (kind and "Attributes:" in text)):
        yield "Args"
    annotation = inspect.signature(function).return_annotation
    if not kind and annotation not in ("None", "Iterator[None]") and "Returns:" not in text:
        yield "Returns"
    if "Example:" not in text:
        yield "Example"


@pytest.mark.parametrize("module", PUBLIC)
def test_docstrings_are_whole(module: str) -> None:
    names = dict(public(module))
    assert names
    assert {name: missing for name, each in names.items() if (missing := tuple(lacks(each)))} == {}
