from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from spanbert_kernels.cli.collecting import collect

SENTENCES = [
    "The harbour master closed the north gate before the storm .",
    "Nobody had told the crew of the ferry , which waited outside .",
    "In the morning the gate was found open and the storm had passed .",
]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file under `tmp_path` and gives its path."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def texts() -> Callable[..., list[tuple[str, str]]]:
    """(name, text) of the documents under some paths, which must all be read without a complaint."""

    def texts(*paths: Path) -> list[tuple[str, str]]:
        collection = collect(paths)
        assert collection.skipped == []
        assert collection.faults == []
        return [(document.name, document.text) for document in collection.documents]

    return texts


@pytest.fixture
def corpus(write: Callable[..., Path], tmp_path: Path) -> Path:
    """A folder of six documents in two groups, one of them longer than a tiny model's positions."""
    for group in ("sea", "land"):
        for number in range(3):
            text = " ".join(SENTENCES * (9 if (group, number) == ("sea", 1) else 1)) + f" {group} {number}"
            write(f"corpus/{group}_{number}.txt", text)
    return tmp_path / "corpus"


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT of 24 positions with a cased vocabulary."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    words = sorted({word for sentence in SENTENCES for word in sentence.split()})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=24,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    return folder
