"""Every task on encoders of several families, each with its own tokenizer, from folders as transformers writes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from small_files import FILES, TEXTS
from small_tokenizers import byte_pairs, unigram, word_piece
from transformers import AutoConfig, AutoModel

from spanbert_kernels.models import SpanBERTTokenizer
from spanbert_kernels.tasks.base import load
from spanbert_kernels.tasks.generation import Generator
from spanbert_kernels.tasks.registry import TASKS
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.training import TrainingOptions

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
NO_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
# By model type: the tokenizer, fields of the configuration, and the tokens that a text may have.
ENCODERS: dict[str, tuple[Callable[..., Any], dict[str, Any], int]] = {
    "bert": (word_piece, {**SMALL, "max_position_embeddings": 40}, 40),
    "roberta": (byte_pairs, {**SMALL, "max_position_embeddings": 42, "type_vocab_size": 1}, 40),
    "xlm-roberta": (unigram, {**SMALL, "max_position_embeddings": 42}, 40),
    "modernbert": (byte_pairs, {**SMALL, **NO_TOKENS, "pad_token_id": 1, "max_position_embeddings": 40}, 40),
    "deberta-v2": (unigram, {**SMALL, "relative_attention": True, "pos_att_type": "c2p|p2c"}, 512),
    "distilbert": (word_piece, {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}, 512),
    "electra": (word_piece, {**SMALL, "embedding_size": 8}, 512),
    "mpnet": (byte_pairs, {**SMALL, "max_position_embeddings": 42}, 40),
}
QUICK = {("roberta", "question_answering"), ("xlm-roberta", "tagging")}


def checkpoint(encoder_type: str, folder: Path) -> tuple[Start, Any]:
    """A folder of a random encoder and its tokenizer, and the encoder."""
    make, fields, _ = ENCODERS[encoder_type]
    tokenizer = make([*TEXTS, "Who ?"])
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(encoder_type, vocab_size=len(tokenizer), **fields))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Start(model=str(folder)), model


@pytest.mark.parametrize(
    ("encoder_type", "name"),
    [
        pytest.param(each, name, marks=() if (each, name) in QUICK else pytest.mark.slow)
        for each in ENCODERS
        for name in TASKS
    ],
)
def test_it_trains_and_is_loaded_again(tmp_path: Path, encoder_type: str, name: str) -> None:
    """It begins with the encoder's weights; what it wrote finds what it found."""
    start, encoder = checkpoint(encoder_type, tmp_path / "encoder")
    task, data, options = load(name), FILES[name](tmp_path), TrainingOptions(tmp_path / "out", steps=2, quiet=True)
    items = task.read(data)
    model, tokenizer = task.build(items, data, start, 0)
    own = (model.model.encoder if isinstance(model, Generator) else model).base_model
    assert isinstance(own, type(encoder))
    assert own.config.positions == ENCODERS[encoder_type][2]
    weights = own.state_dict()
    for key, tensor in encoder.state_dict().items():
        if not key.startswith("pooler"):
            assert torch.equal(weights[key], tensor), key
    assert task.fit(model, tokenizer, items, options).paths == {"packed-training": 2}
    loaded, read = task.load(options.output)
    assert type(loaded) is type(model)
    after, before = (each.model if isinstance(each, Generator) else each for each in (loaded, model))
    assert all(map(torch.equal, after.state_dict().values(), before.state_dict().values()))
    assert task.find(loaded, read, items) == task.find(model, tokenizer, items)


@pytest.mark.parametrize("encoder_type", ENCODERS)
def test_the_lowest_layers_alone_are_kept(tmp_path: Path, encoder_type: str) -> None:
    """The model's states are those that the whole encoder has there, and its folder says how many layers it has."""
    start, encoder = checkpoint(encoder_type, tmp_path / "encoder")
    task = load("tagging")
    items = task.read(FILES["tagging"](tmp_path))
    with pytest.raises(ValueError, match=f"{start.model} has 2 layers, 3 are to be kept"):
        task.build(items, tmp_path, replace(start, lower_layers=3), 0)
    model, tokenizer = task.build(items, tmp_path, replace(start, lower_layers=1), 0)
    model.save_pretrained(tmp_path / "one")
    loaded = type(model).from_pretrained(tmp_path / "one")
    ids = torch.tensor([tokenizer(TEXTS[0])["input_ids"][:8]])
    with torch.no_grad():
        wanted = encoder.eval()(ids, output_hidden_states=True).hidden_states
        for each in (model, loaded):
            found = each.eval().base_model(ids, output_hidden_states=True).hidden_states
            assert (len(wanted), len(found)) == (3, 2)
            assert torch.equal(found[0], wanted[0])
            if encoder_type != "modernbert":  # whose last state has passed its last norm
                assert torch.equal(found[1], wanted[1])
    assert not any(".layer.1." in name or ".layers.1." in name for name in model.state_dict())


EARLIER = json.loads(Path(__file__).with_name("earlier_folders.json").read_text())


@pytest.mark.parametrize("name", EARLIER)
def test_folders_of_earlier_trainings_load(tmp_path: Path, name: str) -> None:
    """As `train` wrote them when BERT's subclasses held the heads: each weight is where it was."""
    config, shapes = EARLIER[name]["config"], EARLIER[name]["shapes"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    weights = {key: torch.randn(shape) for key, shape in shapes.items()}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    start = Start(vocabulary_size=60)
    for folder in (tmp_path, tmp_path / "target"):
        start.tokenizer(TEXTS).save_pretrained(folder)
    model, tokenizer = load(name).load(tmp_path)
    state = (model.model if isinstance(model, Generator) else model).state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in weights.items())
    assert type(tokenizer) is SpanBERTTokenizer
