"""Encoders of other families through `accelerate`, against transformers' own ways: the batches of `bench_encoder.py`.

DeBERTa also against BERT through `accelerate` on the same batch, which has no distances to look at. Sentences go
through MiniLM in batches of 32 in the order in which they come, and through `SentenceTransformer.encode`, which sorts
them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import encoders
import torch
from batches import VOCABULARY
from encoders import BERT, BF16, EAGER, F32, SDPA, TRANSFORMERS, exact_states, model_of, name_of
from goals import Goal
from registry import BOTH, Inputs, Prepared, Provider, Suite, Unavailable, Way, Workload, register
from torch import Tensor

from spanbert_kernels import accelerate
from spanbert_kernels.extras import advice

Build = Callable[[Workload, Inputs], Prepared]
OUR_BERT = "our BERT"
BATCH = 32
NO_PADDING = {"lengths": [128] * 16}
SENTENCES = {"model": "MiniLM", "documents": 128, "sigma": 0.7}


def inputs(workload: Workload, dtype: torch.dtype) -> Inputs:
    made = encoders.inputs(workload, dtype)
    if "batches" not in workload.options:
        return made
    lengths = made.given["lengths"]
    batch = made.given["batch"]
    parts = []
    for first in range(0, len(lengths), BATCH):
        longest = int(lengths[first : first + BATCH].max())
        parts.append({name: tensor[first : first + BATCH, :longest] for name, tensor in batch.items()})
    return Inputs((), {**made.given, "batches": parts})


def whole(build: Build, change: Callable[[Any], object]) -> Build:
    """A way for rows of one batch, of several, and of texts; `change` is done to the model of the last two."""

    def way(workload: Workload, inputs: Inputs) -> Prepared:
        how = workload.options.get("batches")
        if how is None:
            return build(workload, inputs)
        return Prepared(WAYS[how](workload, inputs, change), (), parameters=True)

    return way


def in_given_order(workload: Workload, inputs: Inputs, change: Callable[[Any], object]) -> Way:
    """States of the real tokens of all batches, `[T, H]`."""
    model = model_of(inputs.given["dtype"], "sdpa", name_of(workload))
    change(model)

    def run() -> Tensor:
        states = (model(**batch).last_hidden_state[batch["attention_mask"].bool()] for batch in inputs.given["batches"])
        return torch.cat(list(states))

    return run


def encoded(workload: Workload, inputs: Inputs, change: Callable[[Any], object]) -> Way:
    """Mean vectors of texts, `[D, H]`."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise Unavailable(advice("sentence_transformers", "peers")) from None
    model = SentenceTransformer(modules=_modules(name_of(workload)), device="cpu")
    change(model)
    ids, lengths = inputs.given["batch"]["input_ids"], inputs.given["lengths"]
    texts = [" ".join(f"w{number}" for number in row[:count].tolist()) for row, count in zip(ids, lengths, strict=True)]
    return lambda: model.encode(texts, batch_size=BATCH, convert_to_tensor=True, show_progress_bar=False)


def _modules(name: str) -> Sequence[Any]:
    """A model with a tokenizer whose words are numbers, and the mean of its states."""
    from sentence_transformers.models import Pooling, Transformer
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as folder:
        words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(VOCABULARY)}, unk_token="w0"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0", pad_token="w0")
        tokenizer.save_pretrained(folder)
        encoders.initial(name).save_pretrained(folder)
        transformer = Transformer(folder)
    return transformer, Pooling(encoders.initial(name).config.hidden_size, "mean")


@cache
def exact_means(name: str, lengths: tuple[int, ...]) -> Tensor:
    return torch.stack([states.mean(0) for states in exact_states(name, lengths).split(list(lengths))])


def reference(workload: Workload, inputs: Inputs) -> Prepared:
    """Every document alone, in float64."""
    if workload.options.get("batches") != "encoded":
        return encoders.one_by_one(workload, inputs)
    means = exact_means(name_of(workload), tuple(inputs.given["lengths"].tolist()))
    return Prepared(lambda: means, (), parameters=True)


