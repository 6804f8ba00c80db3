"""From the paths a user names to documents: which files are read, which are passed over, and why."""

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path

from spanbert_kernels.data.documents import (
    CORPUS_SUFFIXES,
    TABLE_SUFFIXES,
    Document,
    NotADocument,
    read_plain,
    reader_of,
    sniff,
)
from spanbert_kernels.data.faults import NotAFile, NotText
from spanbert_kernels.data.text import encodable, read_text

# Not documents, whatever their suffix, when they are met in a folder.
_NOTICE = re.compile(
    r"(un)?(licen[cs]e|copying|notice|readme|attribution|citation|authors|contributors|contributing|changelog|changes"
    r"|requirements|todo)s?\b|.*\bvocab\b",
    re.IGNORECASE,
)
# Suffixes that say what a file is, and that it is no document.
_OTHER_SUFFIXES = frozenset(
    {".html", ".css", ".js", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".lock", ".log"}
    | {".py", ".ipynb", ".sh", ".c", ".h", ".cpp", ".cu", ".java", ".rs", ".go"}
)


@dataclass
class Collection:
    """Documents read, and what was left aside.

    Attributes:
        documents: what was read, in order.
        faults: files of which a part could not be read, and which; the rest of them is in `documents`.
        skipped: files that could not be read at all.
        passed_over: files that are no documents.
        duplicates: documents met before.
        seen: fingerprints of the texts of `documents`.
    """

    documents: list[Document] = field(default_factory=list)
    faults: list[tuple[Path, str]] = field(default_factory=list)
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    passed_over: list[tuple[Path, str]] = field(default_factory=list)
    duplicates: int = 0
    seen: set[bytes] = field(default_factory=set, repr=False)


def default_documents() -> Collection:
    """The documents that come with the package."""
    with as_file(files("spanbert_kernels.cli") / "documents") as folder:
        return collect([folder])


def collect(paths: Sequence[Path]) -> Collection:
    """Read all documents under `paths`, in the order given, folders sorted; a text met twice counts once."""
    collection = Collection()
    for path in paths:
        try:
            mode = path.stat().st_mode
        except (FileNotFoundError, NotADirectoryError):
            collection.skipped.append((path, "does not exist"))
        except OSError as error:
            collection.skipped.append((path, _cannot_read(error)))
        else:
            (_collect_folder if stat.S_ISDIR(mode) else _collect_file)(path, collection)
    return collection


def _cannot_read(error: OSError) -> str:
    return f"cannot be read ({error.strerror or error})"


def _walk(folder: Path, unreadable: Callable[[OSError], None]) -> Iterator[Path]:
    for root, folders, names in os.walk(folder, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(root, name) for name in sorted(names) if not name.startswith("."))


def _collect_folder(folder: Path, collection: Collection) -> None:
    unreadable: list[tuple[Path, str]] = []
    paths = list(_walk(folder, lambda error: unreadable.append((Path(error.filename), _cannot_read(error)))))
    collection.skipped.extend(unreadable)
    if not paths and not unreadable:
        collection.skipped.append((folder, "the folder holds no files"))
    # Beside annotated corpora a Markdown file is a note about them.
    beside_corpora = any(path.suffix.lower() in CORPUS_SUFFIXES for path in paths)
    for path in paths:
        suffix = path.suffix.lower()
        if _NOTICE.match(re.sub(r"[-_.]", " ", path.name)):
            collection.passed_over.append((path, "licence, note or word list"))
        elif suffix in _OTHER_SUFFIXES:
            collection.passed_over.append((path, f"{suffix} files are not read"))
        elif suffix == ".md" and beside_corpora:
            collection.passed_over.append((path, "a note beside annotated data"))
        else:
            _collect_file(path, collection, named=False)


def _collect_file(path: Path, collection: Collection, named: bool = True) -> None:
    """Read one file, which the user named, or which was found in a folder."""
    suffix = path.suffix.lower()

    def leave(reason: str, passed_over: bool = False) -> None:
        (collection.passed_over if passed_over else collection.skipped).append((path, reason))

    try:
        content = read_text(path)
    except OSError as error:
        return leave(_cannot_read(error))
    except (NotAFile, NotText) as fault:
        reason = fault.reason if isinstance(fault, NotAFile) else f"is {fault.reason}"
        return leave(reason, passed_over=not named and reader_of(path, "") is None)
    if not content.strip():
        return leave("is empty")
    reader = reader_of(path, content)
    if reader is None:
        reader = sniff(content)
        if reader is read_plain and path.suffix and not named:
            return leave(f"{path.suffix} files are not read", passed_over=True)
    faults: list[str] = []
    try:
        pairs = [(encodable(name), encodable(text)) for name, text in reader(content, path.stem, faults.append)]
    except NotADocument as fault:
        other = suffix == ".json" or suffix in TABLE_SUFFIXES
        return leave("; ".join([*faults, str(fault)]), passed_over=not named and other)
    found = [Document(name, text, path) for name, text in pairs if text.strip()]
    if not found:
        return leave("holds no text")
    collection.faults.extend((path, fault) for fault in faults)
    for document in found:
        # The same text tokenised in two formats differs in spaces alone.
        fingerprint = hashlib.blake2b("".join(document.text.split()).encode()).digest()
        if fingerprint in collection.seen:
            collection.duplicates += 1
        else:
            collection.seen.add(fingerprint)
            collection.documents.append(document)
    return None
