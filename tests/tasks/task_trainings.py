"""A training of each task on its small file, and of pre-training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from small_files import FILES, TEXTS

from spanbert_kernels import SpanBERTForPreTraining, SpanBERTModel
from spanbert_kernels.tasks import pretraining
from spanbert_kernels.tasks.base import load
from spanbert_kernels.tasks.span_training import SpanTraining
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import Training, TrainingOptions

Train = Callable[[Start, TrainingOptions, SpanTraining | None], Training]


def trainer(name: str, folder: Path) -> Train:
    """A training of the task, or of "pretraining", on its file."""
    if name == "pretraining":

        def train(start: Start, options: TrainingOptions, spans: SpanTraining | None) -> Training:
            tokenizer = start.tokenizer(TEXTS)
            model = start.build(SpanBERTForPreTraining, tokenizer, options.seed)
            return pretraining.pretrain(model, tokenizer, TEXTS, [], options, 32)

        return train
    data = FILES[name](folder)
    return lambda start, options, spans: load(name).train(data, None, start, options, spans).training


def write_without_dropout(folder: Path) -> None:
    """A checkpoint to begin with."""
    start = Start(size="tiny", vocabulary_size=120)
    tokenizer = start.tokenizer([*TEXTS, "Who ?"])
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    start.build(SpanBERTModel, tokenizer, 0, **none).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
