"""`spanbert-kernels encode`: vectors of a corpus of any size."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spanbert_kernels.cli import formatting
from spanbert_kernels.cli.errors import UserError
from spanbert_kernels.cli.files import PATH, check_output_folder, write
from spanbert_kernels.cli.terminal import say
from spanbert_kernels.cli.training_options import COUNT, MOST, PRECISIONS, THREADS, watched

if TYPE_CHECKING:
    from spanbert_kernels.scale.corpus import CorpusProgress, Encoded

REJECTED = 3  # exit code: all is done, but for some records
GIVEN = "given"  # spans that records bring
PAGE = "summary.html"
EVERY, EVERY_ON_TERMINAL = 30.0, 0.5  # seconds between two lines
SHOWN = 200  # rows of a table on the page


class WidthOrGiven(click.ParamType):
    """A number of words, or `given`."""

    name = "W|given"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """The number or the word, or a line that says why it is neither."""
        if value == GIVEN or isinstance(value, int):
            return value
        try:
            number = int(value)
        except ValueError:
            number = 0
        if number < 1:
            self.fail(f"{value!r} is neither a number of words from 1 on nor {GIVEN!r}", param, ctx)
        return number


@click.command()
@click.argument("inputs", nargs=-1, required=True, type=PATH)
@click.option("--model", required=True, help="A folder, hub name, spanbert-base or spanbert-large.")
@click.option("--output", required=True, type=PATH, help="A folder; one that was cut off goes on.")
@click.option("--sentences", is_flag=True, help="A vector for each sentence, in the light of its document.")
@click.option(
    "--spans", type=WidthOrGiven(), help="A vector for each span of up to so many words; given: of each record's own."
)
@click.option("--spans-from", type=PATH, metavar="FILE", help="The same, of JSON lines with id and spans.")
@click.option("--parts", help="What a vector is made of, such as start,end: any of start, end, mean, sum, max.")
@click.option("--clusters", metavar="FIELD", help="Documents in a row that say the same here see each other.")
@click.option("--text", metavar="FIELD", help="Where records have their text, if not in text, content, body, ...")
@click.option("--whole-files", is_flag=True, help="A file of plain text is one document; else a line is.")
@click.option("--max-length", type=click.IntRange(8, MOST), help="Tokens of a window; longer documents are several.")
@click.option("--cut", is_flag=True, help="Of a longer document only the first window counts.")
@click.option("--normalize/--no-normalize", default=None, help="Vectors of length 1; by default as the model says.")
@click.option("--half", is_flag=True, help="Vectors of 16 bits.")
@click.option("--engine", default="local", show_default=True, type=click.Choice(["local", "ray"]), help="Who runs it.")
@click.option("--workers", default=1, show_default=True, type=COUNT, help="Models that work side by side.")
@click.option(
    "--tokenizers",
    default=1,
    show_default=True,
    type=click.IntRange(0, 1024),
    help="Processes for each worker's texts.",
)
@click.option("--batch-tokens", default=8192, show_default=True, type=COUNT, help="Tokens in a batch.")
@click.option("--shard-documents", default=8192, show_default=True, type=COUNT, help="Documents in a file.")
@click.option("--precision", default="float32", show_default=True, type=click.Choice(PRECISIONS), help="Of the model.")
@click.option("--backend", default="auto", show_default=True, type=click.Choice(["auto", "eager"]))
@click.option("--device", help="Where models run, such as cuda:1; by default on GPUs if there are any.")
@click.option("--threads", type=THREADS, help="Threads of each worker for PyTorch; by default its own choice.")
def encode(inputs: tuple[Path, ...], model: str, output: Path, **values: Any) -> None:
    r"""Vectors of documents, sentences or spans, of INPUTS of any size, to a folder of Parquet files.

    INPUTS are files or folders: plain text (a document a line), JSON lines, .csv, .tsv, Parquet; each of them also .gz,
    .bz2, .xz, .zst or .lz4.

    \b
    spanbert-kernels encode corpus.jsonl.gz --model encoder --output vectors
    spanbert-kernels encode articles/ --model spanbert-base --output spans --spans 10 --parts start,end --half

    The folder gets part-*.parquet, manifest.json with hashes, rejects.jsonl with what could not be used, summary.html.
    Where it was cut off, the same command goes on.

    Exit code: 0; 3 if there are rejects; 2 if the input, the model or the folder cannot be used.
    """
    check_output_folder("vectors", output)
    from spanbert_kernels.scale.corpus import REJECTS
    from spanbert_kernels.scale.corpus import encode as encode_corpus
    from spanbert_kernels.scale.processes import WorkerDied

    live = Live()
    wanted = _wanted(model, values)
    try:
        encoded = encode_corpus(inputs, model, output, wanted, hear=live.hear, **values)
    except WorkerDied as error:
        raise UserError(str(error)) from error
    finally:
        live.close()
    write("summary", output / PAGE, page(encoded))
    for line in told(encoded):
        say(line)
    if encoded.manifest["rejects"]:
        first = encoded.first_rejects(1)[0]
        where = f"{formatting.path(Path(first['file']))}, line {first['line']}: {formatting.one_line(first['reason'])}"
        say(f"{encoded.manifest['rejects']:,} rejected: {formatting.path(output / REJECTS)}, first {where}", error=True)
        raise click.exceptions.Exit(REJECTED)


def _wanted(model: str, values: dict[str, Any]) -> Any:
    """Takes the options that say what is wanted out of `values`."""
    from spanbert_kernels.scale.wanted import Wanted, usual

    spans, sentences = values.pop("spans"), values.pop("sentences")
    if values["spans_from"] is not None:
        if spans not in (None, GIVEN):
            raise UserError(f"--spans {spans} and --spans-from are two kinds of spans: give one of them")
        spans = GIVEN
    if spans is not None and sentences:
        raise UserError("--sentences and --spans are two kinds of rows: give one of them")
    own = {name: values.pop(name) for name in ("clusters", "text", "max_length", "cut", "normalize", "half")}
    found = usual(model)
    if spans is not None or sentences:  # what a folder says of vectors is of whole texts
        found = {name: value for name, value in found.items() if name == "max_length"}
    found |= {name: value for name, value in own.items() if value is not None}
    if spans is not None:
        found |= {"rows": "spans", "width": None if spans == GIVEN else spans}
    elif sentences:
        found["rows"] = "sentences"
    if (parts := values.pop("parts")) is not None:
        found["parts"] = tuple(part.strip() for part in parts.split(","))
    return Wanted.of(found)


class Live:
    """The line about work that goes on: on a terminal one that changes, else one every half minute."""

    def __init__(self) -> None:
        self.on_terminal, self.last = watched(), time.monotonic()
        self._bar: Any = None

    def hear(self, progress: CorpusProgress) -> None:
        """Says how far it is, where it is time."""
        now = time.monotonic()
        if now - self.last < (EVERY_ON_TERMINAL if self.on_terminal else EVERY):
            return
        self.last = now
        if not self.on_terminal:
            say(line_of(progress), error=True)
            return
        if self._bar is None:
            from tqdm import tqdm

            self._bar = tqdm(bar_format="{desc}", leave=False)
        self._bar.set_description_str(line_of(progress))

    def close(self) -> None:
        """Takes the line away."""
        if self._bar is not None:
            self._bar.close()


def line_of(progress: CorpusProgress) -> str:
    """How far it is, in a line."""
    total, seconds = progress.total, progress.seconds
    parts = [formatting.count(progress.kept + total.documents, "document")]
    if seconds > 1:
        parts += [
            f"{formatting.rate(total.documents, seconds)}/s",
            f"{formatting.rate(total.tokens, seconds)} tokens/s",
        ]
    parts.append(f"{total.saved:.0%} of padding saved".replace("%", " %"))
    if progress.rejects:
        parts.append(f"{progress.rejects:,} rejected")
    if progress.clusters.count:
        parts.append(f"{formatting.count(progress.clusters.count, 'cluster')} not in a row")
    if (left := progress.left) is not None:
        parts.append(f"{_span(left)} left")
    return ", ".join(parts)


def _span(seconds: float) -> str:
    """A time to wait.

    Example:
        >>> _span(42.0), _span(600.0), _span(9000.0)
        ('42 s', '10 min', '2.5 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def told(encoded: Encoded) -> list[str]:
    """What came of it, in lines."""
    manifest, progress = encoded.manifest, encoded.progress
    total = progress.total
    lines = [
        f"{formatting.count(manifest['documents'], 'document')}, {formatting.count(manifest['rows'], 'vector')} in "
        f"{formatting.count(len(manifest['shards']), 'file')}: {formatting.path(encoded.folder)}"
    ]
    if progress.kept:
        were = "was" if progress.kept == 1 else "were"
        lines.append(f"{formatting.count(progress.kept, 'document')} {were} there from an earlier run")
    if total.documents:
        lines.append(
            f"{formatting.rate(total.documents, progress.seconds)} documents/s, "
            f"{formatting.rate(total.tokens, progress.seconds)} tokens/s in {_span(progress.seconds)}; "
            f"{total.saved:.0%} of padding saved".replace("%", " %")
        )
    return lines


def page(encoded: Encoded) -> str:
    """The summary page."""
    from spanbert_kernels.cli.pages import render

    manifest = encoded.manifest
    return render(
        "encoded.html",
        manifest=manifest,
        lines=told(encoded),
        progress=encoded.progress,
        shown=SHOWN,
        rejects=encoded.first_rejects(SHOWN),
        count=formatting.count,
    )
