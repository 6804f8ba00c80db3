"""What the page and the picture of an explanation show: sentences around what is predicted, document by document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from spanbert_kernels.cli import formatting, pages

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from spanbert_kernels.tasks.explanation import ClusterExplanation, Explanation

ENDS = (".", "!", "?", "\u3002", "\uff01", "\uff1f")
CLOSING, OPENING = frozenset(".,;:!?)]}\u2026\u201d\u00bb%"), frozenset("([{\u201c\u00ab$")
CLITICS = ("'", "\u2019", "n't", "n\u2019t")
GAP = "\u2026"
LONGEST_NAME = 100  # characters
LOOKED_AT = 5  # documents of which each is named
SHORT = 3  # characters of an abbreviation such as Dr.


@dataclass(frozen=True)
class ShownWord:
    """A word of a sentence.

    Attributes:
        text: as it is shown.
        share: of the prediction, between 0 and 1.
        shade: the same beside the largest share.
        part: "about" where the prediction is about it, "other" where it relates that with it, else "".
        space: whether a space follows.
    """

    text: str
    share: float = 0.0
    shade: float = 0.0
    part: str = ""
    space: bool = True


@dataclass(frozen=True)
class ShownPrediction:
    """A prediction in its sentence, and what its words looked at."""

    label: str
    probability: float | None
    words: list[ShownWord]
    seen: dict[str, float]
    of_one_word: bool


@dataclass(frozen=True)
class ShownDocument:
    """Predictions of a document, or of an entity: which of all, those to show, and those of one word to fold away."""

    title: str
    file: str
    first_words: str
    first: int
    last: int
    rows: list[ShownPrediction]
    folded: list[ShownPrediction]


@dataclass(frozen=True)
class Cluster:
    """Documents that are read together, or all that stand alone: which they are of all clusters, and what was seen."""

    title: str
    number: str
    rows: list[ShownPrediction]
    names: list[str]
    files: list[str]
    together: bool = False
    mean: NDArray[np.float32] | None = None
    weights: dict[int, NDArray[np.float32]] = field(default_factory=dict)


def clusters_of(explanations: Sequence[ClusterExplanation]) -> Iterator[Cluster]:
    """Clusters by the names that their documents give them, and in the end the documents that stand alone, as one."""
    numbered = list(enumerate(explanations, start=1))
    for number, each in numbered:
        if len(each.texts) > 1:
            title = f"Cluster {formatting.one_line(each.name)}" if each.name else "Documents"
            yield Cluster(title, str(number), *_documents_of([each]), True, each.mean(), each.weights)
    alone = [(number, each) for number, each in numbered if len(each.texts) == 1]
    if alone:
        title = "Documents" if len(alone) == len(numbered) else "Documents that stand alone"
        yield Cluster(title, str(len(alone)), *_documents_of([each for _, each in alone]))


def _documents_of(clusters: Sequence[ClusterExplanation]) -> tuple[list[ShownPrediction], list[str], list[str]]:
    from spanbert_kernels.tasks.explanation import Explanation

    rows, names, files = [], [], []
    for each in clusters:
        for label, chance, words, shares in zip(
            each.labels, each.probabilities, each.words, each.word_shares, strict=True
        ):
            rows.append(row_of(Explanation("", label, words, shares, probability=chance)))
        names += [f"line {line}" for line in each.lines] or [""] * len(each.texts)
        files += [formatting.path(Path(file)) for file in each.files]
    return rows, names, files


def groups_of(explanations: Sequence[Explanation], fold: bool = False) -> Iterator[ShownDocument]:
    """The explanations document by document, where documents have names, else file by file.

    Where entities have mentions in several documents, entity by entity. With `fold` those of one word are apart, where
    there are longer ones.
    """
    number = 0
    across = across_documents(explanations)
    for title, file, below, spans in _by_entity(explanations) if across else _by_document(explanations):
        rows = [row_of(replace(each, label=title_of(each.file, each.document)) if across else each) for each in spans]
        longer = [row for row in rows if not row.of_one_word] if fold else []
        yield ShownDocument(
            title=title,
            file=file,
            first_words=below,
            first=number + 1,
            last=number + len(rows),
            rows=longer or rows,
            folded=[row for row in rows if row.of_one_word] if longer else [],
        )
        number += len(rows)


def across_documents(explanations: Iterable[Explanation]) -> bool:
    """Whether an entity has mentions in several documents."""
    documents: dict[str, tuple[str, str]] = {}
    return any(
        documents.setdefault(each.entity, (each.file, each.document)) != (each.file, each.document)
        for each in explanations
        if each.entity
    )


def entities_of(explanations: Iterable[Explanation]) -> Iterator[tuple[str, list[Explanation]]]:
    """What an entity is called, and its mentions."""
    for _, group in groupby(explanations, key=lambda each: each.entity):
        own = list(group)
        yield called([" ".join(each.words[place] for place in each.about) for each in own]), own


def called(mentions: Sequence[str]) -> str:
    """An entity by its commonest mention, of those that are never written small if there are any.

    Example:
        >>> called(["it", "It", "the company", "Apple", "it", "Apple"]), called(["the mayor", "she", "she"])
        ('Apple', 'the mayor')
    """
    small = {mention for mention in mentions if mention == mention.lower()}
    names = [mention for mention in mentions if mention.lower() not in small]
    texts = names or [mention for mention in mentions if " " in mention] or list(mentions)
    return Counter(texts).most_common(1)[0][0]


def title_of(file: str, document: str) -> str:
    """A document by its name, or by that of its file."""
    return formatting.one_line(document) or formatting.path(Path(Path(file).name))


Group = tuple[str, str, str, list["Explanation"]]  # its title, its file, what stands below the title, and what is in it


def _by_document(explanations: Sequence[Explanation]) -> Iterator[Group]:
    for (file, document), group in groupby(explanations, key=lambda each: (each.file, name_of(each))):
        own = list(group)
        first = own[0]
        below = pages.first_words(" ".join(first.words)) if document and not first.place else ""
        yield title_of(file, document), formatting.path(Path(file)), below, own


def _by_entity(explanations: Sequence[Explanation]) -> Iterator[Group]:
    for title, own in entities_of(explanations):
        documents = len({(each.file, each.document) for each in own})
        counts = f"{formatting.count(len(own), 'mention')} in {formatting.count(documents, 'document')}"
        yield formatting.one_line(title), "", f"Entity {own[0].entity}, {counts}", own


def name_of(each: Explanation) -> str:
    """The document's name; "" where it is called by its text."""
    begins = each.words and not each.place and each.document.startswith(each.words[0].strip())
    return "" if begins or len(each.document) > LONGEST_NAME else each.document


