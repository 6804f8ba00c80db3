"""What a training can be told: when to stop, which model to keep, rates, precision, batches by tokens; what it says."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_files import TEXTS
from small_training import train
from transformers import get_scheduler

from spanbert_kernels import SpanBERTConfig, SpanBERTForTokenClassification
from spanbert_kernels.data.conll_ner import TaggedSentence
from spanbert_kernels.data.parallel import Pair
from spanbert_kernels.tasks import launch, progress, tagging, training
from spanbert_kernels.tasks.checkpoints import CannotResume
from spanbert_kernels.tasks.generation import Generator
from spanbert_kernels.tasks.rates import rate_of, set_rates
from spanbert_kernels.tasks.start import Start
from spanbert_kernels.tasks.token_batches import TokenBatches, tokens_in
from spanbert_kernels.tasks.training import (
    SCHEDULES,
    Development,
    OtherPrecision,
    TrainingOptions,
    _steps,
    _with_development,
    arguments_of,
)
from spanbert_kernels.tasks.windows import text_length, window_length

pytest.importorskip("accelerate")
EVERY_STEP = {"evaluate_steps": 1, "patience": 2, "save_steps": 1, "steps": 8, "batch_tokens": 16}


def scored(*values: float) -> Development:
    """Development data with these scores, one after the other."""
    left = iter(values)
    return Development(lambda: {"F1": next(left)}, "F1")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training in batches by tokens, whose fourth model is the best; finding nothing costs no patience."""
    output = tmp_path_factory.mktemp("trainings") / "stopped"
    done = train(output, scored(0.1, 0.0, 0.0, 0.5, 0.4, 0.3), **EVERY_STEP)
    assert done.best == (0.5, 4)
    assert done.values("eval_F1") == [0.1, 0.0, 0.0, 0.5, 0.4, 0.3]
    return output


def test_the_best_model_is_kept(stopped: Path) -> None:
    """With its checkpoint and the two last ones."""
    assert sorted(path.name for path in stopped.glob("checkpoint-*")) == [f"checkpoint-{step}" for step in (4, 5, 6)]
    assert same(stopped, stopped / "checkpoint-4")
    assert not same(stopped, stopped / "checkpoint-6")


@pytest.mark.parametrize(("left", "scores"), [(5, [0.3]), (6, [])], ids=["killed in between", "killed at the end"])
def test_a_resumed_training_keeps_the_same(tmp_path: Path, stopped: Path, left: int, scores: list[float]) -> None:
    """Also in a folder of another name, and where it had stopped already."""
    output = tmp_path / "moved"
    for path in stopped.glob("checkpoint-*"):
        if int(path.name.split("-")[1]) <= left:
            state = shutil.copytree(path, output / path.name) / "trainer_state.json"
            state.write_text(state.read_text().replace(str(stopped), "elsewhere"))
    done = train(output, scored(*scores), resume=True, **EVERY_STEP)
    assert done.best == (0.5, 4)
    assert done.losses is not None
    assert same(output, stopped)
    shutil.rmtree(output / "checkpoint-4")
    with pytest.raises(CannotResume, match=r"the best checkpoint, .*checkpoint-4, cannot be used"):
        train(output, scored(), resume=True, **EVERY_STEP)


def test_a_training_that_had_ended_takes_no_step_more(tmp_path: Path) -> None:
    """In the midst of an epoch, too, and where the learning rate has not fallen to zero."""
    options = {"steps": 2, "save_steps": 2, "schedule": "constant"}
    train(tmp_path, None, **options)
    before = {name: value.clone() for name, value in weights(tmp_path).items()}
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).unlink()
    done = train(tmp_path, None, resume=True, **options)
    assert done.paths == {}
    assert done.losses is not None
    assert all(torch.equal(value, before[name]) for name, value in weights(tmp_path).items())


def test_checkpoints_that_nobody_asked_for_do_not_stay(tmp_path: Path) -> None:
    """Each epoch is evaluated, and of a few examples not each: a development set may be larger than they are."""
    done = train(tmp_path, scored(0.5, 0.5), save_steps=None)
    assert (len(done.values("eval_F1")), done.best) == (2, (0.5, 3))
    assert list(tmp_path.glob("*checkpoint*")) == []
    options = TrainingOptions(tmp_path)
    assert [_with_development(options, scored(), steps, 3)["eval_steps"] for steps in (2, 60, 600)] == [2, 3, 30]


