"""The tables of README.md, docs/ and SCALING.md, made from the newest records in `results/`; nobody types them.

    python benchmarks/readme_tables.py [--check]

fills what stands between `<!-- speed: NAME -->` and `<!-- end -->`; with --check it only says whether that differs.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import memory
import scaling
from corpus_encoding import recording as corpus_records
from corpus_encoding import tables as corpus_tables
from efficiency import page as efficiency_page
from efficiency.predicted import predicted
from records.record import NotARecord, Record, Row, load
from roof import keeping
from roof.table import markdown
from task_results import ablations
from task_results import tables as task_tables

FOLDER = Path(__file__).resolve().parent
DOCS = FOLDER.parent / "docs"
PAGES = (
    *(FOLDER.parent / "README.md", FOLDER / "SCALING.md"),
    *(DOCS / f"{name}.md" for name in ("benchmarks", "encode", "span-packages", "tasks")),
)
MARKED = re.compile(r"(<!-- speed: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
BESIDE = {"encoder": ("encoder_padding", "encoder_training")}
FORWARD, BOTH = "forward", "forward and backward"
F32, BF16 = "float32", "bfloat16"


# A record that has these is one of all suites; another is of some suites, measured again later.
WHOLE = {"encoder", "document_attention", "cross_document_attention", "cross_document_mixer", "span_pool", "span_score"}


@dataclass(frozen=True)
class Results:
    """A record, its file's name, and later ones of single suites, the newest first."""

    record: Record
    name: str
    later: tuple[Results, ...] = ()

    @property
    def suites(self) -> set[str]:
        return {row.suite for row in self.record.rows}

    def of(self, suite: str) -> Results:
        """The newest results of a suite."""
        return next((each for each in self.later if suite in each.suites), self)

    def rows(self, *suites: str) -> Iterator[Row]:
        """The newest of some suites."""
        for suite in suites:
            yield from (row for row in self.of(suite).record.rows if row.suite == suite)

    def find(self, suite: str, workload: str, direction: str = FORWARD, dtype: str = F32) -> Row | None:
        """The row of a suite, or of those beside it."""
        for row in self.rows(suite, *BESIDE.get(suite, ())):
            if (row.workload, row.direction, row.dtype) == (workload, direction, dtype):
                return row
        return None

    def row(self, suite: str, workload: str, direction: str = FORWARD, dtype: str = F32) -> Row:
        row = self.find(suite, workload, direction, dtype)
        if row is None:
            raise click.ClickException(f"{self.of(suite).name} has no row {suite}: {workload}, {direction}, {dtype}")
        return row


def newest(device: str, whole: Collection[str] = ()) -> Results | None:
    """The newest record of a kind of device that has some suites at least, and what was measured again since."""
    found = []
    for path in sorted((FOLDER / "results").glob("*.json")):
        try:
            record = load(path)
        except NotARecord:
            continue
        if not record.quick and record.rows and all(row.device == device for row in record.rows):
            found.append(Results(record, path.name))
    found.sort(key=lambda each: (each.record.date, each.name), reverse=True)
    for place, each in enumerate(found):
        if each.suites.issuperset(whole):
            return Results(each.record, each.name, tuple(found[:place]))
    return None


def number(value: float | None) -> str:
    """Three digits.

    Example:
        >>> number(1234.5), number(12.34), number(0.1234), number(None)
        ('1,234', '12.3', '0.123', '')
    """
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:#.3g}".rstrip(".")


def time_of(row: Row, provider: str) -> str:
    """Milliseconds, or why there are none."""
    entry = row.providers.get(provider)
    return "" if entry is None else number(entry.milliseconds) or entry.unavailable


def table(columns: Sequence[str], lines: Iterator[list[str]]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *lines)) + "\n"


def machine(results: Results) -> str:
    about = results.record.machine
    told = (
        f"Measured on {_processor(results)} with torch {results.record.versions['torch']}; figures are from "
        f"`benchmarks/results/{results.name}`, taken in processes {about['processes']}. {memory.PROCESSES}"
    )
    for each in results.later:
        told += f" Of {', '.join(sorted(each.suites))}: `benchmarks/results/{each.name}`, on {_processor(each)}."
    return f"{told}\n"


def _processor(results: Results) -> str:
    about = results.record.machine
    details = ", ".join(about[name] for name in ("vendor", "cores", "vector instructions"))
    return f"{about['processor']} ({details})"


