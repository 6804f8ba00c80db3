"""Other packages' own tests, unmodified, on ours in the place of theirs: which checkouts are known, and their run."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import children

TESTS = Path(__file__).resolve().parents[1]
# Where `make test-integrations` installs packages that ours stands inside of.
INTEGRATIONS = TESTS.parent / "build" / "integrations" / "bin" / "python"


@dataclass(frozen=True)
class Checkout:
    """A package whose tests are run.

    Attributes:
        name: the package's.
        tests: the file or folder of the tests, by which a checkout is known.
        plugin: what puts ours in the place of the package.
        count: tests that there are, at least.
        needs: a package that has to be installed: ours stands inside of it, not in its place.
    """

    name: str
    tests: str
    plugin: str
    count: int
    needs: str | None = None


CHECKOUTS = (
    Checkout("allennlp", "tests/modules/span_extractors", "peers.allennlp_stub", 21),
    Checkout("torch_scatter", "test/test_segment.py", "peers.torch_scatter_stub", 570),
    Checkout("gliner2", "tests/models/span", "peers.gliner2_plugin", 9, needs="gliner2"),
)


def checkout_at(folder: Path) -> Checkout | None:
    """The package whose checkout a folder is."""
    return next((each for each in CHECKOUTS if (folder / each.tests).exists()), None)


def interpreter(checkout: Checkout) -> str | None:
    """The one that has what the tests need, or None."""
    if checkout.needs is None or importlib.util.find_spec(checkout.needs) is not None:
        return sys.executable
    return str(INTEGRATIONS) if INTEGRATIONS.exists() else None


def run(folder: Path, checkout: Checkout) -> bool:
    """Whether all of its tests are there and pass; it prints what pytest says."""
    python = interpreter(checkout)
    if python is None:
        print(f"{checkout.needs} is not installed here, nor in {INTEGRATIONS}: `make test-integrations` installs it")
        return False
    options = [
        "-p",
        checkout.plugin,
        "--noconftest",
        "-c",
        os.devnull,
        "--rootdir",
        str(folder),
        "-p",
        "no:cacheprovider",
    ]
    words = [python, "-m", "pytest", *options, "--import-mode=importlib", "-q", "--disable-warnings"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    done = children.run(
        [*words, "-o", "python_files=*_test.py test_*.py", checkout.tests], cwd=folder, env=environment,
        capture_output=True, text=True,
    )  # fmt: skip
    print(done.stdout[-6000:] + done.stderr[-2000:])
    passed = int((re.findall(r"(\d+) passed", done.stdout) or ["0"])[-1])
    print(f"{checkout.name}: {passed} tests pass on ours")
    return done.returncode == 0 and passed >= checkout.count
