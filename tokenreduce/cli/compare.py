"""`tokenreduce compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenreduce.cli.arguments import (
    MODEL_HELP,
    Device,
    Exif,
    Options,
    numbers,
    parse_options,
    progress_bar,
    spelled,
    usable_device,
)
from tokenreduce.cli.output import console, print_refused, print_table
from tokenreduce.cli.writing import check_folder
from tokenreduce.errors import InvalidTypeError
from tokenreduce.lab.comparing import Speed, compare_methods, write_report
from tokenreduce.lab.comparing.choosing import answers
from tokenreduce.lab.comparing.page import need_plotly
from tokenreduce.lab.data.photographs import NAME as PHOTOGRAPHS
from tokenreduce.lab.quality.loading import Head, Setup
from tokenreduce.lab.quality.sharing import Sharing
from tokenreduce.lab.shipped import dinov2_small
from tokenreduce.lab.team import join_team

LIMIT = 200
SHOWN = (
    *("method", "budget", "flops_share", "tokens_left", "top1", "top1_change", "class_error", "token_error"),
    *("images_per_second", "speedup", "speedup_interval", "limit_share"),
)


def compare(
    context: typer.Context,
    model: Annotated[str, typer.Option(help=MODEL_HELP)],
    methods: Annotated[str, typer.Option(help="methods, separated by commas; all: those that fit the model")] = "all",
    budgets: Annotated[str, typer.Option(help="shares of the multiply-adds, separated by commas")] = "0.8,0.6,0.45",
    data: Annotated[
        str | None,
        typer.Option(
            help="a folder of images or of class folders, imagenet, photographs (default of dinov2_small) or "
            "fashion-mnist (default)"
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="a folder: the page, tables, pictures and finished rows", callback=check_folder)
    ] = Path("report"),
    schedule: Annotated[
        list[Path] | None, typer.Option(help="a file of calibrate, which gets a row of its own; repeatable")
    ] = None,
    option: Options = None,
    limit: Annotated[
        int | None,
        typer.Option(min=0, help=f"use so many images, evenly spread; 0: all (default: {LIMIT}; 64 photographs)"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="images in a forward where quality is measured")] = 32,
    head: Annotated[
        str | None, typer.Option(help="trained, knn, zero-shot or none, as in eval; default: trained where labels are")
    ] = None,
    gallery: Annotated[Path | None, typer.Option(help="knn: class folders instead of the training split")] = None,
    text_model: Annotated[str | None, typer.Option(help="zero-shot: NAME:PRETRAINED of open_clip")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="folder of ImageNet, or of all of Fashion-MNIST")] = None,
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="whether models are timed too")] = True,
    speed_batch_size: Annotated[int, typer.Option(min=1, help="images in a forward that is timed")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="rounds in which each model has a turn that is timed")] = 10,
    workers: Annotated[int, typer.Option(min=0, help="processes that read image folders")] = 2,
    exif: Exif = True,
    pretrained: Annotated[bool, typer.Option(help="load trained weights")] = True,
    device: Device = "cpu",
) -> None:
    """Measure every method at every budget on images, and write a page that says what is best: errors, accuracy where
    there are labels, compute and time. A run that was stopped goes on where it was. Started by torchrun, several
    processes share the rows."""
    need_plotly()
    named = None if methods == "all" else [name.strip() for name in methods.split(",")]
    if named is None and option and any("." not in text.partition("=")[0] for text in option):
        raise InvalidTypeError("--option needs the method it is for, such as ward.early=0")
    if named is None:
        chosen = parse_options(option or [], list(dict.fromkeys(text.partition(".")[0] for text in option or [])))
    else:
        chosen = parse_options(option or [], named)
    own = data == PHOTOGRAPHS or (data is None and model == dinov2_small.NAME)
    count = (None if own else LIMIT) if limit is None else limit or None
    with join_team() as team:
        place = team.place(usable_device(device))
        setup = Setup(model, data, data_dir, count, batch_size, pretrained, place, exif, sharing=Sharing(team))
        with progress_bar(team.leads) as progress:
            found = compare_methods(
                named, numbers("--budgets", budgets, float), out=out, setup=setup,
                head=Head(head, gallery, text_model=text_model), options=chosen, schedules=schedule or (),
                speed=Speed(speed_batch_size, rounds) if speed else None, workers=workers, progress=progress,
            )  # fmt: skip
    if not team.leads:
        return
    files = write_report(found, out, spelled(context))
    print_table([{key: row[key] for key in SHOWN if key in row} for row in found.rows if "refused" not in row], model)
    print_refused(found.rows)
    for remark in found.remarks:
        console.print(remark, style="yellow", highlight=False)
    for sentence in answers(found.rows, found.settings["budgets"]):
        console.print(sentence, highlight=False)
    console.print(f"wrote {files[0]}, and beside it {', '.join(file.name for file in files[1:])}", highlight=False)
