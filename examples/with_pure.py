"""PURE's entity model with its scorer applied to tokens: the same scores and vectors of spans.

Run it where `entity` can be imported: in a checkout of github.com/princeton-nlp/PURE, or with that on PYTHONPATH.
"""

import torch
from entity.models import BertForEntity
from transformers import BertConfig

import spanbert_kernels as sk

LENGTH, WIDTH = 40, 6
torch.manual_seed(0)
config = BertConfig(vocab_size=200, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
model = BertForEntity(config, num_ner_labels=5, max_span_length=WIDTH).eval()  # or BertForEntity.from_pretrained(...)

spans = [(start, start + width - 1, width) for width in range(1, WIDTH) for start in range(1, LENGTH - width)]
batch = {
    "input_ids": torch.randint(0, 200, (2, LENGTH)),
    "spans": torch.tensor(spans).expand(2, -1, -1),
    "spans_mask": torch.ones(2, len(spans), dtype=torch.long),
    "attention_mask": torch.ones(2, LENGTH, dtype=torch.long),
}
with torch.no_grad():
    expected = model(**batch)
    report = sk.accelerate(model)
    found = model(**batch)
print(report)
print("largest difference:", max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True)))
