"""`tokenreduce calibrate`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table
from torch import nn

from tokenreduce.cli.arguments import MODEL_HELP, Device, Exif, JsonFile, parse_options, progress_bar, usable_device
from tokenreduce.cli.output import console
from tokenreduce.cli.writing import check_file, saying, write_data
from tokenreduce.errors import InvalidTypeError
from tokenreduce.lab.data.unlabelled import Unlabelled, load_unlabelled
from tokenreduce.lab.environment import environment
from tokenreduce.lab.rows import Progress, Row
from tokenreduce.lab.search.calibrating import Named, check_methods, check_numbers
from tokenreduce.lab.search.calibrating import calibrate as search
from tokenreduce.lab.search.calibration import Calibration
from tokenreduce.lab.search.sensitivities import draw_sensitivities, sensitivities
from tokenreduce.lab.shipped.named import load_model
from tokenreduce.lab.whole import write_whole
from tokenreduce.patching.finding import find_backbone


def calibrate(
    model: Annotated[str, typer.Option(help=MODEL_HELP)],
    images: Annotated[
        str, typer.Option(help="a folder of images, with its folders; photographs; or fashion-mnist (training images)")
    ],
    flops: Annotated[float | None, typer.Option(help="share of the multiply-adds to keep, such as 0.6")] = None,
    error: Annotated[
        float | None, typer.Option(help="instead of --flops: the greatest mean error (1 - cosine), such as 0.01")
    ] = None,
    latency: Annotated[
        float | None,
        typer.Option(
            help="instead of both: the greatest share of the unpatched model's time, measured here, such as 0.65"
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="the schedule as JSON, which patch takes", callback=check_file)] = Path(
        "out/schedule.json"
    ),
    method: Annotated[
        str | None, typer.Option(help="methods, separated by commas; the first is the default to beat")
    ] = None,
    option: Annotated[list[str] | None, typer.Option(help="method.key=value; repeatable")] = None,
    limit: Annotated[int, typer.Option(min=2, help="use so many images, evenly spread")] = 64,
    by_folder: Annotated[
        bool, typer.Option("--by-folder", help="images in one folder are of one source, as frames of a video are")
    ] = False,
    trials: Annotated[int, typer.Option(min=0, help="so many more candidates are proposed by Optuna")] = 0,
    greedy: Annotated[bool, typer.Option(help="whether counts are also searched layer by layer")] = True,
    seed: Annotated[int, typer.Option(help="of the parting of the images and of Optuna")] = 0,
    layers_out: Annotated[
        Path | None,
        typer.Option("--sensitivities", help="also measure what each layer bears, and draw it", callback=check_file),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="folder of all of Fashion-MNIST")] = None,
    image_size: Annotated[int | None, typer.Option(min=1, help="side of the square input")] = None,
    exif: Exif = True,
    pretrained: Annotated[bool, typer.Option(help="load trained weights")] = True,
    device: Device = "cpu",
    batch_size: Annotated[int, typer.Option(min=1, help="images in a forward that is timed for --latency")] = 8,
    json_file: JsonFile = None,
) -> None:
    """Choose method and schedule on unlabelled images. The choice is checked on a part of them that chose nothing, and
    is the default where it is not shown to be better. A search that was stopped goes on where it was."""
    check_numbers({"flops": flops, "error": error, "latency": latency})  # before anything is loaded
    named = read_methods(method, option or [])
    check_methods(named)
    place = usable_device(device)
    network, _ = load_model(model, image_size, pretrained)
    network = network.eval().to(place)
    find_backbone(network)  # the reason comes before images are read
    data = load_unlabelled(images, network, limit, data_dir=data_dir, by_folder=by_folder, upright=exif)
    for sentence in data.left_out:
        console.print(f"left out: {sentence}", style="yellow", highlight=False)
    resume = out.with_suffix(".trials.jsonl")
    with progress_bar() as progress:
        found = search(
            network, data.images, flops=flops, error=error, latency=latency, methods=named, sources=data.sources,
            trials=trials, greedy=greedy, seed=seed, batch_size=batch_size, resume=resume, progress=progress,
        )  # fmt: skip
        rows = layer_rows(network, data, found, resume, progress) if layers_out is not None else []
    console.print(str(found), highlight=False)
    about = {"model": model, "images_of": images, "environment": environment()}
    found = dataclasses.replace(found, figures=found.figures | about | ({"sensitivities": rows} if rows else {}))
    with saying("--out", out):
        write_whole(out, json.dumps(found.to_json(), indent=2) + "\n")
    console.print(f'wrote {out}: patch(model, schedule="{out}")', highlight=False)
    if json_file is not None:
        write_data(json_file, found.to_json() | {"said": str(found)})
    if layers_out is not None and not rows:
        console.print(f"no layer can reduce alone, so {layers_out} was not written", style="yellow", highlight=False)
    elif layers_out is not None:
        print_layers(rows)
        with saying("--sensitivities", layers_out):
            layers_out.parent.mkdir(parents=True, exist_ok=True)
            draw_sensitivities(rows, layers_out, f"{model}, {found.method}: error when one layer alone reduces")
        console.print(f"wrote {layers_out}", highlight=False)


def read_methods(method: str | None, options: Sequence[str]) -> list[Named] | None:
    """The methods with their options; None where none were named."""
    if method is None and options:
        raise InvalidTypeError("--option needs --method, the methods that it is for")
    if method is None:
        return None
    names = [name.strip() for name in method.split(",")]
    chosen = parse_options(options, names)
    return [(name, chosen[name]) for name in names]


def layer_rows(network: nn.Module, data: Unlabelled, found: Calibration, resume: Path, progress: Progress) -> list[Row]:
    """What each layer bears of the method that was found, on up to 16 of the images."""
    return sensitivities(network, data.images[:16], found.method, resume=resume, progress=progress, **found.options)


def print_layers(rows: Sequence[Row]) -> None:
    """A line for each layer, with the last kind of error for each fraction of the tokens kept."""
    kind = "token_error" if "token_error" in rows[0] else "class_error"
    keeps = list(dict.fromkeys(row["keep"] for row in rows))
    table = Table(title=f"{kind.replace('_', ' ')} when one layer alone reduces", box=box.SIMPLE_HEAD)
    for heading in ("layer", *(f"{keep:.0%} kept" for keep in keeps)):
        table.add_column(heading, justify="right")
    for layer in dict.fromkeys(row["layer"] for row in rows):
        found = {row["keep"]: row[kind] for row in rows if row["layer"] == layer}
        table.add_row(str(layer), *(f"{found[keep]:.4f}" if keep in found else "-" for keep in keeps))
    console.print(table)
