"""transformers' token classification pipeline behind its model: a text of 384 tokens, a fifth of them in entities."""

from __future__ import annotations

import random
from functools import cache, partial
from typing import Any

import torch
from registry import FORWARD
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast, TokenClassificationPipeline

from span_layers import Side, SpanLayerCase
from spanbert_kernels import accelerate

LENGTH = 384
LABELS = ("O", *(f"{prefix}-{kind}" for kind in ("PER", "LOC", "ORG", "MISC") for prefix in "BI"))
LETTERS = "abcdefghijklmnop"


@cache
def pipeline() -> Any:
    """With a tokenizer of word pieces: words of one to five letters, a letter a token."""
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokens = [*names.values(), *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    built = Tokenizer(models.WordPiece({token: place for place, token in enumerate(tokens)}, unk_token="[UNK]"))
    built.pre_tokenizer, built.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    built.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=built, model_max_length=LENGTH, **names)
    labels = {"id2label": dict(enumerate(LABELS)), "label2id": {label: place for place, label in enumerate(LABELS)}}
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    model = BertForTokenClassification(BertConfig(vocab_size=len(tokens), **sizes, **labels)).eval()
    return TokenClassificationPipeline(model=model, tokenizer=tokenizer, device="cpu")


def outputs(pipe: Any) -> list[dict[str, Any]]:
    """What the model gives: scores of which some runs of tokens stand out."""
    generator = random.Random(0)
    text = " ".join("".join(generator.choices(LETTERS, k=generator.randint(1, 5))) for _ in range(LENGTH))
    (inputs,) = pipe.preprocess(text, is_split_into_words=False)
    logits = torch.randn(1, LENGTH, len(LABELS), generator=torch.Generator().manual_seed(0))
    logits[:, :, 0] += 4
    for start in range(5, LENGTH - 5, 20):
        logits[:, start : start + 4, generator.randrange(1, len(LABELS))] += 8
    return [{"logits": logits, "word_ids": None, "word_to_chars_map": None, **inputs}]


def build(strategy: str, ours: bool, dtype: torch.dtype) -> Side:
    pipe = pipeline()
    given = outputs(pipe)
    options = pipe._sanitize_parameters(aggregation_strategy=strategy)[2]
    original = type(pipe).postprocess.__get__(pipe)
    if ours:
        accelerate(pipe)
    postprocess = pipe.postprocess if ours else original

    def way() -> torch.Tensor:
        found = postprocess(given, **options)
        return torch.tensor([[each["start"], each["end"], each["score"]] for each in found], dtype=dtype)

    return Side(way, [])


CASES = tuple(
    SpanLayerCase(
        f"entities of {LENGTH} tokens, strategy {strategy}",
        "transformers.pipelines.token_classification.TokenClassificationPipeline",
        partial(build, strategy, False),
        partial(build, strategy, True),
        goal=2,
        directions=(FORWARD,),
        quick=strategy == "simple",
    )
    for strategy in ("none", "simple", "first", "average", "max")
)