# A record holds those that its commit's suites had.
ENCODER = [
    ("16 documents, 39 % of the padded batch real", "16 documents", FORWARD, F32),
    ("the same, bfloat16", "16 documents", FORWARD, BF16),
    ("8 documents, a training step with dropout", "8 documents, dropout 0.1", BOTH, F32),
    ("one sentence of 24 tokens", "one sentence of 24", FORWARD, F32),
    ("16 x 128 tokens, nothing to remove", "16 x 128", FORWARD, F32),
    ("5 real documents (GUM), up to 512 tokens", "5 documents of gum, up to 512 tokens", FORWARD, F32),
]


def encoder(results: Results) -> str:
    def lines() -> Iterator[list[str]]:
        for label, *key in ENCODER:
            row = results.find("encoder", *key)
            if row is None:
                continue
            rival = next(name for name in row.rivals if name.startswith("transformers, "))
            eager = "transformers, eager"
            yield [
                label,
                f"{row.speed_up(rival):.2f}",
                number(row.ours.milliseconds),
                f"{time_of(row, rival)} ({rival.removeprefix('transformers, ')})",
                f"{row.speed_up(eager):.2f}" if eager in row.providers else "",
            ]

    return table(["", "speed-up", "ours, ms", "the fastest of transformers', ms", "against its eager"], lines())


def families(results: Results) -> str:
    def lines() -> Iterator[list[str]]:
        for row in results.rows("encoder_families"):
            rival = next(name for name in row.rivals if name.startswith("transformers, "))
            name = f"{row.workload}{'' if row.direction == FORWARD else ', a training step'}, {row.dtype}"
            theirs = f"{time_of(row, rival)} ({rival.removeprefix('transformers, ')})"
            yield [name, f"{row.speed_up(rival):.2f}", time_of(row, "ours"), theirs]

    found = list(lines())
    columns = ["", "speed-up", "ours, ms", "the fastest of transformers', ms"]
    return table(columns, iter(found)) if found else "Not measured yet.\n"


ACROSS = "8 clusters x 10 documents x 64 tokens"
ATTENTION = [
    ("16 documents, forward", "document_attention", "16 documents", FORWARD),
    ("forward and backward", "document_attention", "16 documents", BOTH),
    (f"{ACROSS}, all tokens but one's own, forward", "cross_document_attention", ACROSS, FORWARD),
    ("forward and backward", "cross_document_attention", ACROSS, BOTH),
]


def attention(results: Results) -> str:
    def lines() -> Iterator[list[str]]:
        for label, suite, workload, direction in ATTENTION:
            rows = [results.row(suite, workload, direction, dtype) for dtype in (F32, BF16)]
            whole, parts = ("SDPA padded", "SDPA per document")
            if suite == "cross_document_attention":
                whole, parts = ("SDPA, dense mask", "SDPA per cluster, mask")
            yield [
                label,
                *(
                    f"{time_of(rows[0], name)} ({time_of(rows[1], name)})" if time_of(rows[0], name) else ""
                    for name in ("ours", whole, "FlexAttention, compiled", parts)
                ),
            ]

    columns = ["", "ours, ms (bfloat16)", "SDPA, padded or dense mask", "FlexAttention", "SDPA per document or cluster"]
    return table(columns, lines())


def anchors(results: Results) -> str:
    key = ("cross_document_attention", "anchors of 200 clusters of 3 to 20")
    forward, both = results.row(*key), results.row(*key, BOTH)
    half, half_both = results.row(*key, FORWARD, BF16), results.row(*key, BOTH, BF16)
    eager, floor = "padded, masked", "its matrix products"
    mixer = results.row("cross_document_mixer", "anchors of 200 clusters")
    return (
        f"Anchors of 200 clusters of 3 to 20 documents: {time_of(forward, 'ours')} ms against "
        f"{time_of(forward, eager)} ms of padded eager PyTorch (bfloat16: {time_of(half, 'ours')} and "
        f"{time_of(half, eager)}), with the backward {time_of(both, 'ours')} against {time_of(both, eager)} "
        f"({time_of(half_both, 'ours')} and {time_of(half_both, eager)}). The whole sub-layer takes "
        f"{1 / mixer.speed_up(floor):.2f} times as long as its matrix products.\n"
    )


