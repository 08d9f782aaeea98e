"""`tokenreduce demo`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from tokenreduce.cli.arguments import JsonFile, progress_bar
from tokenreduce.cli.output import console, print_refused, print_table
from tokenreduce.cli.writing import check_folder, saying, write_json
from tokenreduce.errors import InvalidTypeError, unknown
from tokenreduce.lab.quality.demo import METHODS, ClassificationDemo, Demo
from tokenreduce.lab.quality.demo_dense import HEADLINES, DenseDemo
from tokenreduce.lab.quality.demo_photographs import PhotographDemo
from tokenreduce.lab.quality.demo_vlm import VisionLanguageDemo

TASKS = ("classification", *HEADLINES, "vlm")
MODELS: dict[str, Callable[[bool, int | None], Demo]] = {
    "fashion_vit": partial(ClassificationDemo, "fashion_vit"),
    "fashion_vim": partial(ClassificationDemo, "fashion_vim"),
    "dinov2_small": PhotographDemo,
}


def demo(
    task: Annotated[str, typer.Option(help="classification, segmentation, detection or vlm")] = "classification",
    model: Annotated[
        str | None,
        typer.Option(
            help="classification: fashion_vit (default), fashion_vim, which is a state-space model, or dinov2_small, a "
            "real model on photographs (extra 'real')"
        ),
    ] = None,
    all_methods: Annotated[
        bool,
        typer.Option("--all", help=f"every method, not only {', '.join(METHODS)}: takes a while; vlm always has all"),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="use only so many images (default: 2,000; 200 or 150 scenes; 45 squares)"),
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for the pictures", callback=check_folder)] = Path("out"),
    json_file: JsonFile = None,
) -> None:
    """Run a trained model on real images, unpatched and with each method, and show what is lost and saved."""
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    if task == "classification":
        if model not in (None, *MODELS):
            raise unknown("model", str(model), MODELS)
        shown = MODELS[model or "fashion_vit"](all_methods, limit)
    elif model is not None:
        raise InvalidTypeError(f"--task {task} has a model of its own and does not use --model {model}; leave that out")
    elif task == "vlm":
        shown = VisionLanguageDemo(limit)
    else:
        shown = DenseDemo(task, all_methods, limit)
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
