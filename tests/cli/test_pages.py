"""The pages in a browser, as narrow as a telephone: nothing but a scrolling table is wider, no column is of letters."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path

import children
import numpy as np
import pytest
from click.testing import Result
from records.record import load
from records.report import render

from spanbert_kernels.cli.explain import page
from spanbert_kernels.tasks.explanation import ClusterExplanation, Explanation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium to look at pages with"),
]
RECORD = max((Path(__file__).parents[2] / "benchmarks" / "results").glob("*-cpu-*.json"))
URL = "https://example.org/" + "a/very/long/address/" * 9
WIDTH = 390
MEASURE = """
<iframe style="width: %dpx; height: 900px; border: 0" srcdoc="%s"></iframe>
<script>
onload = () => {
  const page = frames[0].document, cells = [...page.querySelectorAll("td")];
  const words = cells.filter(cell => cell.textContent.trim().length > 12);
  const heads = [...page.querySelectorAll("thead th")];
  const speed = heads.filter(each => /speed-up|faster than the/.test(each.textContent));
  document.title = JSON.stringify({
    width: page.documentElement.scrollWidth,
    narrowest: Math.min(...words.map(cell => cell.clientWidth)),
    speed: speed.map(each => Math.round(each.getBoundingClientRect().right)),
    hidden: [...page.querySelectorAll(".predictions")].map(each => each.parentElement)
      .map(each => each.scrollWidth - each.clientWidth),
  });
};
</script>
"""


def measured(html: str, folder: Path) -> dict[str, object]:
    path = folder / "measure.html"
    path.write_text(MEASURE % (WIDTH, escape(html)), encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}", "--dump-dom"]
    done = children.run([*command, path.as_uri()], capture_output=True, text=True)
    return dict(json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1]))  # type: ignore[index]


def assert_fits(html: str, folder: Path, speeds: int = 0) -> None:
    found = measured(html, folder)
    assert int(str(found["width"])) <= WIDTH
    assert float(str(found["narrowest"])) > 60
    speed = found["speed"]
    assert isinstance(speed, list)
    assert not any(found["hidden"])  # type: ignore[arg-type]
    assert len(speed) >= speeds
    assert all(right <= WIDTH for right in speed[:speeds])


def test_the_benchmarks(tmp_path: Path) -> None:
    record = load(RECORD)
    assert_fits(render([replace(record, rows=record.rows[:20])], goals=True), tmp_path, speeds=2)


def test_the_demo(run: Callable[..., Result], corpus: Path, tmp_path: Path) -> None:
    (corpus / f"{'an_endless_name_' * 6}.txt").write_text("The harbour master closed the north gate . " * 9)
    result = run("demo", corpus, "--quick", "--repeats", 1, "--tokens", 300)
    assert result.exit_code == 0, result.output
    assert_fits(Path("spanbert-report.html").read_text(encoding="utf-8"), tmp_path, speeds=1)


def test_an_explanation(tmp_path: Path) -> None:
    words = (("We ", "saw ", URL), ("Nobody ", "did"))
    shares = (np.ones(3, np.float32) / 3, np.ones(2, np.float32) / 2)
    weights = {0: np.full((2, 2, 2), 0.5, np.float32)}
    labels, files = ("good", "bad"), ("a_folder/" * 9 + "a.jsonl", "b.jsonl")
    cluster = ClusterExplanation(tuple(map("".join, words)), labels, (0.9, 0.8), weights, words, shares, files)
    assert_fits(page("a.jsonl", [cluster], []), tmp_path)
    span = Explanation("a_long_document_name" * 3, "entity 1", ("the", URL), shares[1], 3, (1,), seen={URL: 1.0})
    assert_fits(page("a.conll", [], [span]), tmp_path)
