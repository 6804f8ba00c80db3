"""Splits plain text into sentences and words as corpora in columns have them: punctuation and clitics stand apart."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

Place = tuple[int, int]  # the first character, and the one behind the last

# Thai, Lao, Khmer, kana and Chinese are written without spaces between words: each sign is one
_SIGNS = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
# Parts of words that re does not take for letters: accents, points, and vowels of Indian scripts
_MARKS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f\u0670"
    "\u06d6-\u06ed\u0711\u0730-\u074a\u0900-\u0963\u0966-\u0dff\u0f18-\u0fbc\u102b-\u109d\u1ab0-\u1aff\u1dc0-\u1dff"
    "\u200c\u200d\u20d0-\u20f0\ufe00-\ufe0f\ufe20-\ufe2f"
)
_ABBREVIATIONS = (
    "adm|al|approx|apr|art|aug|bzw|ca|cf|co|col|corp|dec|dept|dr|ed|eds|eg|etc|feb|fig|gen|gov|hr|ie|inc|jan|jr|jul|jun"
    "|lt|ltd|mar|mgr|mlle|mme|mr|mrd|mrs|ms|mt|no|nov|nr|oct|op|pp|prof|rep|rev|sen|sep|sept|sgt|sr|sra|srta|st|str|vgl"
    "|vol|vs"
)
_APOSTROPHE = r"['\u2019]"
_WORD = re.compile(
    "|".join(
        (
            r"(?:https?://|www\.)[^\s<>\"]*[\w/]",  # an address on the web
            r"[\w.+-]+@\w[\w-]*(?:\.\w[\w-]*)+",  # of mail
            r"[@#]\w+",
            r"\d+(?:[.,:/-]\d+)+",  # 3.5, 12:30, 2026-11-29
            r"[^\W\d_](?:\.[^\W\d_])+\b\.?",  # U.S.
            rf"\b(?i:{_ABBREVIATIONS})\.(?=\s)",
            r"\b[A-Z]\.(?=\s+[A-Z])",  # the initial of a name
            rf"\w+?(?=(?i:n{_APOSTROPHE}t)\b)|(?i:n{_APOSTROPHE}t)\b",  # do n't
            rf"{_APOSTROPHE}(?i:s|re|ve|ll|d|m)\b",
            rf"\b(?i:[cdjlmnst]|qu|dell|all|nell|un){_APOSTROPHE}(?=\w)",  # l' amico, qu' il
            rf"[{_SIGNS}]",
            rf"(?:[^\W{_SIGNS}]|[{_MARKS}])+",
            r"([^\w\s])\1*",  # a sign, or the same again: ... -- !!
        )
    )
)
_CLOSING, _OPENING = r"\"'\u201d\u2019\u00bb)\]\u300d\u300f\uff09", r"\"'\u201c\u2018\u00ab(\[\u00bf\u00a1-"
# A full stop and its like in many scripts, with what closes behind it; between Chinese signs there is no space
_END = re.compile(rf"(?:[.!?\u2026\u061f\u0964\u06d4]+[{_CLOSING}]*(?=\s)|[\u3002\uff01\uff1f]+[{_CLOSING}]*)\s*")
_FIRST_LETTER = re.compile(rf"[{_OPENING}]*([^\W\d_])")


@dataclass(frozen=True)
class Located:
    """Where words stand.

    Attributes:
        text: what they were read from: a line or a paragraph of a file, a record's text.
        places: of each word in the text.
        start: of the text in its file, or of a piece of a record's text in that, in characters; None where it is none.

    Example:
        >>> found = Located("Anna laughs.", words_in("Anna laughs."))
        >>> found.words(), found.span(0, 1)
        (('Anna', 'laughs', '.'), (0, 11))
    """

    text: str
    places: Sequence[Place]
    start: int | None = None

    @classmethod
    def joined(cls, words: Sequence[str]) -> Located:
        """Of words whose text is not known: with a space between them."""
        places, end = [], 0
        for word in words:
            places.append((end, end + len(word)))
            end += len(word) + 1
        return cls(" ".join(words), places)

    def words(self) -> tuple[str, ...]:
        """As they stand in the text."""
        return tuple(self.text[start:end] for start, end in self.places)

    def piece(self) -> Located:
        """The text from the first word to the last alone.

        Example:
            >>> Located("It rains. We stay.", [(10, 12), (13, 17)], 40).piece()
            Located(text='We stay', places=[(0, 2), (3, 7)], start=50)
        """
        first, last = self.places[0][0], self.places[-1][1]
        places = [(start - first, end - first) for start, end in self.places]
        return Located(self.text[first:last], places, (self.start or 0) + first or self.start)

    def span(self, first: int, last: int) -> Place:
        """The characters from a word to another, which is included."""
        return self.places[first][0], self.places[last][1]


def words_in(text: str) -> list[Place]:
    """Where the words of a text stand.

    Example:
        >>> text = "Dr. Li doesn't pay $3.50 (yet)."
        >>> [text[start:end] for start, end in words_in(text)]
        ['Dr.', 'Li', 'does', "n't", 'pay', '$', '3.50', '(', 'yet', ')', '.']
    """
    return [match.span() for match in _WORD.finditer(text)]


def sentences_in(text: str) -> Iterator[list[Place]]:
    """The same sentence by sentence: one ends at a full stop and its like, unless what follows is in lower case.

    Example:
        >>> text = "It rained (etc. and so on). We left. Really!"
        >>> [text[own[0][0] : own[-1][1]] for own in sentences_in(text)]
        ['It rained (etc. and so on).', 'We left.', 'Really!']
    """
    own: list[Place] = []
    words, ends = words_in(text), {match.end() for match in _END.finditer(text)}
    for place, following in zip_longest(words, words[1:]):
        own.append(place)
        if following is None or (following[0] in ends and _parts(text, place, following)):
            yield own
            own = []


def _parts(text: str, place: Place, following: Place) -> bool:
    """Whether two words, between which a full stop or its like is seen, are of two sentences."""
    start, end = place
    if end - start > 1 and text[end - 1] == "." and text[start].isalpha():  # an abbreviation
        return False
    letter = _FIRST_LETTER.match(text, following[0])
    return letter is None or not letter[1].islower()
