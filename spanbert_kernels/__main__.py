"""`python -m spanbert_kernels`: versions, and which backends work on this machine, or why not.

Also the start of the command `spanbert-kernels`. Both work where torch, numpy and transformers alone are installed.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator

from spanbert_kernels import __version__, extras

PACKAGES = ("torch", "transformers", "triton", "numpy")
PIPE_CLOSED = 141  # as shells have it


def version(package: str) -> str:
    """The installed version of a package, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def extension() -> str:
    """What was compiled, and what of it runs here."""
    from spanbert_kernels.ops import library

    info, isa = library.build_info(), library.cpu_isa()
    if isa is None:
        return f"CPU kernels do not run: {library.load_cpu()}"
    return f"CPU kernels for {', '.join(info['cpu'])} ({info['compiler']}); this processor runs {isa}"


def host_module() -> str:
    """Whether the functions on numpy arrays are compiled."""
    from spanbert_kernels import host

    reason = host.load()
    return "Host module: compiled" if reason is None else f"Host module: in numpy, slower; {reason}"


def status() -> Iterator[str]:
    """A line an operation with "yes" for each backend, or the number of a reason; then the reasons."""
    from spanbert_kernels.ops import backends

    table = backends.refusals()
    reasons = list(dict.fromkeys(reason for row in table.values() for reason in row.values() if reason is not None))
    yield _row("operation", *table)
    for operation in table["eager"]:
        found = (table[backend][operation] for backend in table)
        yield _row(operation, *("yes" if reason is None else f"no ({reasons.index(reason) + 1})" for reason in found))
    for number, reason in enumerate(reasons, start=1):
        yield f"({number}) {reason}"


def _row(name: str, *cells: str) -> str:
    return f"  {name:<26}{''.join(f'{cell:<9}' for cell in cells)}".rstrip()


def main() -> None:
    """Prints all of it."""
    installed = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    lines = [
        f"spanbert-kernels {__version__}, Python {platform.python_version()}, {installed}",
        extension(),
        host_module(),
        "",
        *status(),
    ]
    try:
        print("\n".join(lines), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
        sys.exit(PIPE_CLOSED)


def commands() -> None:
    """`spanbert-kernels`: its commands, or what to install for them."""
    try:
        from spanbert_kernels.cli import main as run
    except ModuleNotFoundError as error:
        name = (error.name or "").split(".")[0]
        if name in ("", "spanbert_kernels"):
            raise
        sys.exit(f"Error: {extras.advice(name, 'cli')}")
    run()


if __name__ == "__main__":
    main()
