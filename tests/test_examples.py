"""Each program of `examples/` runs as it stands and shows what it says."""

from __future__ import annotations

import importlib
import re
import runpy
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
# A line of what each prints.
SHOWN = {
    "accelerate_a_model": "path taken: packed-inference",
    "attend_across_documents": "document 2 looked at its cluster: [0.0, 1.0, 0.0]",
    "pool_spans": "155 spans, vectors of 192 numbers",
    "pretrain": "paths: {'packed-training': 40, 'packed-inference': 2}",
    "train_a_tagger": "accuracy: 1.0",
    "train_on_spans": "'f1': 1.0",
    "with_allennlp": "vectors: [2, 50, 132] of 132 numbers",
    "with_coref_hoi": "the same mentions: True\nthe same antecedents: True",
    "with_fastcoref": "same mentions: True\nsame antecedents: True",
    "with_gliner": "the same entities: True",
    "with_gliner2": "the same entities: True",
    "with_maverick": "the same mentions: True",
    "with_pipelines": "the same entities: True",
    "with_pure": "calls of BertForEntity: 1 fused",
    "with_sentence_transformers": "calls of Pooling: 1 fused",
    "with_spacy": "['Bob', 'New York'] as spaCy's",
    "with_span_marker": "the same entities: True",
    "with_spert": "calls of SpERT: 1 fused",
}
# What those need that are about another package.
FASTCOREF = "fastcoref.coref_models.modeling_fcoref"
NEEDS = {
    "with_coref_hoi": "model",
    "with_fastcoref": FASTCOREF,
    "with_gliner": "gliner",
    "with_gliner2": "gliner2",
    "with_maverick": "maverick.models.model_mes",
    "with_pure": "entity.models",
    "with_sentence_transformers": "sentence_transformers",
    "with_spacy": "spacy",
    "with_span_marker": "span_marker",
    "with_spert": "spert.models",
}
# Packages that nobody can install: a definition of our own takes the place of one that is not there.
DEFINED = {
    FASTCOREF: "originals.fastcoref",
    "entity.models": "originals.pure",
    "maverick.models.model_mes": "originals.maverick",
    "model": "originals.coref_hoi",
    "spert.models": "originals.spert",
}


@pytest.mark.parametrize("name", SHOWN)
def test_it_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    provide(NEEDS.get(name), monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert SHOWN[name] in capsys.readouterr().out


def provide(package: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skips where a package is not there, nor a definition of it."""
    if package is None or (package not in DEFINED and pytest.importorskip(package)):
        return
    try:
        importlib.import_module(package)
    except ModuleNotFoundError:
        if parent := package.rpartition(".")[0]:
            monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        monkeypatch.setitem(sys.modules, package, importlib.import_module(DEFINED[package]))


def test_the_list_has_every_example() -> None:
    listed = re.findall(r"^\| `(\w+)\.py` \|", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(SHOWN) == sorted(path.stem for path in FOLDER.glob("*.py"))