ALL = "all spans up to 30 of 512"
SPANS = [
    ("`max`", "span_pool", f"max, {ALL}", FORWARD),
    ("`mean`", "span_pool", f"mean, {ALL}", FORWARD),
    ("`attention`", "span_pool", f"attention, {ALL}", FORWARD),
    ("`start,end,attention,width`, forward and backward", "span_pool", f"coreference, {ALL}", BOTH),
    ("random spans, `mean`", "span_pool", "mean, 100,000 random spans up to 64 of 64 x 512", FORWARD),
    ("`span_score`, 3,000 hidden units", "span_score", "3000 units", FORWARD),
    ("`span_score`, forward and backward", "span_score", "3000 units", BOTH),
]


def spans(results: Results) -> str:
    def lines() -> Iterator[list[str]]:
        for label, *key in SPANS:
            row = results.row(*key)
            eager = next(name for name, entry in row.providers.items() if entry.kind == "eager")
            others = [name for name in row.rivals if name not in (eager, "project, add in chunks")]
            peaks = (number(row.ours.peak), number(row.providers[eager].peak))
            best = f"{time_of(row, others[0])} ({others[0]})"
            yield [label, time_of(row, "ours"), time_of(row, eager), best, f"{peaks[0]} ({peaks[1]})"]

    columns = ["", "ours, ms", "eager, ms", "the best that users take instead, ms", "peak memory, MB (eager's)"]
    return table(columns, lines())


WAYS = (
    *("OpenVINO", "ONNX Runtime", "CTranslate2", "torch.compile, frozen", "transformers, sdpa", "transformers, eager"),
    *("PyTorch, dynamic int8", "oneDNN's products alone"),
)
LIBRARIES = ("openvino", "nncf", "onnxruntime", "ctranslate2", "torch", "transformers")


def runtimes(results: Results) -> str:
    """How many times faster than each other way, with the quartiles over rounds, and everyone's error."""
    rows = [row for row in results.rows("encoder") if "OpenVINO" in row.providers]
    if not rows:
        return "Not measured yet.\n"
    ways = [name for name in WAYS if any(name in row.providers for row in rows)]

    def speeds() -> Iterator[list[str]]:
        for row in rows:
            yield [f"{row.workload}, {row.dtype}", number(row.ours.milliseconds), *(_ratio(row, name) for name in ways)]

    def errors() -> Iterator[list[str]]:
        for row in rows:
            entries = [row.providers.get(name) for name in ("ours", *ways)]
            shares = [
                "" if each is None or each.error is None else f"{each.error / row.largest:.1e}" for each in entries
            ]
            yield [f"{row.workload}, {row.dtype}", *shares]

    about = results.of("encoder").record
    versions = ", ".join(f"{name} {about.versions[name]}" for name in LIBRARIES if name in about.versions)
    missing = {f"{n} {e.unavailable}" for row in rows for n, e in row.providers.items() if e.unavailable}
    return (
        f"{table(['', 'ours, ms', *ways], speeds())}\nWith {versions} on a processor of {about.machine['vendor']}. "
        f"{' '.join(f'No figure: {reason}.' for reason in sorted(missing))}\n\n"
        f"Errors, as a share of the largest value:\n\n{table(['', 'ours', *ways], errors())}"
    )


def _ratio(row: Row, name: str) -> str:
    entry = row.providers.get(name)
    if entry is None or entry.milliseconds is None:
        return ""
    if entry.ratio is None:
        return number(row.speed_up(name))
    low, middle, high = entry.ratio
    return f"{number(middle)} ({number(low)} to {number(high)})"


ASKED = ("demo", "encoder", "encoder_training", "encoder_families", "span_layers")


def goals(results: Results) -> str:
    """What was asked of encoders, of span layers, of pooling all spans and of the demo, and what came out."""

    def lines() -> Iterator[list[str]]:
        for row in results.rows(*ASKED, "span_pool"):
            pooling = row.direction == FORWARD and row.workload.endswith(ALL)
            for goal in row.goals if pooling or row.suite != "span_pool" else ():
                word, _, text = goal.partition(": ")
                yield [f"{row.suite}: {row.title}", word, text]

    return table(["", "", "measured and asked"], lines())


def span_layers(package: str, results: Results) -> str:
    """What replacing a package's span layers gains: the rows whose names begin with it, losses included."""

    def lines() -> Iterator[list[str]]:
        for row in results.rows("span_layers"):
            if not row.workload.startswith(f"{package}: "):
                continue
            original = row.providers["original"]
            peaks = [number(entry.peak) for entry in (row.ours, original)]
            asked = " ".join(goal.partition(":")[0] for goal in row.goals)
            yield [
                row.title.removeprefix(f"{package}: "),
                _ratio(row, "original"),
                time_of(row, "ours"),
                time_of(row, "original"),
                f"{peaks[0]} ({peaks[1]})" if all(peaks) else "",
                asked,
            ]

    found = list(lines())
    columns = ["", "speed-up (quartiles)", "ours, ms", "the package's, ms", "peak memory, MB (the package's)", "goal"]
    return table(columns, iter(found)) if found else "Not measured yet.\n"


