"""The typer application: one command a file."""

from __future__ import annotations

import io
import sys

import typer
from rich.console import Console

from tokenreduce.cli.bench import bench
from tokenreduce.cli.calibrate import calibrate
from tokenreduce.cli.compare import compare
from tokenreduce.cli.demo import demo
from tokenreduce.cli.embed import embed
from tokenreduce.cli.evaluate import evaluate
from tokenreduce.cli.info import info
from tokenreduce.cli.kernels import kernels
from tokenreduce.cli.methods import methods
from tokenreduce.cli.visualize import visualize
from tokenreduce.errors import TokenReduceError
from tokenreduce.ops import sized_attention
from tokenreduce.ops.native import dispatch

app = typer.Typer(
    help="Make vision transformers process fewer tokens, without training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("methods")(methods)
app.command("demo")(demo)
app.command("eval")(evaluate)
app.command("bench")(bench)
app.command("visualize")(visualize)
app.command("calibrate")(calibrate)
app.command("embed")(embed)
app.command("compare")(compare)
app.command("kernels")(kernels)
app.command("info")(info)


def run() -> None:
    """Run the application; the library's own errors end it with one sentence instead of a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may not be UTF-8
    try:
        dispatch.check()
        sized_attention.check()
        app()
    except TokenReduceError as error:
        Console(stderr=True, markup=False).print(f"tokenreduce: {error}", style="red", highlight=False)
        sys.exit(2)
