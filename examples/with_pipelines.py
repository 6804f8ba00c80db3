"""transformers' pipelines with entities found for all tokens at once, and answers from a band of the scores."""

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast, pipeline
from transformers.pipelines import document_question_answering

import spanbert_kernels as sk
from spanbert_kernels.integrations import select_starts_ends

TEXT = "Anna Smith works at Acme in Paris and Bob Jones lives in New York"
torch.manual_seed(0)
words = {"[PAD]": 0, "[UNK]": 1, **{word: place for place, word in enumerate(sorted(set(TEXT.split())), start=2)}}
built = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=built, unk_token="[UNK]", pad_token="[PAD]")
labels = ["O", "B-NAME", "I-NAME"]
sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
config = BertConfig(vocab_size=len(words), initializer_range=0.5, id2label=dict(enumerate(labels)), **sizes)
model = BertForTokenClassification(config).eval()  # or one that was trained

# To compare words and offsets alone: the accelerated encoder's scores agree up to rounding.
classify = pipeline("token-classification", model=model, tokenizer=tokenizer, device="cpu")
expected = classify(TEXT, aggregation_strategy="average")
print(sk.accelerate(classify))
found = classify(TEXT, aggregation_strategy="average")
keys = ("entity_group", "word", "start", "end")
print("the same entities:", [[e[key] for key in keys] for e in found] == [[e[key] for key in keys] for e in expected])

start, end = np.random.default_rng(0).standard_normal((2, 1, 40)) * 3
arguments = start, end, np.zeros((1, 40), dtype=int), None
ours = select_starts_ends(*arguments, top_k=3)
theirs = document_question_answering.select_starts_ends(*arguments, top_k=3)
print("the same answers:", all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True)))