def row_of(explanation: Explanation) -> ShownPrediction:
    """A prediction with the sentences of what it is about, and of the word that counts most.

    Example:
        >>> import numpy as np
        >>> from spanbert_kernels.tasks.explanation import Explanation
        >>> words = ("It", "rains", ".", "Anna", "King", "laughs", ".")
        >>> shares = np.array([0, 0, 0, 0.5, 0.25, 0.25, 0], dtype=np.float32)
        >>> row = row_of(Explanation("a", "person", words, shares, about=(3, 4)))
        >>> "".join(word.text + " " * word.space for word in row.words), row.words[1].part
        ('… Anna King laughs.', 'about')
    """
    each = explanation
    most = max(float(each.shares.max(initial=0)), 1e-30)
    words: list[ShownWord] = []
    before = -1
    for place in _shown(each):
        if place != before + 1:
            words.append(ShownWord(GAP))
        part = "about" if place in each.about else "other" if place in each.other else ""
        share, space = float(each.shares[place]), _space_after(each.words, place)
        words.append(ShownWord(each.words[place].rstrip(), share, share / most, part, space))
        before = place
    if before + 1 < len(each.words):
        words.append(ShownWord(GAP, space=False))
    return ShownPrediction(each.label, each.probability, words, _most(each.seen), len(each.about) == 1)


def _most(seen: dict[str, float]) -> dict[str, float]:
    """The documents that were looked at most, and together all others.

    Example:
        >>> list(_most({f"d{i}": i / 21 for i in range(7)}))
        ['d6', 'd5', 'd4', 'd3', 'd2', '2 others']
    """
    if len(seen) <= LOOKED_AT + 1:
        return seen
    ordered = sorted(seen.items(), key=lambda entry: -entry[1])
    others = ordered[LOOKED_AT:]
    return {**dict(ordered[:LOOKED_AT]), f"{len(others)} others": sum(share for _, share in others)}


def _shown(each: Explanation) -> list[int]:
    if not each.about:
        return list(range(len(each.words)))
    sentence, of_word = 0, []
    for word in each.words:
        of_word.append(sentence)
        sentence += _ends(word.rstrip())
    most = [int(each.shares.argmax())] if each.shares.any() else []
    wanted = {of_word[place] for place in (*each.about, *each.other, *most)}
    return [place for place, number in enumerate(of_word) if number in wanted]


def _ends(word: str) -> bool:
    """Whether a word ends a sentence; an abbreviation does not."""
    return word in ENDS or (len(word) > SHORT and word.endswith(ENDS) and "." not in word[:-1])


def _space_after(words: Sequence[str], place: int) -> bool:
    """As it stands in a text whose words bring what follows them; else as is usual around punctuation."""
    if place + 1 == len(words):
        return False
    if any(word != word.rstrip() for word in words):
        return words[place] != words[place].rstrip()
    after = words[place + 1]
    return not (after[:1] in CLOSING or after.startswith(CLITICS) or words[place] in OPENING)
