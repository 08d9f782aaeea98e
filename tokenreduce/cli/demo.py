"""`tokenreduce demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenreduce.cli.arguments import JsonFile, progress_bar
from tokenreduce.cli.output import console, print_refused, print_table
from tokenreduce.cli.writing import check_folder, saying, write_json
from tokenreduce.errors import unknown
from tokenreduce.lab.quality.demo import METHODS, ClassificationDemo, Demo
from tokenreduce.lab.quality.demo_dense import HEADLINES, DenseDemo

TASKS = ("classification", *HEADLINES)


def demo(
    task: Annotated[str, typer.Option(help="classification, segmentation or detection")] = "classification",
    all_methods: Annotated[
        bool, typer.Option("--all", help=f"every method, not only {', '.join(METHODS)}: takes a while")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="use only so many images (default: 2,000, or 200 scenes)")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for the pictures", callback=check_folder)] = Path("out"),
    json_file: JsonFile = None,
) -> None:
    """Run a shipped model on real images, unpatched and with each method, and show what is lost and saved."""
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    classify = task == "classification"
    shown: Demo = ClassificationDemo(all_methods, limit) if classify else DenseDemo(task, all_methods, limit)
    with progress_bar() as progress:
        rows = shown.measure(progress)
    measured = [row for row in rows if "refused" not in row]
    print_table(shown.table(measured), shown.title)
    console.print(shown.meaning, highlight=False)
    print_refused(rows)
    for sentence in shown.summary(measured):
        console.print(sentence, style="bold", highlight=False)
    if json_file is not None:
        write_json(json_file, "demo", rows, **shown.settings)
    with saying("--out", out):
        out.mkdir(parents=True, exist_ok=True)
        console.print(f"wrote {' and '.join(map(str, shown.draw(measured, out)))}", highlight=False)
