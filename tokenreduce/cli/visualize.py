"""`tokenreduce visualize`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from tokenreduce.cli.arguments import (
    MODEL_HELP,
    Exif,
    Flops,
    JsonFile,
    Keep,
    Options,
    PerBlock,
    Ratio,
    keep_arms,
    make_arms,
    numbers,
)
from tokenreduce.cli.output import console, print_refused
from tokenreduce.cli.schedules import Schedules, with_files
from tokenreduce.cli.writing import check_file, saying, write_json
from tokenreduce.errors import InvalidTypeError, InvalidValueError, unknown
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data.picture import load_image
from tokenreduce.lab.lanes import patched_lane, try_arms
from tokenreduce.lab.pictures import draw_methods, last_of_quarters, reduced_row
from tokenreduce.lab.quality.kept_pictures import as_seen, choose_picture
from tokenreduce.lab.quality.kept_places import draw_kept, kept_tokens
from tokenreduce.lab.rows import Row
from tokenreduce.lab.shipped.named import load_model
from tokenreduce.lab.shipped.vision_language import SCENES, load_prompted
from tokenreduce.patching.finding import find_backbone
from tokenreduce.patching.recorded import read_patch
from tokenreduce.patching.verbs import report

FORMATS = (".jpg", ".pdf", ".png", ".svg")


def visualize(
    image: Annotated[Path | None, typer.Option(help="an image file; default: a shipped one")] = None,
    model: Annotated[
        str | None, typer.Option(help=f"{MODEL_HELP}; default: fashion_vit; with --keep: scene_vlm or hf:NAME")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="methods, separated by commas; one row of the picture each; default: tome")
    ] = None,
    flops: Flops = None,
    ratio: Ratio = None,
    r: PerBlock = None,
    keep: Keep = None,
    schedule: Schedules = None,
    option: Options = None,
    question: Annotated[str | None, typer.Option(help="with --keep: what is asked about the image")] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help="draw the tokens after these layers, such as 0,5,11; default: layer 0 and each quarter's end"
        ),
    ] = None,
    exif: Exif = True,
    pretrained: Annotated[bool, typer.Option(help="load trained weights")] = True,
    out: Annotated[Path, typer.Option(help="the picture: .png, .pdf, .svg or .jpg", callback=check_file)] = Path(
        "out/visualize.png"
    ),
    json_file: JsonFile = None,
) -> None:
    """Draw the tokens of an image that are left after some layers, and their sizes, with one row for each method. With
    --keep: those that are left in the language model of a vision-language model (scene_vlm or hf:NAME)."""
    if out.suffix.lower() not in FORMATS:
        raise unknown("kind of picture in --out", out.suffix, FORMATS)
    budgets = {"flops": flops, "ratio": ratio, "r": r}
    if image is None:
        refuse("without --image", {"--no-exif": None if exif else "given"})
    of_language = next((file for file in schedule or () if read_patch(file).keep is not None), None)
    if keep is not None or of_language is not None:
        how = "with --keep" if of_language is None else f"of {of_language}, which is for language models,"
        refuse(how, {**{f"--{name}": text for name, text in budgets.items()}, "--layers": layers})
        arms = with_files(
            schedule,
            [method, keep, option],
            lambda: keep_arms("tome" if method is None else method, keep, option or []),
            language=True,
        )
        told = visualize_vlm(image, model or SCENES, arms, question, exif, pretrained, out)
        if json_file is not None:
            write_json(json_file, "visualize", told, model=model or SCENES, image=image, pretrained=pretrained)
        return
    refuse("without --keep", {"--question": question})
    model = model or "fashion_vit"
    arms = with_files(
        schedule,
        [method, option, *budgets.values()],
        lambda: make_arms("tome" if method is None else method, budgets, option or []),
    )
    network = load_model(model, None, pretrained)[0].eval()
    _, backbone, adapter = find_backbone(network)
    geometry = adapter.geometry(backbone)
    chosen = choose_layers(layers, geometry.depth)
    pixels, inputs = load_image(image, network, exif)
    lanes, refused = try_arms(arms, lambda arm: patched_lane(network, arm))
    print_refused(refused)
    rows, told = [], []
    for arm, lane in lanes:
        with torch.inference_mode():
            lane(inputs[None])
        done = report(lane)
        if len(geometry.grid) != 2 or geometry.grid[0] * geometry.grid[1] != done.input_tokens:
            raise InvalidValueError(
                f"{model} has {done.input_tokens} image tokens and a grid {geometry.grid}; only tokens that fill a "
                "grid (H, W) can be drawn: choose another --model"
            )
        rows.append(reduced_row(arm, done, chosen))
        counts = f"{done.input_tokens} -> {done.tokens_left} image tokens"
        console.print(f"{arm.name}: {counts}, {done.flops_share:.1%} of the multiply-adds", highlight=False)
        told.append(row_of(arm, done.tokens_left) | {"flops_share": done.flops_share, "tokens": list(done.tokens)})
    with saying("--out", out):
        out.parent.mkdir(parents=True, exist_ok=True)
        draw_methods(pixels, rows, (geometry.grid[0], geometry.grid[1]), out)
    console.print(f"wrote {out}", highlight=False)
    if json_file is not None:
        write_json(json_file, "visualize", told + refused, model=model, image=image, pretrained=pretrained)


def refuse(how: str, given: dict[str, str | None]) -> None:
    """Raise if an option was given that this kind of picture does not use."""
    named = [name for name, value in given.items() if value is not None]
    if named:
        raise InvalidTypeError(f"visualize {how} does not use {' and '.join(named)}; leave that out")


def row_of(arm: Arm, tokens_left: int) -> Row:
    return {"method": arm.method, "budget": arm.budget, "options": arm.options, "tokens_left": tokens_left}


def choose_layers(text: str | None, depth: int) -> list[int]:
    """The layers in `text`, in order; without one layer 0 and the last layer of each quarter."""
    if text is None:
        return last_of_quarters(depth)
    chosen = sorted(set(numbers("--layers", text, int)))
    wrong = [layer for layer in chosen if not 0 <= layer < depth]
    if wrong:
        raise InvalidValueError(
            f"--layers names layer {wrong[0]}; the model has {depth} layers, choose from 0 to {depth - 1}"
        )
    return chosen


def visualize_vlm(
    image: Path | None,
    model: str,
    arms: Sequence[Arm],
    question: str | None,
    upright: bool,
    pretrained: bool,
    out: Path,
) -> list[Row]:
    """Draw which tokens of an image are left in the last layer of a language model; returns a row for each arm."""
    picture, said = choose_picture(image, model, question, upright)
    prompted = load_prompted(model, pretrained)
    if prompted.processor is None:
        raise InvalidValueError(f"{model} has random weights and knows no words; give hf:NAME or {SCENES}")
    inputs = prompted.processor(images=picture, text=[said])
    lanes, refused = try_arms(arms, lambda arm: patched_lane(prompted.model, arm))
    print_refused(refused)
    kept: dict[str, Tensor] = {}
    told: list[Row] = []
    grid: Any = None
    for arm, lane in lanes:
        numbers = kept_tokens(lane, inputs).cpu()
        shown = report(lane).to_json()
        grid = grid if "units" not in shown else report(lane).grids[0]
        count = shown.get("visual_tokens", len(numbers))
        kept[f"{arm.method}\n{arm.budget}"] = numbers
        console.print(f"{arm.name}: {len(numbers)} of {count} tokens of the image are left", highlight=False)
        told.append(row_of(arm, len(numbers)))
    if grid is None or len(grid) != 2:
        raise InvalidValueError(
            f"the tokens of this image are no known grid in {model}, or none has left; choose a smaller --keep, or "
            "another --model"
        )
    with saying("--out", out):
        out.parent.mkdir(parents=True, exist_ok=True)
        draw_kept(as_seen(prompted, picture[0], inputs), kept, grid, out, said)
    console.print(f"wrote {out}", highlight=False)
    return told + refused
