"""Saved SpanBERT models load through transformers' Auto classes after `import spanbert_kernels`, which imports nothing.

transformers finds the configuration of a model type by two names: its class's, in a table, and its module's,
`transformers.models.<model type>`. `announce` puts both there; the first that asks for the class imports our models,
which register themselves for the rest.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

CONFIGURATIONS = {
    "spanbert": "SpanBERTConfig",
    "spanbert_windows": "WindowedSpanBERTConfig",
    "span_encoder": "SpanEncoderConfig",
    "span_encoder_windows": "WindowedSpanEncoderConfig",
}
_TABLE = "transformers.models.auto.configuration_auto"


def announce() -> None:
    """Makes the model types known: at once where transformers has its table, else when it is imported."""
    if _TABLE in sys.modules:
        _add_to(sys.modules[_TABLE])
    elif not any(isinstance(finder, _TableFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TableFinder())


def _add_to(table: ModuleType) -> None:
    for model_type, name in CONFIGURATIONS.items():
        table.CONFIG_MAPPING_NAMES[model_type] = name
        module = f"transformers.models.{model_type}"
        sys.modules[module] = _OurModels(module)


class _OurModels(ModuleType):
    """Stands as `transformers.models.<model type>`: it has our configurations, imported when they are asked for."""

    def __getattr__(self, name: str) -> object:
        if name not in CONFIGURATIONS.values():
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module("spanbert_kernels.models"), name)


class _TableFinder:
    """Finds transformers' table as Python does, and adds to it when it has been imported."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == _TABLE else None
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def run_and_add(module: ModuleType) -> None:
            run(module)
            _add_to(module)

        spec.loader.exec_module = run_and_add  # type: ignore[method-assign]
        return spec
