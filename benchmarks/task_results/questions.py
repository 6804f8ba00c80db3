"""Questions made by rule of annotated entities, as SQuAD's JSON: who and where.

A sentence of five words or more in which a person, or in meantime a person or an organisation, is mentioned otherwise
than by a pronoun asks "who": the mention becomes "who". One in which a place follows a preposition of place asks
"where": preposition and mention become "where". Of mentions in each other the longest asks. The text is the passage of
eight sentences of the document that holds the sentence; an answer is the mention, and every other mention of the same
entity in that passage that is no pronoun and stands outside of the sentence. Documents to train, to choose and to test
on are apart: gum's own parts, and meantime's as `every_third` has them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from spanbert_kernels.data.conll_coref import MarkedDocument, Mention
from spanbert_kernels.data.entities import read_marked

from .splits import PARTS, Split, every_third

PASSAGE = 8  # sentences
SHORTEST = 5  # words of a sentence
WHO, WHERE = ("person", "PER", "ORG"), ("place", "LOC")
PREPOSITIONS = frozenset(("in", "at", "near", "from", "to", "into", "around", "across"))
PRONOUNS = frozenset(
    re.findall(
        r"\w+",
        "i me my mine myself you your yours yourself he him his himself she her hers herself it its itself we us our "
        "ours ourselves they them their theirs themselves who whom whose which that this these those here there where "
        "one",
    )
)
CODE = re.compile(r"(?:cross_|intra_)+([A-Z]{3})\d")  # meantime names kinds in its entities' names


def sentences_of(document: MarkedDocument) -> list[tuple[int, int]]:
    """The first word of each sentence and the one after its last: an empty line or a comment is between two.

    Example:
        >>> sentences_of(MarkedDocument("d", ("Anna", "left", "It", "rained"), (), Path("d"), (1, 2, 4, 5)))
        [(0, 2), (2, 4)]
    """
    ends = [place for place, (line, after) in enumerate(pairwise(document.lines), start=1) if after > line + 1]
    return list(pairwise([0, *ends, len(document.words)]))


def kind_of(mention: Mention) -> str:
    """As the data have it."""
    found = CODE.match(mention.entity)
    return found[1] if found else mention.kind


def _is_name(document: MarkedDocument, mention: Mention) -> bool:
    words = document.words[mention.first : mention.last + 1]
    return len(words) > 1 or words[0].lower() not in PRONOUNS


def asked(document: MarkedDocument) -> Iterator[dict[str, Any]]:
    """SQuAD's paragraphs of a document, each a passage with its questions."""
    sentences = sentences_of(document)
    for number in range(0, len(sentences), PASSAGE):
        passage = sentences[number : number + PASSAGE]
        first, last = passage[0][0], passage[-1][1]
        inside = [m for m in document.mentions if first <= m.first and m.last < last and _is_name(document, m)]
        found = []
        for begin, end in passage:
            for mention, question in _of_sentence(document, inside, begin, end):
                same = [m for m in inside if m.entity == mention.entity and not begin <= m.first < end]
                answers = [_answer(document, first, m) for m in dict.fromkeys([mention, *same])]
                name = f"{document.name}-{mention.first}-{mention.last}"
                found.append({"id": name, "question": question, "answers": answers})
        if found:
            yield {"context": " ".join(document.words[first:last]), "qas": found}


def _of_sentence(
    document: MarkedDocument, mentions: Sequence[Mention], begin: int, end: int
) -> Iterator[tuple[Mention, str]]:
    own = [m for m in mentions if begin <= m.first and m.last < end and kind_of(m) in (*WHO, *WHERE)]
    for mention in own:
        around = any(m.first <= mention.first and mention.last <= m.last and m is not mention for m in own)
        if around or end - begin < SHORTEST or mention.last - mention.first + 1 > (end - begin) // 2:
            continue
        before, after = document.words[begin : mention.first], document.words[mention.last + 1 : end]
        if kind_of(mention) in WHO:
            word = "who"
        elif before and before[-1].lower() in PREPOSITIONS:
            word, before = "where", before[:-1]
        else:
            continue
        words = [*before, word, *(after[:-1] if after and after[-1] in ".!?" else after), "?"]
        yield mention, " ".join([words[0].capitalize() if words[0] == word else words[0], *words[1:]])


def _answer(document: MarkedDocument, first: int, mention: Mention) -> dict[str, Any]:
    before = " ".join(document.words[first : mention.first])
    text = " ".join(document.words[mention.first : mention.last + 1])
    return {"text": text, "answer_start": len(before) + (1 if before else 0)}


def questions(data: Path, folder: Path) -> Split:
    """Questions about both, as files."""
    news = every_third(read_marked(data / "meantime/meantime.conll"))
    paths = []
    for part in PARTS:
        documents = [*read_marked(data / "gum/dep" / part), *news[part]]
        articles = [{"title": d.name, "paragraphs": list(asked(d))} for d in documents]
        path = folder / f"questions-{part}.json"
        path.write_text(json.dumps({"version": "1.1", "data": articles}) + "\n", encoding="utf-8")
        paths.append(path)
    return Split(*paths)
