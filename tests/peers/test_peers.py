"""The runner of transformers' own tests, on a folder with a few tests of ours."""

from __future__ import annotations

from pathlib import Path

import pytest

from peers import run

# The second test fails on an accelerated model, whose states at padding are 0; the third on any.
TESTS = """
import torch
from transformers import BertConfig, BertModel

MASK = torch.tensor([[1, 1, 0]])


def states():
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    with torch.no_grad():
        return BertModel(config).eval()(torch.tensor([[2, 3, 0]]), MASK).last_hidden_state


def test_real():
    assert states()[0, 0].abs().sum() > 0


def test_padding():
    assert states()[0, 2].abs().sum() > 0


def test_false():
    assert False
"""


@pytest.mark.parametrize("named", [[], ["nowhere"]])
def test_without_a_folder_it_says_what_it_wants(named: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(named) == 2
    said = capsys.readouterr().err
    assert "PEERS must name a folder of transformers' sources that has tests/models/<family>/test_modeling_*.py" in said
    assert ("nowhere has none" in said) == bool(named)


@pytest.mark.slow
def test_what_fails_only_when_accelerated_is_a_new_failure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tests" / "models" / "bert"
    folder.mkdir(parents=True)
    (folder / "test_modeling_bert.py").write_text(TESTS)
    assert run.main([str(tmp_path), "t5"]) == 2
    assert "no family t5; there are bert" in capfd.readouterr().err
    assert run.main([str(tmp_path), "bert"]) == 1
    said = capfd.readouterr().out
    assert "bert: 1 passed, 2 failed, 0 skipped; 2 of 2 calls packed" in said
    failure = "bert: tests/models/bert/test_modeling_bert.py::test_padding: passed before, failed now"
    assert said.splitlines()[-2:] == [failure, "1 families, 1 new failures"]
    assert run.main([str(tmp_path), "-k", "real"]) == 0
    (folder / "test_modeling_bert.py").write_text("def test_nothing(): pass")
    assert run.main([str(tmp_path), "bert"]) == 1
    assert "bert: not one call was packed" in capfd.readouterr().out
