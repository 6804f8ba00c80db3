"""What the page and the picture of an explanation show: names, sentences, numbers, and words where their width ends."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from spanbert_kernels.cli import explained_picture
from spanbert_kernels.cli.explain import page
from spanbert_kernels.cli.explained import groups_of, row_of
from spanbert_kernels.tasks.explanation import Explanation

WORDS = ("Dr.", "Li", "left", ".", "She", "saw", "the", "old", "mayor", ",", "e.g.", "once", ".", "It", "rained", ".")


def mention(first: int, last: int, most: int = 0, document: str = "talk", file: str = "a.txt") -> Explanation:
    shares = np.zeros(len(WORDS), dtype=np.float32)
    shares[most or first] = 1.0
    return Explanation(document, "person", WORDS, shares, about=tuple(range(first, last + 1)), file=file)


def text(each: Explanation) -> str:
    return "".join(word.text + " " * word.space for word in row_of(each).words)


def test_a_mention_stands_in_its_sentence() -> None:
    """And with that of the word that counts most; abbreviations end none."""
    assert text(mention(6, 8)) == "… She saw the old mayor, e.g. once. …"
    assert text(mention(6, 8, most=14)) == "… She saw the old mayor, e.g. once. It rained."
    assert text(mention(1, 1, most=14)) == "Dr. Li left. … It rained."


def test_mentions_of_one_word_are_folded_where_there_are_longer_ones() -> None:
    spans = [mention(1, 1), mention(6, 8), mention(8, 8), mention(1, 1, document="other", file="b.txt")]
    first, second = groups_of(spans, fold=True)
    assert (first.title, first.first, first.last, len(first.rows), len(first.folded)) == ("talk", 1, 3, 1, 2)
    assert first.first_words.startswith("Dr. Li left")
    assert (second.title, second.file, second.first, len(second.rows), second.folded) == ("other", "b.txt", 4, 1, [])
    (unfolded, _) = groups_of(spans)
    assert len(unfolded.rows) == 3
    html = page("both", [], spans, fold=True)
    assert "<summary>2 of one word</summary>" in html
    assert "a.txt, 1 to 3 of 4" in html
    assert "--limit" not in html
    assert "first 4 of 9; a larger <code>--limit</code>" in page("both", [], spans, "9")


def test_entities_across_documents_are_shown_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their names, with the documents that each mention looked at most; the picture has a dot a document."""
    seen = {f"d{i}": i / 28 for i in range(8)}

    def mention_of(entity: str, document: str, *about: int) -> Explanation:
        none = np.zeros(len(WORDS), dtype=np.float32)
        return Explanation(document, f"entity {entity}", WORDS, none, about=about, seen=seen, entity=entity)

    spans = [mention_of("7", "d0", 1), mention_of("7", "d1", 0, 1), mention_of("7", "d1", 1), mention_of("2", "d1", 4)]
    first, second = groups_of(spans, fold=True)
    assert (first.title, first.first_words, first.last) == ("Li", "Entity 7, 3 mentions in 2 documents", 3)
    assert ([row.label for row in first.rows], [row.label for row in first.folded]) == (["d1"], ["d0", "d1"])
    assert list(first.rows[0].seen) == ["d7", "d6", "d5", "d4", "d3", "3 others"]
    assert (second.title, second.first) == ("She", 4)
    html = page("news", [], spans, fold=True)
    assert "integrated gradients" not in html
    assert "<th>document</th>" in html
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **more: drawn.append(figure))
    explained_picture.draw("news", [], spans, tmp_path / "a.png")
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["Li, 3", "She, 1"]
    assert [len(dots.get_offsets()) for dots in axes.collections] == [2, 1]


def test_a_document_that_is_called_by_its_text_is_of_its_file() -> None:
    sentences = [mention(1, 1, document=" ".join(WORDS)), mention(6, 8, document=" ".join(WORDS))]
    (group,) = groups_of(sentences)
    assert (group.title, group.first_words) == ("a.txt", "")


def test_words_are_placed_by_their_measured_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a row no word reaches into the next one, none leaves the picture; the title says how many of how many."""
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **more: (drawn.append(figure), save(figure, *a, **more)))
    wide = ("WWWWWWWWWWWW", "iiiiiiii") * 5
    shares = np.linspace(0, 1, len(wide), dtype=np.float32)
    spans = [Explanation("talk", "person", wide, shares, file="a.txt")] * 14
    explained_picture.draw("talk", [], spans, tmp_path / "a.png")
    (figure,) = drawn
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [each.get_window_extent(renderer) for each in figure.texts if each.get_text() in wide]
    assert len(boxes) > 100
    for box, after in pairwise(boxes):
        assert box.x1 <= explained_picture.WIDTH
        assert after.x0 >= box.x1 - 1 or after.y1 < box.y0 + 1
    assert figure.texts[0].get_text() == "talk: 12 of 14"
    assert {" 0 ", " 0.5 ", " 1 "} <= {each.get_text() for each in figure.texts}
