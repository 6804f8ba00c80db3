"""sentence-transformers' `encode` with an encoder of MiniLM's sizes: accelerated, with its pooling and with ours."""

from __future__ import annotations

import tempfile
from functools import cache, partial
from typing import Any

import torch
from batches import document_lengths
from registry import FORWARD, Unavailable
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from span_layers import Side, SpanLayerCase
from spanbert_kernels import accelerate
from spanbert_kernels.acceleration import span_layers
from spanbert_kernels.extras import advice

TEXTS, BATCH, WORDS = 64, 32, 1000


@cache
def saved() -> tempfile.TemporaryDirectory[str]:
    """A random model beside a tokenizer whose words are numbers."""
    folder = tempfile.TemporaryDirectory()
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w0", model_max_length=512)
    tokenizer.save_pretrained(folder.name)
    torch.manual_seed(0)
    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
    BertModel(BertConfig(vocab_size=WORDS, **sizes)).save_pretrained(folder.name)
    return folder


def build(pooling: str | None, dtype: torch.dtype) -> Side:
    """`pooling`: None, nothing is accelerated; whose pooling stands behind the accelerated encoder otherwise."""
    try:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    except ImportError:
        raise Unavailable(advice("sentence_transformers", "peers")) from None
    modules: Any = Transformer(saved().name), Pooling(384, "mean")
    model = SentenceTransformer(modules=modules, device="cpu").to(dtype)
    if pooling is not None:
        accelerate(model)
    if pooling == "theirs" and (ours := span_layers.installed(model[1], "forward")) is not None:
        span_layers.remove(model[1], ours)
    texts = [" ".join(f"w{place % (WORDS - 1) + 1}" for place in range(int(n))) for n in document_lengths(TEXTS)]
    options = {"batch_size": BATCH, "convert_to_tensor": True, "show_progress_bar": False}
    return Side(lambda: model.encode(texts, **options), [])


CASES = (
    SpanLayerCase(
        f"encode of {TEXTS} texts, mean of the tokens",
        "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        partial(build, None),
        partial(build, "ours"),
        others={"accelerated, its own pooling": partial(build, "theirs")},
        directions=(FORWARD,),
        seconds=4.0,
    ),
)
