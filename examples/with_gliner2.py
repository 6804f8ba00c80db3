"""GLiNER2 with queries scored without the hidden layer of every span: the same entities. It needs `gliner2`."""

import torch
from gliner2 import GLiNER2
from gliner2.configuration import ExtractorConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, PreTrainedTokenizerFast

import spanbert_kernels as sk

TEXT = "Anna Smith of Acme wrote about dogs , while the cat slept on a mat in Paris ."
LABELS = ["person", "place", "company"]
torch.manual_seed(0)

# A small random model in the place of GLiNER2.from_pretrained(...)
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *TEXT.lower().split(), *LABELS]
tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
encoder = BertConfig(
    vocab_size=len(words), hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128
)
model = GLiNER2(
    ExtractorConfig(model_name="small", max_width=8),
    encoder_config=encoder,
    tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special),
).eval()

expected = model.extract_entities(TEXT, LABELS, threshold=0.3)
report = sk.accelerate(model)
found = model.extract_entities(TEXT, LABELS, threshold=0.3)
print(report)
print("the same entities:", found == expected, sum(map(len, found["entities"].values())))
