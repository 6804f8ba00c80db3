"""Reads mentions from the Entity brackets of CoNLL-U, as CorefUD and GUM have them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from spanbert_kernels.data.conll_coref import MarkedDocument, Mention
from spanbert_kernels.data.conllu import Token, read_sentences
from spanbert_kernels.data.counts import left_out
from spanbert_kernels.data.faults import DataFault

HEADER = re.compile(r"#\s*global\.Entity\s*=\s*(\S+)")
ENTITY = "Entity="
_BRACKET = re.compile(r"\(([^()]+)(\)?)|([^()]+)\)")
_PART = re.compile(r"\[\d+/\d+\]$")


def read_entities(path: Path, mentions: bool = True) -> list[MarkedDocument]:
    """Documents of a CoNLL-U file, each from `# newdoc` on, and their mentions, as `# global.Entity` lists their parts.

    Of these parts the entity (`eid` or `GRP`) and the type (`etype`) are taken. Parts of discontinuous mentions and
    mentions of empty nodes alone are left out, and counted.

    Args:
        path: the file.
        mentions: whether the mentions are wanted; else the words alone are.

    Raises:
        DataFault: what `read_sentences` raises; mentions without a header that says what their parts are; brackets that
            do not parse, that close nothing or are never closed; or a document without words.
        OSError: the file cannot be read.
    """
    documents: list[tuple[str, int, list[Token]]] = []
    header: tuple[str, ...] = ()
    header_of: list[tuple[str, ...]] = []
    for sentence in read_sentences(path):
        begin = sentence.new_document
        if begin is not None or not documents:
            documents.append((begin or "", sentence.line, []))
            header_of.append(header)
        for _, comment in sentence.comments:
            if match := HEADER.match(comment):
                header = tuple(match[1].split("-"))
        header_of[-1] = header
        documents[-1][2].extend(sentence.tokens)
    found = []
    for number, ((name, line, tokens), parts) in enumerate(zip(documents, header_of, strict=True), start=1):
        words = [token for token in tokens if token.is_word]
        if not words:
            raise DataFault(path, line, "a document without words")
        name = name or (path.stem if len(documents) == 1 else f"{path.stem} {number}")
        found.append(
            MarkedDocument(
                name,
                tuple(token.form for token in words),
                _mentions(path, tokens, parts) if mentions else (),
                path,
                tuple(token.line for token in words),
            )
        )
    return found


def _mentions(path: Path, tokens: Sequence[Token], header: tuple[str, ...]) -> tuple[Mention, ...]:
    opened: dict[str, list[tuple[int, str, int]]] = {}
    found = []
    words = 0  # before and with this token
    for token in tokens:
        place = words
        words += token.is_word
        brackets = next((each[len(ENTITY) :] for each in token.misc.split("|") if each.startswith(ENTITY)), "")
        parts = list(_BRACKET.finditer(brackets))
        if "".join(part[0] for part in parts) != brackets:
            raise DataFault(path, token.line, f"{brackets!r} is not made of brackets such as (e1-person or e1)")
        for part in parts:
            if part[1]:
                entity, kind = _entity_and_kind(path, token.line, part[1], header)
                opened.setdefault(entity, []).append((place, kind, token.line))
            else:
                entity = part[3].split("-")[0]
            if part[2] or part[3]:
                if not opened.get(entity):
                    raise DataFault(path, token.line, f"{part[0]!r} closes a mention that is not open")
                first, kind, _ = opened[entity].pop()
                if _PART.search(entity):
                    left_out("part", "of a discontinuous mention")
                elif first >= words:
                    left_out("mention", "of an empty node alone")
                else:
                    found.append(Mention(first, words - 1, kind, entity))
    for entity, still in opened.items():
        for _, _, line in still:
            raise DataFault(path, line, f"a mention of {entity!r} is never closed")
    return tuple(sorted(found, key=lambda m: (m.first, -m.last, m.kind, m.entity)))


def _entity_and_kind(path: Path, line: int, mention: str, header: tuple[str, ...]) -> tuple[str, str]:
    parts = mention.split("-")
    if not header and len(parts) > 1:
        raise DataFault(path, line, f"no line '# global.Entity = eid-etype-...' above says what {mention!r} is made of")
    named = dict(zip(header or ("eid",), parts, strict=False))
    entity = named.get("eid") or named.get("GRP")
    if not entity:
        raise DataFault(path, line, f"the entity of {mention!r} is wanted, '# global.Entity' names {'-'.join(header)}")
    return entity, named.get("etype", "")
