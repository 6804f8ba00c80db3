"""A training of a model so small that it takes a fraction of a second, dropout included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from spanbert_kernels import SpanBERTConfig, SpanBERTForTokenClassification
from spanbert_kernels.tasks import tagging
from spanbert_kernels.tasks.training import Development, Training, TrainingOptions, fit

EXAMPLES = [{"input_ids": torch.arange(4) + i, "labels": torch.tensor([0, 1, 0, 1])} for i in range(6)]


def write_vocabulary(folder: Path) -> None:
    (folder / "vocab.txt").write_text("[PAD]\n")


def train(output: Path, development: Development | None = None, **options: Any) -> Training:
    """Six steps, with a checkpoint after every second one; sums of several threads differ in their last bits."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = SpanBERTConfig(vocab_size=20, max_position_embeddings=8, num_labels=2, **size)
    values = {"steps": 6, "batch_size": 2, "save_steps": 2, "quiet": True, "learning_rate": 0.01, **options}
    model = SpanBERTForTokenClassification(config)
    return fit(
        *(model, TrainingOptions(output, **values), EXAMPLES, tagging.collate),
        development=development,
        write_vocabulary=write_vocabulary,
    )
