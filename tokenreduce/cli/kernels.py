"""`tokenreduce kernels`."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

import typer
from rich.table import Table

from tokenreduce.cli.arguments import JsonFile
from tokenreduce.cli.output import console
from tokenreduce.cli.writing import write_data
from tokenreduce.ops import sized_attention
from tokenreduce.ops.native import build, build_cuda, dispatch


def kernels(
    rebuild: Annotated[
        bool, typer.Option("--build", help="compile them now, even if they are compiled already")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """List the kernels, and for each whether it can be used on this machine, or why not. Kernels are compiled once, on
    first use."""
    if rebuild:
        remove_library()
    with console.status("compiling, up to a minute"):
        rows = dispatch.status()
    table = Table()
    for heading in ("kernel", "what it does", "CPU", "Triton (GPU)", "CUDA extension"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        usable = (row["cpu"] or "usable", row["triton"] or "usable", row["cuda"] or "usable, when forced")
        table.add_row(row["kernel"], row["summary"], *usable)
    console.print(table)
    console.print(f"{kept_in()}; TOKENREDUCE_KERNELS=reference turns them off", highlight=False)
    console.print(f"sizes in attention: {sized_attention.status()} (TOKENREDUCE_ATTENTION)", highlight=False)
    if json_file is not None:
        write_data(json_file, rows)


def remove_library() -> None:
    """Remove the compiled libraries, and what is remembered of failures; the next use compiles them again."""
    with suppress(build.BuildError):  # there is no compiler; the table says so
        build.forget(build.library())
    with suppress(build.BuildError):
        build.forget(build_cuda.library())


def kept_in() -> str:
    try:
        return f"kept in {build.cache_folder()}"
    except build.BuildError as error:
        return str(error)
