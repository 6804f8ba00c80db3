"""Importing the package is cheap: nothing is loaded before it is used."""

import sys

import children
import pytest

import spanbert_kernels


def loaded_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    return set(children.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_the_package_alone_loads_nothing() -> None:
    loaded = loaded_after("import spanbert_kernels")
    assert "spanbert_kernels" in loaded
    assert loaded.isdisjoint({"torch", "numpy", "transformers", "triton", "spanbert_kernels.ops"})


def test_transformers_is_loaded_by_the_models_alone() -> None:
    loaded = loaded_after("from spanbert_kernels import accelerate, nn, ops, restore")
    assert {"torch", "spanbert_kernels.acceleration.install"} <= loaded
    assert loaded.isdisjoint({"transformers", "triton", "spanbert_kernels.models"})


def test_every_name_resolves() -> None:
    for name in spanbert_kernels.__all__:
        assert name in dir(spanbert_kernels)
        assert getattr(spanbert_kernels, name).__name__.split(".")[-1] == name
    with pytest.raises(AttributeError, match="module 'spanbert_kernels' has no attribute 'acelerate'"):
        _ = spanbert_kernels.acelerate
