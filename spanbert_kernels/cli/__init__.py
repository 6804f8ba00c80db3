"""The command `spanbert-kernels`."""

import io
import sys

import click

from spanbert_kernels import __version__
from spanbert_kernels.cli import checkout
from spanbert_kernels.cli.corpora import encode
from spanbert_kernels.cli.demo import demo
from spanbert_kernels.cli.errors import Commands
from spanbert_kernels.cli.explain import explain
from spanbert_kernels.cli.predicting import predict
from spanbert_kernels.cli.pretraining import pretrain
from spanbert_kernels.cli.tasks import evaluate, train
from spanbert_kernels.tasks import launch

__all__ = ["main"]


@click.group(cls=Commands)
@click.version_option(__version__, prog_name="spanbert-kernels")
def main() -> None:
    """Fused span pooling and cross-document attention for SpanBERT-family encoders."""
    launch.hush()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that is not UTF-8 gets a question mark, not a traceback
            stream.reconfigure(errors="replace")


for command in (demo, *checkout.commands(), pretrain, train, evaluate, predict, explain, encode):
    main.add_command(command)
