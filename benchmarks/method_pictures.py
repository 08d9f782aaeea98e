"""Pictures of every method's tokens on the same photograph, with the real model, for the pages of methods.

    python benchmarks/method_pictures.py                # all that run there
    python benchmarks/method_pictures.py --method tome

Needs `pip install "tokenreduce[real]"`. They are small, and kept in docs/images/methods/, so that the pages build
without the model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from quality_real import normalised
from torch import Tensor, nn

import tokenreduce
from tokenreduce.lab.cells import as_pixels, hatch, label_cells, outline, paint_tokens
from tokenreduce.lab.data.photographs import photographs, sources
from tokenreduce.lab.pictures import maps_after
from tokenreduce.lab.shipped import dinov2_small

OUT = Path(__file__).parent.parent / "docs/images/methods"
PHOTOGRAPH, SIDE, SHARE = "chelsea.png", 224, 0.6
LAYERS = (2, 5, 8, 11)
COLOURS = 96  # of a picture's palette: a photograph in full colour takes three times the room


def main() -> None:
    options = parse()
    OUT.mkdir(parents=True, exist_ok=True)
    file = next(one for one in sources() if one.name == PHOTOGRAPH)
    squares, _ = photographs(1, SIDE, files=[file])
    [(batch, _)] = normalised(squares)
    model = dinov2_small.dinov2_small()
    for name in options.method.split(",") if options.method else tokenreduce.methods("encoder"):
        try:
            tokenreduce.patch(model, name, flops=SHARE)
        except ValueError as error:
            print(f"{name}: {error}")
            continue
        draw(model, batch, squares[0], OUT / f"{name}.png")
        print(f"{name}: {(OUT / f'{name}.png').stat().st_size // 1024} KiB")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", help="names, separated by commas")
    return parser.parse_args()


@torch.inference_mode()
def draw(model: nn.Module, batch: Tensor, image: Tensor, file: Path) -> None:
    """Write the photograph, and its tokens after some layers."""
    from matplotlib.figure import Figure

    model(batch)
    done = tokenreduce.report(model)
    grid = (int(done.input_tokens**0.5),) * 2
    maps = maps_after(done, LAYERS)
    figure = Figure(figsize=(1.6 * (1 + len(maps)), 2.05), layout="constrained")
    axes = figure.subplots(1, 1 + len(maps))
    axes[0].imshow(as_pixels(image))
    for axis, token_map in zip(axes[1:], maps.values(), strict=True):
        labels, dropped = label_cells(token_map, grid, 0)
        painted = outline(paint_tokens(image, token_map, grid), labels, 2)
        axis.imshow(hatch(painted, dropped[labels]), interpolation="antialiased")
    for axis, heading in zip(axes, ["input", *maps], strict=True):
        axis.set_title(heading, fontsize=8)
        axis.set_axis_off()
    figure.savefig(file, dpi=110)
    with Image.open(file) as drawn:
        drawn.convert("RGB").quantize(COLOURS).save(file, optimize=True)


if __name__ == "__main__":
    main()
