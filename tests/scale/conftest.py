from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertTokenizer
from transformers.utils import logging

from spanbert_kernels import SpanBERTConfig, SpanBERTModel

WORDS = ("it", "rains", "in", "the", "harbour", "of", "paris", "##ian", "we", "go", "home", ".", "a", "storm")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a small encoder with a cross-document layer."""
    logging.set_verbosity_error()
    folder = tmp_path_factory.mktemp("model")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = SpanBERTConfig(
        vocab_size=len(tokens), max_position_embeddings=32, cross_document_layers=[0], pooler_token="first", **shape
    )
    made = SpanBERTModel(config)
    with torch.no_grad():
        made.encoder.layer[0].cross_document.gate.fill_(1.0)
    made.save_pretrained(folder)
    BertTokenizer(vocab={token: i for i, token in enumerate(tokens)}, do_lower_case=True).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """Plain text, whose lines are of very different lengths."""
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"{' '.join(WORDS[(i * j) % 14] for j in range(1, 2 + i % 25))}\n" for i in range(60)))
    return path
