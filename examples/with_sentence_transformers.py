"""sentence-transformers with an accelerated encoder and pooling over its packed tokens: the same vectors."""

import tempfile

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import spanbert_kernels as sk

TEXTS = ["a cat", "a cat sleeps on a mat", "two cats sleep on two mats and dream of one mouse"]
words = {"[PAD]": 0, "[UNK]": 1}
for word in " ".join(TEXTS).split():
    words.setdefault(word, len(words))
built = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
with tempfile.TemporaryDirectory() as folder:
    PreTrainedTokenizerFast(tokenizer_object=built, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    body = Transformer(folder)
model = SentenceTransformer(modules=[body, Pooling(32, "mean")], device="cpu")  # or SentenceTransformer("...")

expected = model.encode(TEXTS)
report = sk.accelerate(model)
found = model.encode(TEXTS)
print(report)
print("largest difference:", abs(found - expected).max())
