"""What products of 8 bits cost on a trained task: entities in tweets, by a classifier of words on a small encoder."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, BertForTokenClassification

from spanbert_kernels import accelerate, restore
from spanbert_kernels.acceleration import AccelerationReport
from spanbert_kernels.data.conll_ner import TaggedSentence, read_tagged
from spanbert_kernels.ops import library
from spanbert_kernels.ops.encoder_stack import encoder_stack_refusal
from spanbert_kernels.tasks import tagging
from spanbert_kernels.tasks.tagging import majority, score

DATA = Path(os.environ.get("SPANBERT_KERNELS_DATA", ""))
ENCODER = DATA.parent / "models" / "minilm"
EPOCHS, BATCH, RATE = 3, 32, 2e-4
LONGEST = 128  # pieces of a sentence
IGNORED = -100
MOST_LOST = 0.005  # of F1, by 8 bits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("SPANBERT_KERNELS_DATA" not in os.environ, reason="SPANBERT_KERNELS_DATA is not set"),
    pytest.mark.skipif(not ENCODER.is_dir(), reason=f"there is no {ENCODER}"),
    pytest.mark.skipif(library.cpu_isa() is None, reason="the CPU library is not built"),
    pytest.mark.skipif(encoder_stack_refusal("int8") is not None, reason=str(encoder_stack_refusal("int8"))),
]


def batches_of(sentences: Sequence[TaggedSentence], tokenizer: Any, labels: Sequence[str]) -> list[dict[str, Tensor]]:
    """Padded batches in the order of the sentences; the first piece of each word has its label."""
    found = []
    for first in range(0, len(sentences), BATCH):
        some = sentences[first : first + BATCH]
        words = [[word.lower() for word in sentence.words] for sentence in some]
        encoded = tokenizer(
            words, is_split_into_words=True, truncation=True, max_length=LONGEST, padding=True, return_tensors="pt"
        )
        targets = []
        for row, sentence in enumerate(some):
            target = torch.full(encoded["input_ids"].shape[1:], IGNORED)
            of_piece = encoded.word_ids(row)
            for place, word in enumerate(of_piece):
                if word is not None and word not in of_piece[:place]:
                    target[place] = labels.index(sentence.labels[word])
            targets.append(target)
        found.append({**encoded, "labels": torch.stack(targets)})
    return found


def train(model: Any, batches: list[dict[str, Tensor]]) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    steps = EPOCHS * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    shuffle = random.Random(0).shuffle
    accelerate(model.train())
    for _ in range(EPOCHS):
        shuffle(batches)
        for batch in batches:
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    restore(model.eval())


def predictions(model: Any, batches: Sequence[dict[str, Tensor]]) -> list[list[int]]:
    """Of each sentence, the labels of the words that were encoded, as numbers."""
    found = []
    with torch.no_grad():
        for batch in batches:
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            for row, target in zip(logits.argmax(-1), batch["labels"], strict=True):
                found.append(row[target != IGNORED].tolist())
    return found


def test_f1_of_entities_is_kept() -> None:
    folder = DATA / "wnut17"
    sentences = read_tagged(folder / "wnut17train.conll")
    test = read_tagged(folder / "emerging.test.annotated")
    labels = tagging.TASK.labels_in(sentences)
    tokenizer = AutoTokenizer.from_pretrained(ENCODER)
    torch.manual_seed(0)
    model = BertForTokenClassification.from_pretrained(ENCODER, num_labels=len(labels))
    train(model, batches_of(sorted(sentences, key=lambda s: len(s.words)), tokenizer, labels))
    batches = batches_of(test, tokenizer, labels)

    def measured(name: str, expected: list[list[int]] | None, report: AccelerationReport | None) -> tuple[float, Any]:
        found = predictions(model, batches)
        tags = [[labels[number] for number in row] for row in found]
        tags = [[*row, *"O" * (len(s.words) - len(row))] for row, s in zip(tags, test, strict=True)]
        f1 = score([s.labels for s in test], tags)["f1"]
        pairs = [(a, b) for x, y in zip(found, expected or found, strict=True) for a, b in zip(x, y, strict=True)]
        print(f"\n{name}: F1 {f1:.4f}, other labels at {sum(a != b for a, b in pairs)} of {len(pairs)} words")
        if report is not None:
            print(report)
        return f1, found

    exact, expected = measured("float32, transformers", None, None)
    report = accelerate(model)
    fast, _ = measured("float32, accelerated", expected, report)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = measured("bfloat16, autocast", expected, report)
    report = accelerate(model, weights="int8")
    int8, _ = measured("int8", expected, report)
    assert report.last_path == "packed-inference"
    assert "fused, int8" in str(report)
    assert report.int8_error is not None
    assert report.int8_error > 1e-3
    assert exact > 3 * majority(sentences, test)["f1"]
    assert exact > 0.3
    assert fast == pytest.approx(exact, abs=MOST_LOST / 5)
    assert rounded > exact - MOST_LOST
    assert int8 >= exact - MOST_LOST
