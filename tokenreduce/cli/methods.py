"""`tokenreduce methods`."""

from __future__ import annotations

from rich.table import Table

import tokenreduce
from tokenreduce.cli.arguments import JsonFile
from tokenreduce.cli.output import console
from tokenreduce.cli.writing import write_data


def methods(json_file: JsonFile = None) -> None:
    """List every method: its kind and paper, what it needs from the model (in brackets: what it uses if the model has
    it), how it spreads a budget over the layers, whether it decides itself how many tokens stay, whether it can be
    exported, what its results were checked against, and its options."""
    facts = [tokenreduce.describe(name) for name in tokenreduce.methods()]
    table = Table()
    for heading in (
        "method",
        "kind",
        "paper",
        "year",
        "needs",
        "budget spreads as",
        "mode",
        "export",
        "checked against",
        "options",
    ):
        table.add_column(heading, overflow="fold")
    for fact in facts:
        table.add_row(
            fact["name"],
            fact["kind"],
            fact["paper"],
            str(fact["year"]),
            ", ".join(fact["needs"] + [f"({name})" for name in fact["uses"]]) or "-",
            fact["budget"],
            f"adaptive; with a budget {fact['budgeted']}" if fact["adaptive"] else "static",
            "yes" if fact["exportable"] else "no",
            fact["checked"],
            ", ".join(f"{k}={v!r}" for k, v in fact["options"].items()) or "-",
        )
    console.print(table)
    if json_file is not None:
        write_data(json_file, facts)
