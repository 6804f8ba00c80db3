"""`python -m spanbert_kernels`: versions, and which backends work on this machine, or why not."""

from __future__ import annotations

import importlib.metadata
import platform

from rich import box
from rich.table import Table

from spanbert_kernels import __version__, host
from spanbert_kernels.cli.errors import ending
from spanbert_kernels.cli.terminal import Console
from spanbert_kernels.ops import backends, library

PACKAGES = ("torch", "transformers", "triton", "numpy")


def version(package: str) -> str:
    """The installed version of a package, or "not installed"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def extension() -> str:
    """What was compiled, and what of it runs here."""
    info, level = library.build_info(), library.cpu_level()
    if level is None:
        return f"CPU kernels do not run: {library.load_cpu()}"
    return f"CPU kernels for {', '.join(info['cpu'])} ({info['compiler']}); this processor runs {level}"


def host_module() -> str:
    """Whether the functions on numpy arrays are compiled."""
    reason = host.load()
    return "Host module: compiled" if reason is None else f"Host module: in numpy, slower; {reason}"


def status() -> Table:
    """Operations by backends: "yes", or the number of a reason in the caption."""
    report = backends.report()
    table = Table("operation", *report, box=box.SIMPLE_HEAD, caption_justify="left")
    reasons: list[str] = []
    for operation in report["eager"]:
        cells = []
        for backend in report:
            reason = report[backend][operation]
            if reason is not None and reason not in reasons:
                reasons.append(reason)
            cells.append("yes" if reason is None else f"no ({reasons.index(reason) + 1})")
        table.add_row(operation, *cells)
    table.caption = "\n".join(f"({number}) {reason}" for number, reason in enumerate(reasons, 1))
    return table


def main() -> None:
    """Print all of it."""
    console = Console(highlight=False, soft_wrap=True)
    installed = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    console.print(f"spanbert-kernels {__version__}, Python {platform.python_version()}, {installed}")
    console.print(extension())
    console.print(host_module())
    console.print(status())


if __name__ == "__main__":
    ending(main)
