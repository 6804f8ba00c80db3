"""What the extras of this package bring, and what to install where a library of theirs is missing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shlex
from collections.abc import Iterator

DISTRIBUTION = "spanbert-kernels"


def requirements(extra: str) -> Iterator[str]:
    """What an extra names and the extras that it names do, as pip takes it; nothing where the package is not installed.

    Example:
        >>> list(requirements("no such extra"))
        []
    """
    from packaging.requirements import Requirement  # comes with transformers

    try:
        lines = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:  # run from a source folder
        return
    for each in map(Requirement, lines):
        if each.marker is None or not each.marker.evaluate({"extra": extra}):
            continue
        if each.name == DISTRIBUTION:
            for other in sorted(each.extras):
                yield from requirements(other)
        else:
            yield f"{each.name}{each.specifier}"


def advice(module: str, extra: str) -> str:
    """How to install what an extra brings and this environment lacks, so that `module` can be imported.

    The libraries are named, since a name of this package that pip would know depends on where it was installed from.

    Args:
        module: what could not be imported.
        extra: the extra that brings it.

    Returns:
        A sentence with a command.

    Example:
        >>> advice("nowhere", "no such extra")
        'this needs nowhere: pip install nowhere'
    """
    missing = [each for each in dict.fromkeys(requirements(extra)) if not _installed(each)]
    return f"this needs {module}: pip install {shlex.join(missing or [module])}"


def _installed(requirement: str) -> bool:
    from packaging.requirements import Requirement

    try:
        importlib.metadata.version(Requirement(requirement).name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def require(module: str, extra: str) -> None:
    """Asks for a library before the work begins that needs it at its end.

    Raises:
        ModuleNotFoundError: it is not installed; the message is `advice`.
    """
    if importlib.util.find_spec(module) is None:
        raise ModuleNotFoundError(advice(module, extra), name=module)