def refused(results: Results) -> str:
    """Workloads of the newest records that got no row: what was wrong with our result, or what stopped the run."""
    found = [
        f"- {each['suite']}: {each['workload']}: {each['reason']}"
        for one in (results, *results.later)
        for each in one.record.failures
        if results.of(each["suite"]) is one
    ]
    lines = ["Without a figure, refused when the result was checked:", "", *found] if found else ["None was refused."]
    return "\n".join(lines) + "\n"


TABLES: dict[str, Callable[[Results], str]] = {
    "machine": machine,
    "refused": refused,
    "encoder": encoder,
    "families": families,
    "runtimes": runtimes,
    "goals": goals,
    "attention": attention,
    "anchors": anchors,
    "spans": spans,
    "rates": lambda results: table(scaling.RATES_COLUMNS, scaling.rates(results.row, results.record.ceilings)),
    "costs": lambda results: table(scaling.COSTS_COLUMNS, scaling.costs(results.row)),
}
OF_PACKAGE = "span_layers_"


def gpu() -> str:
    results = newest("cuda")
    if results is None:
        return "On a GPU: not measured yet.\n"

    def lines() -> Iterator[list[str]]:
        for row in results.record.rows:
            rival = next(iter(row.rivals), "")
            yield [
                f"{row.suite}: {row.workload}, {row.direction}",
                f"{number(row.ours.milliseconds)} ({row.ours.ran})",
                f"{time_of(row, rival)} ({rival})" if rival else "",
                f"{row.ours.share:.0%}",
            ]

    about = f"On {results.record.machine['gpu']} (`benchmarks/results/{results.name}`):\n\n"
    return about + table(["", "ours, ms", "fastest other, ms", "of the floor"], lines())


def efficiency() -> str:
    """What is predicted of 8 to 512 GPUs, from the records of least times and of encodings."""
    roof = keeping.load(keeping.newest())
    times = predicted(roof.rows("now"), roof.content["card"], roof.content["reached"])
    path = corpus_records.newest()
    record = corpus_records.load(path)
    stages = next((each["stages"] for each in record["measurements"] if each["what"] == "stages"), None)
    if path is None or stages is None:
        return "Not measured yet.\n"
    return efficiency_page.efficiency(times, stages, (roof.path.name, path.name), record["machine"]["processor"], table)


def filled(text: str) -> str:
    """A page with its tables made anew."""
    results = newest("cpu", WHOLE)
    if results is None:
        raise click.ClickException("benchmarks/results holds no full record of a CPU")

    def made(match: re.Match[str]) -> str:
        name = match[2]
        if name == "gpu":
            content = gpu()
        elif name == "roof":
            content = markdown(keeping.load(keeping.newest()), keeping.measured())
        elif name == "corpus":
            path = corpus_records.newest()
            content = corpus_tables.section(corpus_records.load(path), path.name if path else "", table)
        elif name == "efficiency":
            content = efficiency()
        elif name == "tasks":
            content = task_tables.tasks(table)
        elif name == "ablations":
            content = ablations.section(table)
        elif name.startswith(OF_PACKAGE):
            content = span_layers(name.removeprefix(OF_PACKAGE), results)
        elif name in TABLES:
            content = TABLES[name](results)
        else:
            others = ("gpu", "roof", "corpus", "efficiency", "tasks", "ablations")
            raise click.ClickException(f"there is no table {name}; there are {', '.join([*TABLES, *others])}")
        return f"{match[1]}{content}{match[3]}"

    return MARKED.sub(made, text)


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; exit code 1 if a page differs from the records.")
def main(check: bool) -> None:
    """Fill the speed tables of README.md, docs/ and SCALING.md from the newest records."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = filled(text)
        if new == text:
            continue
        if check:
            click.echo(f"{page.name} differs from the records: run python benchmarks/readme_tables.py")
            sys.exit(1)
        page.write_text(new, encoding="utf-8")
        click.echo(f"{page.name}: written")


if __name__ == "__main__":
    main()
