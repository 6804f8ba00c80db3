"""Other packages' own tests, from a checkout: `run.py FOLDER [FAMILY ...]`.

AllenNLP's of its span extractors and torch_scatter's of segments run on ours in the place of theirs, GLiNER2's of its
span models on ours inside of it (`stand_ins.py`).

Of transformers it is the model tests, for every family in the table. Each family's tests run twice, with models as they
are and with models that are accelerated when they are made. A test that fails in the second run alone is a new failure.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(TESTS.parent), str(TESTS)]

import children  # noqa: E402
import transformers  # noqa: E402

from peers import plugin, stand_ins  # noqa: E402
from spanbert_kernels.acceleration.families import FAMILIES  # noqa: E402

WANTED = (
    "PEERS must name a folder of transformers' sources that has tests/models/<family>/test_modeling_*.py: a checkout "
    f"of version {transformers.__version__}, which is installed here, or of one near it; or a checkout of "
    + " or ".join(f"{each.name} with {each.tests}" for each in stand_ins.CHECKOUTS)
)


@dataclass
class Outcome:
    """Of one run of a family's tests: what became of each, how many calls took which path, and what was printed."""

    outcomes: dict[str, str] = field(default_factory=dict)
    paths: Counter[str] = field(default_factory=Counter)
    output: str = ""

    @property
    def packed(self) -> int:
        """Calls that took the packed path."""
        return sum(count for path, count in self.paths.items() if path.startswith("packed"))


def tests_of_families() -> dict[str, str]:
    """The file of each family's tests in transformers, by the name of the family's folder there.

    Example:
        >>> tests_of_families()["bert"]
        'tests/models/bert/test_modeling_bert.py'
    """
    parts = [family.module.split(".") for family in FAMILIES]
    return {folder: f"tests/models/{folder}/test_{module}.py" for *_, folder, module in parts}


def new_failures(plain: Outcome, accelerated: Outcome) -> list[str]:
    """Tests that passed, or were skipped, with models as they are, and do not with accelerated ones.

    Example:
        >>> new_failures(Outcome({"a": "failed", "b": "passed"}), Outcome({"a": "failed", "b": "skipped"}))
        ['b: passed before, skipped now']
    """
    return [
        f"{test}: {before} before, {now} now"
        for test, before in plain.outcomes.items()
        if (now := accelerated.outcomes.get(test, "not run")) != before and now != "passed"
    ]


def run_tests(folder: Path, file: str, accelerated: bool, runs: bool, options: list[str]) -> Outcome:
    """One run of a file's tests, in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        outcomes = Path(scratch, "outcomes.json")
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
            "HF_HUB_OFFLINE": "1",
            plugin.ACCELERATE: str(int(accelerated)),
            plugin.RUNS: str(int(runs)),
            plugin.OUTCOMES: str(outcomes),
        }
        words = [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "peers.plugin",
            "-p",
            "no:cacheprovider",
            "-q",
            "--tb=short",
            "--disable-warnings",
        ]
        words += ["-o", "log_cli=false", *options, file]
        done = children.run(words, cwd=folder, env=environment, capture_output=True, text=True)
        found = json.loads(outcomes.read_text()) if outcomes.is_file() else {"outcomes": {}, "paths": {}}
        return Outcome(found["outcomes"], Counter(found["paths"]), done.stdout + done.stderr)


def compare(folder: Path, name: str, file: str, options: list[str]) -> list[str]:
    """What is wrong with a family, a line each; it prints what was counted."""
    runs = any(family.distances for family in FAMILIES if family.module.split(".")[2] == name)
    plain, accelerated = (run_tests(folder, file, way, runs, options) for way in (False, True))
    counts = Counter(accelerated.outcomes.values())
    print(f"{name}: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped;", end=" ")
    print(f"{accelerated.packed} of {accelerated.paths.total()} calls packed", flush=True)
    wrong = new_failures(plain, accelerated)
    if not plain.outcomes:
        wrong.append(f"{file} did not run")
    elif counts["passed"] and not accelerated.packed:
        wrong.append("not one call was packed")
    if wrong:
        print((accelerated if plain.outcomes else plain).output.rpartition("= FAILURES =")[2])
    return [f"{name}: {line}" for line in wrong]


def main(arguments: list[str] | None = None) -> int:
    """0 where no test fails that does not fail without acceleration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", default="", help="transformers' sources")
    parser.add_argument("families", nargs="*", help="all of them by default")
    parser.add_argument("-k", dest="chosen", help="as pytest takes it: these tests alone")
    options = parser.parse_args(arguments)
    folder, files = Path(options.folder).resolve(), tests_of_families()
    checkout = stand_ins.checkout_at(folder) if options.folder else None
    if checkout is not None:
        return 0 if stand_ins.run(folder, checkout) else 1
    if not options.folder or not (folder / "tests" / "models").is_dir():
        print(WANTED if not options.folder else f"{WANTED}; {options.folder} has none", file=sys.stderr)
        return 2
    unknown = set(options.families) - files.keys()
    if unknown:
        print(f"no family {', '.join(sorted(unknown))}; there are {', '.join(files)}", file=sys.stderr)
        return 2
    missing = [name for name, file in files.items() if not (folder / file).is_file()]
    chosen = [name for name in options.families or files if name not in missing]
    selection = [] if options.chosen is None else ["-k", options.chosen]
    wrong = [line for name in chosen for line in compare(folder, name, files[name], selection)]
    if missing:
        print(f"without tests there: {', '.join(missing)}")
    print("\n".join([*wrong, f"{len(chosen)} families, {len(wrong)} new failures"]))
    return 1 if wrong or not chosen else 0


if __name__ == "__main__":
    sys.exit(main())
