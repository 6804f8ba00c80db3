"""Files to train, to choose and to test on, cut from the data by rules that are written beside each row."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from spanbert_kernels.data.conllu import read_sentences
from spanbert_kernels.data.entities import read_marked
from spanbert_kernels.data.labelled import LabelledDocument, read_labelled
from spanbert_kernels.tasks.cross_document_coreference import clusters_of

PARTS = ("train", "dev", "test")
Item = TypeVar("Item")
IN_FULL = 6  # sentences of a document of meantime that are annotated in full, headline and date among them
LAYERS = re.compile(
    r"(?<![a-z_])(?:cross_|intra_)+(?=[A-Z]{3}\d)"
)  # of meantime's annotation, before an instance's number


@dataclass(frozen=True)
class Split:
    """What a row's runs read."""

    train: Path
    dev: Path
    test: Path

    def digest(self) -> str:
        """Of names and contents, of all files of the three."""
        found = hashlib.sha256()
        for part in (self.train, self.dev, self.test):
            for path in sorted(part.rglob("*")) if part.is_dir() else [part]:
                if path.is_file():
                    found.update(f"{path.name}\0".encode() + path.read_bytes())
        return found.hexdigest()


Files = Callable[[Path, Path], Split]  # of the data's folder and of one to write to


def below(train: str, dev: str, test: str) -> Files:
    """Files that are used as they are."""
    return lambda data, folder: Split(data / train, data / dev, data / test)


def every_third(items: Sequence[Item]) -> dict[str, list[Item]]:
    """Every third is to test on, every sixth of the rest to choose on.

    Example:
        >>> {part: len(own) for part, own in every_third(range(120)).items()}
        {'train': 67, 'dev': 13, 'test': 40}
    """
    found: dict[str, list[Item]] = {part: [] for part in PARTS}
    rest = 0
    for number, item in enumerate(items):
        if number % 3 == 2:
            found["test"].append(item)
            continue
        found["dev" if rest % 6 == 5 else "train"].append(item)
        rest += 1
    return found


def written(folder: Path, name: str, parts: dict[str, list[LabelledDocument]]) -> Split:
    """Labelled documents as files."""
    paths = []
    for part in PARTS:
        path = folder / f"{name}-{part}.jsonl"
        fields = ({"text": d.text, "label": d.label, "cluster": d.cluster} for d in parts[part])
        path.write_text("".join(json.dumps(each) + "\n" for each in fields), encoding="utf-8")
        paths.append(path)
    return Split(*paths)


def sentiment(data: Path, folder: Path) -> Split:
    """senti4sd without the training texts that are to test on too; every fifth of the others is to choose on."""
    test = read_labelled(data / "senti4sd/test1326itemPOLARITY.csv")
    known = {document.text for document in test}
    rest = [d for d in read_labelled(data / "senti4sd/train3098itemPOLARITY.csv") if d.text not in known]
    train = [document for number, document in enumerate(rest) if number % 5 != 4]
    return written(folder, "posts", {"train": train, "dev": rest[4::5], "test": test})


def genres(data: Path, folder: Path) -> Split:
    """Pieces of five sentences of gum's documents, each labelled with its genre; a document is a cluster."""
    parts: dict[str, list[LabelledDocument]] = {}
    for part in PARTS:
        pieces = parts.setdefault(part, [])
        for path in sorted((data / "gum/dep" / part).glob("*.conllu")):
            sentences = [sentence.text() for sentence in read_sentences(path) if sentence.tokens]
            texts = (" ".join(sentences[i : i + 5]) for i in range(0, len(sentences), 5))
            pieces += [LabelledDocument(text, path.stem.split("_")[1], path.stem, path, 1) for text in texts]
    return written(folder, "genres", parts)


def topics(data: Path, folder: Path) -> Split:
    """The four topics of meantime."""
    parts = {
        part: [LabelledDocument(" ".join(d.words), d.name.strip("(").split("/")[0], None, folder, 1) for d in documents]
        for part, documents in every_third(read_marked(data / "meantime/meantime.conll")).items()
    }
    return written(folder, "topics", parts)


