"""Follows every link of a built site to its file and its heading, and finds what a page would load from elsewhere.

    python docs/making/links.py build/docs

Exit code 1 if a link leads nowhere, or if a page needs the network to be shown.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

LOADS = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
NOT_LOADED = {"canonical", "alternate", "next", "prev"}
IN_STYLES = re.compile(r"(?:url\(|@import )[\"']?(https?://[^\"')]+)")


class Page(HTMLParser):
    """What a page links to, what it loads, and what in it can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called for each tag."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif LOADS.get(tag) in given and given.get("rel") not in NOT_LOADED:
            self.loads.append(given[LOADS[tag]])


def faults(root: Path) -> Iterator[str]:
    """A sentence for each link that leads nowhere and each thing that is loaded from elsewhere."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(root.rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(root)
        for link in [*page.links, *page.loads]:
            address, anchor = urldefrag(link)
            if urlsplit(address).scheme or address.startswith("//"):
                if link in page.loads and not address.startswith("data:"):
                    yield f"{name} loads {link}"
                continue
            base = root if address.startswith("/") else path.parent  # the page for what is not found stands anywhere
            target = (base / unquote(address).lstrip("/")).resolve() if address else path.resolve()
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                yield f"{name} links to {link}, which is not there"
            elif anchor and target in pages and unquote(anchor) not in pages[target].anchors | {"__top"}:
                yield f"{name} links to {link}, but there is no such heading"
    for path in sorted(root.rglob("*.css")):
        for address in IN_STYLES.findall(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(root)} loads {address}"


def main() -> int:
    """Prints the faults of the site that the command line names."""
    root = Path(sys.argv[1]).resolve()
    found = list(faults(root))
    print("\n".join(found) if found else f"{len(list(root.rglob('*.html')))} pages, every link leads somewhere")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
