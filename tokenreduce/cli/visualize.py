"""`tokenreduce visualize`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor, nn

from tokenreduce.cli.arguments import MODEL_HELP, make_arms, numbers
from tokenreduce.cli.output import Row, console, print_refused
from tokenreduce.errors import InvalidValueError, unknown
from tokenreduce.lab.arms import Arm
from tokenreduce.lab.data import fashion_mnist
from tokenreduce.lab.data.folders import image_transform, takes_fashion
from tokenreduce.lab.lanes import patched_lane
from tokenreduce.lab.pictures import Reduced, draw_methods
from tokenreduce.lab.pretrained import Pretrained
from tokenreduce.lab.shipped.named import load_model
from tokenreduce.maps.token_map import TokenMap, identity
from tokenreduce.patching.finding import find_backbone
from tokenreduce.patching.reporting import Report
from tokenreduce.patching.verbs import report

FORMATS = (".jpg", ".pdf", ".png", ".svg")
SHIPPED = 13  # which of the shipped images is drawn where none is given: an ankle boot


def visualize(
    image: Annotated[Path | None, typer.Option(help="an image file; default: a shipped one")] = None,
    model: Annotated[str, typer.Option(help=MODEL_HELP)] = "fashion_vit",
    method: Annotated[str, typer.Option(help="methods, separated by commas; one row of the picture each")] = "tome",
    flops: Annotated[str | None, typer.Option(help="fractions of the multiply-adds left, such as 0.6")] = None,
    ratio: Annotated[str | None, typer.Option(help="fractions of the image tokens removed, such as 0.5")] = None,
    r: Annotated[str | None, typer.Option("--r", help="image tokens removed in every block, such as 8")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="key=value for a single method, method.key=value among several; repeatable")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="layers after which tokens are drawn, such as 0,5,11; default: the quarters")
    ] = None,
    pretrained: Annotated[bool, typer.Option(help="load trained weights")] = True,
    out: Annotated[Path, typer.Option(help="the picture: .png, .pdf, .svg or .jpg")] = Path("out/visualize.png"),
) -> None:
    """Draw which tokens of an image are left after some layers, and their sizes, methods side by side."""
    arms = make_arms(method, {"flops": flops, "ratio": ratio, "r": r}, option or [])
    if out.suffix.lower() not in FORMATS:
        raise unknown("kind of picture in --out", out.suffix, FORMATS)
    network = load_model(model, None, pretrained)[0].eval()
    _, backbone, adapter = find_backbone(network)
    geometry = adapter.geometry(backbone)
    chosen = choose_layers(layers, geometry.depth)
    pixels, inputs = load_image(image, network)
    reports, refused = run_arms(network, arms, inputs)
    print_refused(refused)
    rows = []
    for arm, done in reports:
        if len(geometry.grid) != 2 or geometry.grid[0] * geometry.grid[1] != done.input_tokens:
            raise InvalidValueError(
                f"{model} has {done.input_tokens} image tokens and a grid {geometry.grid}; only tokens that fill a "
                "grid (H, W) can be drawn: choose another --model"
            )
        rows.append(describe_row(arm, done, chosen))
        counts = f"{done.input_tokens} -> {done.tokens_left} image tokens"
        console.print(f"{name_of(arm)}: {counts}, {done.flops_share:.1%} of the multiply-adds", highlight=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    draw_methods(pixels, rows, (geometry.grid[0], geometry.grid[1]), out)
    console.print(f"wrote {out}", highlight=False)


def run_arms(model: nn.Module, arms: Sequence[Arm], inputs: Tensor) -> tuple[list[tuple[Arm, Report]], list[Row]]:
    """What each arm did to one image, and a row with the reason (`refused`) for each that the model cannot reach.

    Raises: ValueError if it can reach none.
    """
    reports: list[tuple[Arm, Report]] = []
    refused: list[Row] = []
    for arm in arms:
        try:
            lane = patched_lane(model, arm)
        except InvalidValueError as error:
            refused.append({"method": arm.method, "budget": arm.budget, "refused": str(error)})
            continue
        with torch.inference_mode():
            lane(inputs[None])
        reports.append((arm, report(lane)))
    if not reports:
        raise InvalidValueError("; ".join(row["refused"] for row in refused))
    return reports, refused


def choose_layers(text: str | None, depth: int) -> list[int]:
    """The layers in `text`, in order; without one layer 0 and the last layer of each quarter."""
    if text is None:
        return sorted({0, *(max(0, depth * quarter // 4 - 1) for quarter in (1, 2, 3, 4))})
    chosen = sorted(set(numbers("--layers", text, int)))
    wrong = [layer for layer in chosen if not 0 <= layer < depth]
    if wrong:
        raise InvalidValueError(
            f"--layers names layer {wrong[0]}; the model has {depth} layers, choose from 0 to {depth - 1}"
        )
    return chosen


def load_image(path: Path | None, model: Any) -> tuple[Tensor, Tensor]:
    """What to draw, `(1 or 3, H, W)` in [0, 1], and what `model` takes, of an image file or of a shipped image.

    Both show what is left after the resizing and cropping that the model is evaluated with.
    """
    picture = shipped_image() if path is None else open_image(path)
    if takes_fashion(model):
        grey = ImageOps.fit(picture.convert("L"), (28, 28))
        pixels = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).view(1, 28, 28)
        return pixels, fashion_mnist.normalise(pixels)
    inputs = image_transform(model)(picture.convert("RGB"))
    mean, std = (torch.tensor(value)[:, None, None] for value in normalisation(model))
    return (inputs * std + mean).clamp(0, 1), inputs


def normalisation(model: Any) -> tuple[Any, Any]:
    """Mean and standard deviation that images were normalised with."""
    if isinstance(model, Pretrained) and model.processor is not None:
        return model.processor.image_mean, model.processor.image_std
    from timm.data import resolve_model_data_config

    config = resolve_model_data_config({} if isinstance(model, Pretrained) else model)
    return config["mean"], config["std"]


def shipped_image() -> Image.Image:
    images, _ = fashion_mnist.load("test", fashion_mnist.SUBSET)
    return Image.fromarray(images[SHIPPED, 0].numpy())


def open_image(path: Path) -> Image.Image:
    try:
        return ImageOps.exif_transpose(Image.open(path))
    except (OSError, UnidentifiedImageError):
        what = "is not an image that Pillow can read" if path.is_file() else "is no file"
        raise InvalidValueError(f"--image {path} {what}; give a PNG or JPEG file, or leave --image out") from None


def describe_row(arm: Arm, done: Report, layers: Sequence[int]) -> Reduced:
    """The row of one arm after its forward on one image."""
    maps = {f"after layer {layer}\n{done.tokens[layer]} tokens": map_after(done, layer) for layer in layers}
    reduced = done.tokens_left < done.input_tokens
    sizes = done.sizes_after(layers[-1]) if reduced else torch.ones(1, done.input_tokens)
    return Reduced(name_of(arm).replace(" at ", "\n"), maps, sizes[0])


def name_of(arm: Arm) -> str:
    """The method, and its budget if it has one."""
    return arm.method if arm.budget == "none" else str(arm)


def map_after(done: Report, layer: int) -> TokenMap:
    """The map up to `layer`, also of an arm that removed nothing and thus recorded no maps."""
    return done.map_after(layer) if done.tokens_left < done.input_tokens else identity(1, done.input_tokens)