def meantime(data: Path, folder: Path) -> Split:
    """Topics are clusters; chains cross topics, and are looked for within a part's own."""
    return _marked(every_third(_articles(data)), folder)


def beginnings(data: Path, folder: Path) -> Split:
    """The same of the sentences that are annotated in full: in later ones most mentions are not marked."""
    blocks = [f"{beginning(block)}\n\n#end document\n" for block in _articles(data)]
    return _marked(every_third(blocks), folder)


def beginning(block: str) -> str:
    r"""The first sentences of a document in columns.

    Example:
        >>> beginning("d\na -\n\n" + "b -\n\n" * 9 + "#end document\n").count("b -")
        5
    """
    return "\n\n".join(block.split("\n\n")[:IN_FULL])


def _articles(data: Path) -> list[str]:
    """The documents of meantime, an instance by one name.

    The file calls it by up to three: for what was annotated within documents, across them, and both.
    """
    text = LAYERS.sub("", (data / "meantime/meantime.conll").read_text(encoding="utf-8"))
    return text.split("#begin document ")[1:]


def _marked(parts: dict[str, list[str]], folder: Path) -> Split:
    paths = [folder / f"{part}.conll" for part in PARTS]
    for path, part in zip(paths, PARTS, strict=True):
        path.write_text("".join(f"#begin document {block}" for block in parts[part]), encoding="utf-8")
    return Split(*paths)


def without_topic(topic: str, data: Path, folder: Path) -> Split:
    """A topic of meantime to test on; every sixth document of the others is to choose on."""
    blocks = _articles(data)
    others = [block for block in blocks if not block.startswith(f"({topic}/")]
    parts = {
        "train": [block for number, block in enumerate(others) if number % 6 != 5],
        "dev": others[5::6],
        "test": [block for block in blocks if block.startswith(f"({topic}/")],
    }
    return _marked(parts, folder)


def _links(data: Path) -> Iterator[tuple[str, str]]:
    for line in (data / "meantime/list_instances.csv").read_text(encoding="utf-8").splitlines():
        columns = line.split("\t")
        if len(columns) > 12 and columns[1] == "EVENT":
            parts = (part for part in re.split(r"[;, ]+", columns[12]) if "_" in part)
            yield from ((columns[0], part.rsplit("_", 1)[0]) for part in parts)


def participants(data: Path, folder: Path) -> Split:
    """Events of meantime and their participants, whatever their role, where a part has mentions of both."""
    links = dict.fromkeys(_links(data))
    split = meantime(data, folder)
    paths = []
    for part in PARTS:
        file: Path = getattr(split, part)
        text = file.read_text(encoding="utf-8")
        own = folder / part
        own.mkdir(exist_ok=True)
        (own / "documents.conll").write_text(text, encoding="utf-8")
        entities = [
            {mention.entity for document in cluster for mention in document.mentions}
            for cluster in clusters_of(read_marked(own / "documents.conll"))
        ]
        rows = (f"{a}\t{b}\tparticipant\n" for a, b in links if any({a, b} <= together for together in entities))
        (own / "relations.tsv").write_text("".join(rows), encoding="utf-8")
        paths.append(own)
    return Split(*paths)


def ntrex(language: str) -> Files:
    """Lines of every third document of the test, every sixth of the rest to choose on."""

    def files(data: Path, folder: Path) -> Split:
        names = (data / "ntrex/DOCUMENT_IDS.tsv").read_text(encoding="utf-8").split()
        part_of = {name: part for part, own in every_third(list(dict.fromkeys(names))).items() for name in own}
        for side, name in (("source", "src.eng"), ("target", f"ref.{language}")):
            lines = (data / f"ntrex/newstest2019-{name}.txt").read_text(encoding="utf-8").split("\n")
            for part in PARTS:
                (folder / part).mkdir(exist_ok=True)
                kept = (line for line, own in zip(lines, names, strict=False) if part_of[own] == part)
                (folder / part / f"{side}.txt").write_text("\n".join(kept) + "\n", encoding="utf-8")
        return Split(*(folder / part for part in PARTS))

    return files
