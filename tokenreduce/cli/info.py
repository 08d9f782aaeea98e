"""`tokenreduce info`."""

from __future__ import annotations

from rich.table import Table

from tokenreduce.cli.arguments import JsonFile
from tokenreduce.cli.output import console
from tokenreduce.cli.writing import write_data
from tokenreduce.lab.installation import installation


def info(json_file: JsonFile = None) -> None:
    """Versions, devices, kernels and the families of models that are known here; put it into reports of faults."""
    with console.status("compiling kernels if they never were, up to a minute"):
        found = installation()
    table = Table(show_header=False, box=None)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, number in found["libraries"].items():
        table.add_row(name, number or "not installed")
    for name in ("python", "platform", "processor", "threads"):
        table.add_row(name, str(found[name]))
    table.add_row("devices", ", ".join(found["devices"]))
    for name, reason in found["kernels"].items():
        table.add_row(f"kernels: {name}", reason or "usable")
    table.add_row("sizes in attention", found["attention"])
    for library, names in found["families"].items():
        table.add_row(f"families: {library}", ", ".join(names))
    table.add_row("methods", ", ".join(found["methods"]))
    console.print(table)
    if json_file is not None:
        write_data(json_file, found)