WAYS = {"in given order": in_given_order, "encoded": encoded}


def our_bert(workload: Workload, inputs: Inputs) -> Prepared:
    """BERT of the same sizes on the same batch: it computes something else, so that only its time is looked at."""
    model = model_of(inputs.given["dtype"], "sdpa", BERT)
    accelerate(model)
    return encoders.prepared(workload, inputs, model)


def _set(attention: str, model: Any) -> None:
    """The attention of a model, or of the one inside of another's."""
    inner = next(each for each in model.modules() if hasattr(each, "set_attn_implementation"))
    inner.set_attn_implementation(attention)


def row(
    name: str,
    options: dict[str, Any],
    factor: float,
    *more: Goal,
    dtype: torch.dtype = F32,
    direction: str = "forward",
    providers: Sequence[str] = TRANSFORMERS,
    seconds: float = 3.0,
) -> Workload:
    return Workload(
        name,
        direction,
        dtype,
        options={"providers": ("ours", *providers), **options},
        goals=(Goal(factor, against=tuple(name for name in providers if name in TRANSFORMERS)), *more),
        seconds=seconds,
    )


DEBERTA, MPNET, DISTILBERT, MODERNBERT = (
    {"model": name} for name in ("DeBERTa-v3", "MPNet", "DistilBERT", "ModernBERT")
)
NEAR_BERT = Goal(at_most=1.35, against=OUR_BERT)
BESIDE_BERT = (EAGER, OUR_BERT)  # transformers has no other attention for DeBERTa
SUITE = register(
    Suite(
        "encoder_families",
        (
            row("DeBERTa-v3, 16 documents", DEBERTA, 7, NEAR_BERT, providers=BESIDE_BERT),
            row("DeBERTa-v3, 16 x 128", {**DEBERTA, **NO_PADDING}, 3, NEAR_BERT, providers=BESIDE_BERT),
            row("DeBERTa-v3, 4 x 512", {**DEBERTA, "lengths": [512] * 4}, 4, NEAR_BERT, providers=BESIDE_BERT),
            row("DeBERTa-v3, one sentence of 32", {**DEBERTA, "lengths": [32]}, 3, NEAR_BERT, providers=BESIDE_BERT),
            row("DeBERTa-v3, 8 documents", {**DEBERTA, "documents": 8, "dropout": 0.1}, 4, direction=BOTH,
                providers=(EAGER,)),
            row("MPNet, 16 documents", MPNET, 6),
            row("MPNet, 16 x 128", {**MPNET, **NO_PADDING}, 2.2),
            row("DistilBERT, 16 documents", DISTILBERT, 5.5),
            row("MiniLM, 128 sentences in batches of 32", {**SENTENCES, "batches": "in given order"}, 7.5),
            row("MiniLM, 128 sentences through SentenceTransformer.encode", {**SENTENCES, "batches": "encoded"}, 3.8,
                providers=(EAGER, SDPA)),
            row("ModernBERT, 16 documents", MODERNBERT, 5),
            row("ModernBERT, 8 x 1,024", {**MODERNBERT, "lengths": [1024] * 8}, 4),
            row("DeBERTa-v3, 16 documents", DEBERTA, 3, providers=(EAGER,), dtype=BF16),
            row("MPNet, 16 documents", MPNET, 3, dtype=BF16),
            row("DistilBERT, 16 documents", DISTILBERT, 3, dtype=BF16),
            row("ModernBERT, 16 documents", MODERNBERT, 3, dtype=BF16),
        ),
        {
            "ours": Provider(whole(encoders.ours, accelerate), "ours"),
            EAGER: Provider(whole(encoders.theirs("eager"), partial(_set, "eager")), "eager"),
            SDPA: Provider(whole(encoders.theirs("sdpa"), partial(_set, "sdpa"))),
            OUR_BERT: Provider(our_bert, "floor"),
            "in float64": Provider(reference),
        },
        inputs,
        encoders.work,
        reference="in float64",
        yardsticks=(SDPA,),
    )
)  # fmt: skip


def test_row(record: Callable[..., None], workload: Workload) -> None:
    record(workload)
