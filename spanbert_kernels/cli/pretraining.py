"""`spanbert-kernels pretrain`: SpanBERT's pre-training on a user's texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich import box
from rich.table import Table

from spanbert_kernels.cli import formatting
from spanbert_kernels.cli.errors import UserError
from spanbert_kernels.cli.files import PATH
from spanbert_kernels.cli.terminal import Console, say, warn
from spanbert_kernels.cli.training_options import COUNT, MOST, Number, data_in_words, options_of, training_options
from spanbert_kernels.cli.training_outcome import say_losses, write_card
from spanbert_kernels.data.counts import left_out, took
from spanbert_kernels.extras import require
from spanbert_kernels.tasks import launch


@click.command()
@click.argument("paths", nargs=-1, required=True, type=PATH, metavar="PATH ...")
@click.option("--length", default=128, show_default=True, type=click.IntRange(8, MOST), help="Tokens in a block.")
@click.option("--held-out", default=0.1, show_default=True, type=Number(0, 0.9), help="Share of documents to test on.")
@click.option("--evaluate-steps", type=COUNT, help="Batches between tests on the held-out documents.")
@click.option(
    "--heads",
    type=PATH,
    help="The released file with encoder and heads (model.pt of spanbert_large_with_head), instead of --model's.",
)
@training_options
def pretrain(
    paths: tuple[Path, ...], length: int, held_out: float, evaluate_steps: int | None, heads: Path | None, **values: Any
) -> None:
    """Pre-train with span masking and the span boundary objective.

    PATH is a text file, a folder, JSON lines, a table, CoNLL-U or CoNLL columns. Model and tokenizer go to the output
    folder.

    Exit code: 0; 2 if there is nothing to work on or a value is wrong.
    """
    require("accelerate", "tasks")
    from spanbert_kernels.cli.collecting import collect

    with data_in_words():
        collection = collect(paths)
        for path, reason in [*collection.skipped, *collection.faults]:
            warn(f"{formatting.path(path)} {reason}")
        texts = [document.text for document in collection.documents]
        took("document", len(texts))
        left_out("document", "met before", collection.duplicates)
        left_out("file", "that cannot be read", len(collection.skipped))
        left_out("file", "that is no document", len(collection.passed_over))
        if not texts:
            raise UserError("no document to train on")
    from spanbert_kernels import SpanBERTForPreTraining
    from spanbert_kernels.models import load_released_heads
    from spanbert_kernels.tasks.pretraining import pretrain as run

    every = round(1 / held_out) if held_out else 0
    test = texts[every - 1 :: every] if every else []
    train = [text for i, text in enumerate(texts) if not every or i % every != every - 1]
    if evaluate_steps is not None and not test:
        found = f"--held-out {held_out:g} of {formatting.count(len(texts), 'document')} is none"
        raise UserError(f"--evaluate-steps tests on held-out documents, and {found}: give more, or leave it out")
    start, options = options_of(values, evaluate_steps=evaluate_steps)
    tokenizer = start.tokenizer(train)
    fields = {} if start.model else {"max_position_embeddings": max(512, length)}
    model = start.build(SpanBERTForPreTraining, tokenizer, options.seed, **fields)
    if heads is not None:
        load_released_heads(model, heads)
    with data_in_words() as counts:
        training = run(model, tokenizer, train, test, options, length)
    if launch.rank():
        return
    write_card("pretraining", start, options, training, counts, {"texts": paths})
    say_losses(training)
    _show(training.log, Console(highlight=False))
    paths_taken = ", ".join(f"{name} ({calls:,} calls)" for name, calls in training.paths.items())
    say(f"Ran: {paths_taken or 'the original path'}. Model: {formatting.path(options.output)}")


def _show(log: list[dict[str, float]], console: Console) -> None:
    """The losses over the steps: on the training batches, and on held-out documents where they were tested."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in ("step", "loss", "held-out MLM", "held-out SBO"):
        table.add_column(name, justify="right")
    by_step: dict[int, dict[str, float]] = {}
    for entry in log:
        by_step.setdefault(int(entry["step"]), {}).update(entry)
    steps = sorted(by_step)
    shown = steps if len(steps) <= 20 else [s for s in steps if "eval_mlm_loss" in by_step[s] or s == steps[-1]]
    shown = [step for step in shown if by_step[step].keys() & {"loss", "eval_mlm_loss"}]
    if not shown:  # too few steps for any to be logged
        return
    for step in shown:
        row = by_step[step]
        cells = (row.get(name) for name in ("loss", "eval_mlm_loss", "eval_sbo_loss"))
        table.add_row(f"{step:,}", *("" if value is None else f"{value:.3f}" for value in cells))
    console.print(table)
