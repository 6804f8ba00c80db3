"""GLiNER with labels scored without the vectors of spans: the same entities. It needs `gliner`."""

import tempfile

import torch
from gliner import GLiNER, GLiNERConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, PreTrainedTokenizerFast

import spanbert_kernels as sk

TEXT = "Anna Smith of Acme wrote about dogs , while the cat slept on a mat in Paris ."
LABELS = ["person", "place", "company"]
torch.manual_seed(0)

# A small random model in the place of GLiNER.from_pretrained(...)
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *TEXT.split(), *LABELS]
tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
encoder = BertConfig(
    vocab_size=len(words), hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128
)
with tempfile.TemporaryDirectory() as folder:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    config = GLiNERConfig(model_name=folder, encoder_config=encoder.to_dict(), hidden_size=64, vocab_size=len(words))
    model = GLiNER.from_config(config, backbone_from_pretrained=False).eval()

expected = model.predict_entities(TEXT, LABELS, threshold=0.5)
report = sk.accelerate(model)
found = model.predict_entities(TEXT, LABELS, threshold=0.5)
print(report)
print("the same entities:", [each["text"] for each in found] == [each["text"] for each in expected], len(found))
