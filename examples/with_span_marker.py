"""SpanMarker with its markers as documents linked to their text: the same entities, with fewer tokens and keys.

It needs span-marker 1.8.1: `pip install --no-deps span-marker datasets evaluate`.
"""

import tempfile

import torch
from span_marker import SpanMarkerModel
from span_marker.configuration import SpanMarkerConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import spanbert_kernels as sk

found_in = SpanMarkerConfig.__getattribute__


def with_labels(self: SpanMarkerConfig, name: str) -> object:
    """SpanMarker is made for transformers 4, where labels of the encoder are seen through its configuration."""
    found = found_in(self, name)
    return self.encoder[name] if found is None and name in ("id2label", "label2id") else found


SpanMarkerConfig.__getattribute__ = with_labels

sentence = "Anna Smith of Acme wrote about dogs while the cat sat on a mat in Paris and slept"
torch.manual_seed(0)
with tempfile.TemporaryDirectory() as folder:  # a tiny encoder; or the name of a trained model
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sentence.split()])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=64, **names).save_pretrained(folder)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
    BertModel(BertConfig(vocab_size=len(vocabulary), initializer_range=0.3, **sizes)).save_pretrained(folder)
    limits = {"model_max_length": 64, "marker_max_length": 16, "entity_max_length": 4}
    model = SpanMarkerModel.from_pretrained(folder, labels=["O", "PER", "LOC"], **limits)
torch.nn.init.normal_(model.classifier.weight, std=0.5)

# The package's own way, to compare with: transformers 5 wants a dimension for heads in such masks.
own = model.encoder.register_forward_pre_hook(
    lambda _, args, kwargs: (args, {**kwargs, "attention_mask": kwargs["attention_mask"][:, None]}), with_kwargs=True
)
expected = model.predict(sentence)
own.remove()

report = sk.accelerate(model)
found = model.predict(sentence)
print(report)
for entity in found:
    print(entity["span"], entity["label"], f"{entity['score']:.3f}")
print("the same entities:", [each["span"] for each in found] == [each["span"] for each in expected])
