"""SpERT with candidates pooled as spans: the same scores, without a copy of the hidden states for each candidate.

Run it where `spert` can be imported: in a checkout of github.com/lavis-nlp/spert, or with that on PYTHONPATH.
"""

import torch
from spert.models import SpERT
from transformers import BertConfig

import spanbert_kernels as sk

LENGTH, WIDTH = 40, 6
torch.manual_seed(0)
config = BertConfig(vocab_size=200, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
head = {"relation_types": 3, "entity_types": 4, "size_embedding": 25, "prop_drop": 0.1, "freeze_transformer": False}
model = SpERT(config, cls_token=101, **head).eval()  # or SpERT.from_pretrained(...)

encodings = torch.randint(0, 100, (2, LENGTH))
encodings[:, 0] = 101
places = torch.arange(LENGTH)
spans = torch.tensor([(start, start + width) for width in range(1, WIDTH) for start in range(1, LENGTH - width)])
masks = ((places >= spans[:, :1]) & (places < spans[:, 1:])).expand(2, -1, -1)
relations = torch.randint(0, len(spans), (2, 30, 2))
between = (places > 10) & (places < torch.randint(11, 20, (2, 30, 1)))

batch = (encodings, torch.ones_like(encodings), masks, masks.sum(-1), relations, between)
with torch.no_grad():
    expected = model(*batch)
    report = sk.accelerate(model)
    found = model(*batch)
print(report)
print("largest difference:", max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True)))
