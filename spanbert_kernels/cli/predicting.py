"""`spanbert-kernels predict`: what a trained model finds in files, or in what comes in."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spanbert_kernels.cli.errors import UserError
from spanbert_kernels.cli.files import PATH, check_output, check_output_folder, stream_to
from spanbert_kernels.cli.found import TABLE, table_of
from spanbert_kernels.cli.tasks import backend_option, data_to_read, listed, load_task, task_argument
from spanbert_kernels.cli.terminal import pour, say
from spanbert_kernels.cli.training_options import data_in_words, told, watched
from spanbert_kernels.data.text import STANDARD_INPUT, standard_input
from spanbert_kernels.tasks import atomic
from spanbert_kernels.tasks.registry import BRAT, COLUMNS, JSON, MARKED, SPACY, TASKS

if TYPE_CHECKING:
    from spanbert_kernels.tasks.predictions import Prediction

    Blocks = Iterator[Iterable[Prediction]]

OF_SUFFIX = {
    **dict.fromkeys((".conll", ".conllu", ".bio", ".iob", ".iob2", ".csv", ".tsv"), COLUMNS),
    ".spacy": SPACY,
}


@click.command(
    help=f"""Apply a trained model to DATA, files or folders: what train takes, whose labels are not looked at, or text.

{listed(lambda entry: entry.predicted_for)}

DATA may be - for standard input, line by line as it comes. With several files every prediction names its own.

Exit code: 0; 2 if a file cannot be used.
"""
)
@task_argument
@data_to_read("The same as DATA; may be repeated.")
@click.option("--model", required=True, type=PATH, help="The folder that train wrote.")
@click.option("--output", type=PATH, help="A file, or brat's folder; by default the terminal.")
@click.option(
    "--format",
    "written",
    type=click.Choice([TABLE, *MARKED]),
    help="table: for people, as on a terminal; json: lines with texts and characters, as elsewhere; columns: what "
    "train reads, as in a file .conll, .conllu, .csv or .tsv; spacy: lines of Docs, or a DocBin in a file .spacy; "
    "brat: a folder of .txt and .ann.",
)
@backend_option
def predict(
    task: str, data: tuple[Path, ...], model: Path, output: Path | None, written: str | None, backend: str
) -> None:
    written = written or _usual(task, output)
    known = (TABLE, *TASKS[task].formats)
    if written not in known:
        raise UserError(f"what {task} finds is not written as {written}, but as {', '.join(known)}")
    if written == BRAT and (output is None or STANDARD_INPUT in data):
        raise UserError("brat's files stand in a folder beside the texts: give files, and a folder as --output")
    if STANDARD_INPUT in data and len(data) > 1:
        raise UserError(f"standard input (-) is taken alone, got {len(data)} names")
    if output is not None:
        (check_output_folder if written == BRAT else check_output)("predictions", output)
    found = load_task(task)
    from spanbert_kernels.tasks.progress import bars

    with bars(watched(), told), data_in_words():
        if STANDARD_INPUT in data:
            blocks, several = _of_standard_input(found, model, backend, TASKS[task].by_line), False
        else:
            blocks, several = _of_files(found, data, model, backend)
        _write(found, blocks, several, written, output)


def _usual(task: str, output: Path | None) -> str:
    """The format where none is given."""
    if output is None:
        return TABLE if sys.stdout is not None and sys.stdout.isatty() else JSON
    found = OF_SUFFIX.get(output.suffix.lower(), JSON)
    return found if found in TASKS[task].formats else JSON


def _of_files(task: Any, data: tuple[Path, ...], folder: Path, backend: str) -> tuple[Blocks, bool]:
    from spanbert_kernels.tasks.predicting import predictions_for, several

    items = task.read_to_predict(data)
    return iter([predictions_for(task, task.load(folder), items, backend)]), several(task, items)


def _of_standard_input(task: Any, folder: Path, backend: str, by_line: bool) -> Blocks:
    from spanbert_kernels.data.stream import blocks_of
    from spanbert_kernels.tasks.predicting import predictions_for

    loaded = task.load(folder)
    for text, first in blocks_of(sys.stdin.buffer, by_line):
        if text.strip():
            with standard_input(text, first):
                items = task.read_to_predict([STANDARD_INPUT])
                yield predictions_for(task, loaded, items, backend, first == 1)


def _write(task: Any, blocks: Blocks, several: bool, written: str, output: Path | None) -> None:
    from spanbert_kernels.tasks.formats import spacy_document, write_brat
    from spanbert_kernels.tasks.predicting import line_format
    from spanbert_kernels.tasks.predictions import merged

    if written == BRAT:
        assert output is not None
        with atomic.new_folder(output) as aside:
            write_brat(chain.from_iterable(blocks), aside)
        return
    if output is not None and output.suffix.lower() == ".spacy" and written == SPACY:
        from spanbert_kernels.integrations import spacy_documents

        with atomic.new_file(output) as aside:
            spacy_documents.to_disk(map(spacy_document, merged(chain.from_iterable(blocks))), aside)
        return
    form = table_of(output) if written == TABLE else line_format(task, written)
    lines = form.lines(blocks, several)
    if output is None:
        number = 0
        for line in lines:
            pour(f"{line}\n")
            number += 1
        if written == TABLE and number == 1:  # the header
            say("Nothing was found.")
        return
    with stream_to("predictions", output) as stream:
        stream.writelines(f"{line}\n" for line in lines)
