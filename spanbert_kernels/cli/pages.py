"""What all HTML pages share: each is one file that loads nothing from anywhere."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader

from spanbert_kernels.cli import formatting

FIRST_WORDS = 60  # characters


def render(template: str, filters: Mapping[str, Callable[[Any], str]] | None = None, **values: Any) -> str:
    """A page as HTML text.

    Args:
        template: the name of one of this package's templates, or the path of a file, which may include those.
        filters: what the template calls by name, beside Jinja's own.
        values: what the template shows; all of it is escaped, unless it is `Markup`.
    """
    path = Path(template)
    loaders = [PackageLoader("spanbert_kernels.cli"), FileSystemLoader(path.parent)]
    environment = Environment(loader=ChoiceLoader(loaders), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(filters or {})
    return environment.get_template(path.name).render(values)


def first_words(text: str) -> str:
    r"""The beginning of a text, which says what it is.

    Example:
        >>> first_words("The harbour\n  master closed the north gate before the storm came over the hills.")
        'The harbour master closed the north gate before the storm …'
    """
    return textwrap.shorten(formatting.one_line(" ".join(text[:400].split())), FIRST_WORDS, placeholder=" …")


def error(value: float | None) -> str:
    """An error's size without a line break inside of 1.2e-06; nothing where there is none."""
    return "" if value is None else unbroken(formatting.error(value))


def unbroken(text: str) -> str:
    """No line break inside of 1.2e-06.

    Example:
        >>> unbroken("1.2e-06").isascii()
        False
    """
    return text.replace("e-", "e\u2011")