def test_the_first_and_the_last_loss_are_of_steps(tmp_path: Path) -> None:
    """Of a training shorter than what the Trainer logs; gradients that are added up are one step's, and its loss."""
    found = [train(tmp_path, save_steps=None, batch_size=6 // n, accumulation=n, steps=4) for n in (1, 2)]
    (first, last, steps), (halves, _, _) = (each.losses or (0.0, 0.0, 0) for each in found)
    assert [each.paths["packed-training"] for each in found] == [4, 8]
    assert steps == 1
    assert first > last > 0.0
    assert halves == pytest.approx(first, rel=0.2)


def test_so_many_steps_at_least(tmp_path: Path) -> None:
    """Three batches are an epoch."""
    for epochs, least, steps in (1.0, 5, 5), (2.5, 5, 8), (3.0, 0, 9):
        assert _steps(TrainingOptions(tmp_path, epochs=epochs, least_steps=least), 6, 2) == (steps, 3)
    done = train(tmp_path, save_steps=None, steps=None, epochs=1.0, least_steps=4)
    assert max(entry["step"] for entry in done.log) == 4


def test_schedules(tmp_path: Path) -> None:
    """Shares and numbers of steps of warm-up, by transformers' names."""
    found = {}
    for name in SCHEDULES:
        arguments = arguments_of(TrainingOptions(tmp_path, schedule=name, warmup=2))
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
        warmup = arguments.get_warmup_steps(6)
        scheduler = get_scheduler(arguments.lr_scheduler_type, optimizer, warmup, 6)
        found[name] = []
        for _ in range(6):
            found[name].append(round(scheduler.get_last_lr()[0], 2))
            optimizer.step()
            scheduler.step()
    assert [rates[:3] for rates in found.values()] == [[0.0, 0.5, 1.0]] * len(SCHEDULES)
    assert (found["linear"][4], found["cosine"][4], found["constant"][5]) == (0.5, 0.5, 1.0)
    assert arguments_of(TrainingOptions(tmp_path, warmup=0.1)).get_warmup_steps(50) == 5


def test_rates_of_parts_of_a_model() -> None:
    fields = {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8, "num_hidden_layers": 2}
    model = SpanBERTForTokenClassification(
        SpanBERTConfig(vocab_size=9, cross_document_layers=[1], cross_document_anchor="first", **fields)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    set_rates(optimizer, model, rate_of(model, 1e-4, 1e-2, 0.5))
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {names[own]: group["lr"] for group in optimizer.param_groups for own in group["params"]}
    assert found.keys() == set(names.values())
    for part, rate in (
        ("classifier.", 1e-2),
        ("bert.encoder.layer.1.cross_document.", 1e-2),
        ("bert.encoder.layer.1.attention.", 1e-4),
        ("bert.encoder.layer.0.", 5e-5),
        ("bert.embeddings.", 2.5e-5),
    ):
        assert {value for name, value in found.items() if name.startswith(part)} == {rate}, part


def test_precisions(tmp_path: Path) -> None:
    """Products are of 8 bits' precision, weights are not; where a device lacks a precision, it says so."""
    exact = train(tmp_path, save_steps=None).losses
    with pytest.warns(OtherPrecision, match=r"has no fp16: float32 takes its place"):
        assert train(tmp_path, save_steps=None, precision="fp16").losses == exact
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("no bfloat16 here")
    done = train(tmp_path, save_steps=None, precision="bf16")
    assert done.losses != exact
    assert done.losses == pytest.approx(exact, rel=0.02)
    assert done.paths == {"packed-training": 6}
    assert {tensor.dtype for tensor in weights(tmp_path).values()} == {torch.float32}


def test_batches_by_tokens() -> None:
    sizes = np.random.default_rng(0).integers(1, 60, 200).tolist()
    data = TokenBatches([{"input_ids": np.arange(size), "number": n} for n, size in enumerate(sizes)], 128, seed=1)
    epochs = []
    for epoch in range(2):
        data.set_epoch(epoch)
        batches = [data[index] for index in range(len(data))]
        numbers = [[example["number"] for example in batch] for batch in batches]
        assert sorted(itertools.chain(*numbers)) == list(range(200))
        assert max(tokens_in(batch) for batch in batches) <= 128
        assert sum(len(batch) * max(map(tokens_in, batch)) for batch in batches) < 1.15 * sum(sizes)
        epochs.append(numbers)
    assert len(epochs[0]) == len(epochs[1]) < 1.3 * sum(sizes) / 128
    assert epochs[0] != epochs[1]
    again = TokenBatches(data.examples, 128, seed=1)
    assert [[example["number"] for example in again[index]] for index in range(len(again))] == epochs[0]


def test_texts_are_as_long_as_asked(tmp_path: Path) -> None:
    """The model keeps it; it is what windows of documents have, too."""
    start = Start(size="tiny", vocabulary_size=60, max_length=10)
    tokenizer = start.tokenizer(TEXTS)
    built = start.build(SpanBERTForTokenClassification, tokenizer, 0, num_labels=1, id2label={0: "O"})
    built.save_pretrained(tmp_path)
    model = SpanBERTForTokenClassification.from_pretrained(tmp_path)
    assert (text_length(model), window_length(model)) == (10, 10)
    words = tuple(" ".join(TEXTS).split())
    examples = tagging.TASK.encode(model, tokenizer, [TaggedSentence(words, ("O",) * len(words), tmp_path, 1)])
    assert max(len(example["input_ids"]) for example in examples) <= 10
    longest = Start(size="tiny", vocabulary_size=60)
    assert text_length(longest.build(SpanBERTForTokenClassification, tokenizer, 0)) == 512
    pairs = [Pair(TEXTS[0], (TEXTS[0],), tmp_path, 1)]
    assert Generator.build(start, tokenizer, tokenizer, 0, pairs).model.encoder.config.window_length == 10
    with pytest.raises(ValueError, match="max_length 600 is more than the 512 positions"):
        Start(size="tiny", max_length=600).build(SpanBERTForTokenClassification, tokenizer, 0)


def test_lines_where_there_is_no_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each tenth, of which none comes sooner than five seconds after the last, or after half a minute."""
    heard: list[str] = []

    def clock(seconds: float) -> Iterator[float]:
        now = 0.0
        while True:
            yield now
            now += seconds

    def lines(seconds: float, parts: int) -> list[str]:
        heard.clear()
        ticks = clock(seconds)
        monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
        now = [next(ticks)]
        with progress.bars(False, heard.append):
            for _ in progress.counted(range(parts), "reading"):
                now[0] = next(ticks)
        return list(heard)

    assert lines(0.01, 100) == []
    assert lines(6.0, 40)[::8] == ["reading 4 of 40 (10 %), 4 min left", "reading 36 of 40 (90 %), 24 s left"]
    assert [line.split(" (")[0] for line in lines(16.0, 1000)[:2]] == ["reading 2 of 1,000", "reading 4 of 1,000"]
    monkeypatch.undo()
    monkeypatch.setattr(progress, "AT_LEAST", 0.0)
    heard.clear()
    with progress.bars(False, heard.append):
        train(tmp_path, scored(0.25), steps=10, evaluate_steps=10, save_steps=None)
    assert [line.split(" (")[0] for line in heard[:9]] == [f"step {step} of 10" for step in range(1, 10)]
    assert "step 10 of 10 (100 %), F1 of the development data 0.250" in heard


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("schedule", "square"),
        ("precision", "int4"),
        ("warmup", 1.5),
        ("head_learning_rate", 0.0),
        ("layer_decay", 1.1),
        ("accumulation", 0),
        ("batch_tokens", 0),
        ("patience", 0),
    ],
)
def test_options_are_checked(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be .*, got '?{value}"):
        TrainingOptions(Path("x"), **{name: value})  # type: ignore[arg-type]


def test_evaluations_need_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="evaluate_steps is 2, but there are no data to evaluate on"):
        train(tmp_path, evaluate_steps=2)


def test_shares_need_other_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="fsdp shards a model over the processes that torchrun starts"):
        TrainingOptions(Path("x"), fsdp=True)
    for name in launch.VARIABLES:
        monkeypatch.setenv(name, "0")
    with pytest.raises(ValueError, match="fp16 needs: use bf16"):
        TrainingOptions(Path("x"), fsdp=True, precision="fp16")


def test_who_hears_of_a_training_is_known_and_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"report_to must be one of .*tensorboard.*, got 'telegraph'"):
        TrainingOptions(Path("x"), report_to=("telegraph",))
    monkeypatch.setattr(training, "get_available_reporting_integrations", list)
    with pytest.raises(ValueError, match="report_to 'wandb' needs what is not installed: pip install wandb"):
        TrainingOptions(Path("x"), report_to=("wandb",))
