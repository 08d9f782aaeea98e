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
    Keep,
    Options,
    PerBlock,
    Ratio,
    keep_arms,
    make_arms,
    numbers,
    refuse_options,
)
from tokenreduce.cli.output import console, print_refused
from tokenreduce.cli.writing import check_file, saying
from tokenreduce.errors import InvalidValueError, unknown
from tokenreduce.lab.data.picture import load_image
from tokenreduce.lab.lanes import patched_lane, try_arms
from tokenreduce.lab.pictures import draw_methods, last_of_quarters, reduced_row
from tokenreduce.lab.quality.kept_pictures import as_seen, choose_picture
from tokenreduce.lab.quality.kept_places import draw_kept, kept_tokens
from tokenreduce.lab.shipped.named import load_model
from tokenreduce.lab.shipped.vision_language import SCENES, load_prompted
from tokenreduce.patching.finding import find_backbone
from tokenreduce.patching.verbs import report

FORMATS = (".jpg", ".pdf", ".png", ".svg")


def visualize(
    image: Annotated[Path | None, typer.Option(help="an image file; default: a shipped one")] = None,
    model: Annotated[
        str | None, typer.Option(help=f"{MODEL_HELP}; default: fashion_vit; with --keep: scene_vlm or hf:NAME")
    ] = None,
    method: Annotated[str, typer.Option(help="methods, separated by commas; one row of the picture each")] = "tome",
    flops: Flops = None,
    ratio: Ratio = None,
    r: PerBlock = None,
    keep: Keep = None,
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
) -> None:
    """Draw the tokens of an image that are left after some layers, and their sizes, with one row for each method. With
    --keep: those that are left in the language model of a vision-language model (scene_vlm or hf:NAME)."""
    if out.suffix.lower() not in FORMATS:
        raise unknown("kind of picture in --out", out.suffix, FORMATS)
    if keep is not None:
        refuse_options("vlm", {"--flops": flops, "--ratio": ratio, "--r": r, "--layers": layers})
        visualize_vlm(image, model or SCENES, method, keep, option or [], question, exif, pretrained, out)
        return
    model = model or "fashion_vit"
    arms = make_arms(method, {"flops": flops, "ratio": ratio, "r": r}, option or [])
    network = load_model(model, None, pretrained)[0].eval()
    _, backbone, adapter = find_backbone(network)
    geometry = adapter.geometry(backbone)
    chosen = choose_layers(layers, geometry.depth)
    pixels, inputs = load_image(image, network, exif)
    lanes, refused = try_arms(arms, lambda arm: patched_lane(network, arm))
    print_refused(refused)
    rows = []
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
    with saying("--out", out):
        out.parent.mkdir(parents=True, exist_ok=True)
        draw_methods(pixels, rows, (geometry.grid[0], geometry.grid[1]), out)
    console.print(f"wrote {out}", highlight=False)


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
    method: str,
    keep: str,
    option: Sequence[str],
    question: str | None,
    upright: bool,
    pretrained: bool,
    out: Path,
) -> None:
    """Draw which tokens of an image are left in the last layer of a language model."""
    arms = keep_arms(method, keep, option)
    picture, said = choose_picture(image, model, question, upright)
    prompted = load_prompted(model, pretrained)
    if prompted.processor is None:
        raise InvalidValueError(f"{model} has random weights and knows no words; give hf:NAME or {SCENES}")
    inputs = prompted.processor(images=picture, text=[said])
    lanes, refused = try_arms(arms, lambda arm: patched_lane(prompted.model, arm))
    print_refused(refused)
    kept: dict[str, Tensor] = {}
    grid: Any = None
    for arm, lane in lanes:
        numbers = kept_tokens(lane, inputs).cpu()
        shown = report(lane).to_json()
        grid = grid if "units" not in shown else report(lane).grids[0]
        count = shown.get("visual_tokens", len(numbers))
        kept[f"{arm.method}\n{arm.budget}"] = numbers
        console.print(f"{arm.name}: {len(numbers)} of {count} tokens of the image are left", highlight=False)
    if grid is None or len(grid) != 2:
        raise InvalidValueError(
            f"the tokens of this image are no known grid in {model}, or none has left; choose a smaller --keep, or "
            "another --model"
        )
    with saying("--out", out):
        out.parent.mkdir(parents=True, exist_ok=True)
        draw_kept(as_seen(prompted, picture[0], inputs), kept, grid, out, said)
    console.print(f"wrote {out}", highlight=False)
