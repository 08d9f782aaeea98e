"""Pictures: which tokens an image still has layer by layer, what size they are, and accuracy against compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from tokenreduce.errors import InvalidValueError
from tokenreduce.maps.token_map import TokenMap

Labels = npt.NDArray[np.int64]
Image = npt.NDArray[np.float32]
GREY, DIMMED, LINE, DARK = 0.5, 0.75, 0.4, 0.2
STRIPE = 8  # pixels from one stripe to the next
TICKS = tuple(digit * 10.0**power for power in range(6) for digit in (1, 2, 5))


@dataclass(frozen=True)
class Reduced:
    """What one method made of an image: a row of a picture.

    Args:
        name: written beside the row.
        maps: heading -> map of a batch of one, the last of them that of `sizes`.
        sizes: `(M,)`, how many input tokens each token stands for.
    """

    name: str
    maps: Mapping[str, TokenMap]
    sizes: Tensor


def paint_tokens(image: Tensor, token_map: TokenMap, grid: tuple[int, int], index: int = 0) -> Image:
    """One image redrawn with the patches of every token in one colour: `(H, W, 3)`, values in [0, 1].

    The colour is the mean of the token's pixels. A dropped token is a patch of its own, faded to grey.

    Args:
        image: `(1 or 3, H, W)`, uint8 or floats in [0, 1].
        token_map: from the image tokens of the input to those to be drawn.
        grid: `(H, W)` of the input's image tokens.
        index: the image's place in the batch of the map.
    """
    pixels = as_pixels(image)
    labels, dropped = label_cells(token_map, grid, index)
    flat = enlarge(labels, pixels.shape[:2]).ravel()
    members = np.bincount(flat, minlength=len(dropped)).clip(1)
    colours = np.stack([np.bincount(flat, pixels[..., c].ravel(), len(dropped)) / members for c in range(3)], 1)
    colours[dropped] = GREY * DIMMED + colours[dropped] * (1 - DIMMED)
    painted: Image = colours.astype(np.float32)[flat].reshape(pixels.shape)
    return painted


def label_cells(token_map: TokenMap, grid: tuple[int, int], index: int) -> tuple[Labels, npt.NDArray[np.bool_]]:
    """For each cell of the grid the token that it belongs to, `(H, W)`, and for each token whether it was dropped.

    Tokens are numbered 0 ... M - 1; dropped ones follow, M + their place in the grid.
    """
    if grid[0] * grid[1] != token_map.entered:
        raise InvalidValueError(f"the grid is {grid[0]} x {grid[1]} but {token_map.entered} tokens entered the map")
    dest = token_map.dest_or_argmax()[index].cpu()
    weight = token_map.weight if token_map.share is None else token_map.share.sum(1)
    # Propagation drops a token after giving a small part of it to others.
    least = 0.5 if not token_map.divide else 0.0
    gone = torch.zeros_like(dest, dtype=torch.bool) if weight is None else weight[index].cpu() <= least
    places = torch.arange(len(dest)) + token_map.count
    labels = torch.where(gone, places, dest).reshape(grid).numpy()
    return labels, np.arange(token_map.count + len(dest)) >= token_map.count


def outline(painted: Image, labels: Labels, scale: int) -> Image:
    """`painted` enlarged `scale` times, with grey lines, two pixels wide, between tokens: `(scale H, scale W, 3)`."""
    big = painted.repeat(scale, 0).repeat(scale, 1)
    cells = enlarge(labels, big.shape[:2])
    across, down = cells[:, 1:] != cells[:, :-1], cells[1:] != cells[:-1]
    for part, edge in ((big[:, 1:], across), (big[:, :-1], across), (big[1:], down), (big[:-1], down)):
        part[edge] = LINE
    return big


def hatch(painted: Image, cells: npt.NDArray[np.bool_]) -> Image:
    """`painted` with dark diagonal stripes over `cells (h, w)`: faded to grey, a grey garment looks as before."""
    height, width = painted.shape[:2]
    stripes = np.add.outer(np.arange(height), np.arange(width)) % STRIPE < 2
    out = painted.copy()
    out[stripes & (enlarge(cells.astype(np.int64), (height, width)) > 0)] = DARK
    return out


def draw_tokens(
    images: Tensor, maps: Mapping[str, TokenMap], grid: tuple[int, int], path: str | Path, title: str = ""
) -> None:
    """Write a picture with one row an image: the image, then its tokens in each map, under the map's name.

    Args:
        images: `(B, 1 or 3, H, W)`, uint8 or floats in [0, 1], the batch that the maps are of.
        maps: heading -> map, such as `{"after layer 3": report(model).map_after(3)}`.
    """
    from matplotlib.figure import Figure

    columns = 1 + len(maps)
    figure = Figure(figsize=(1.5 * columns, 1.5 * len(images) + 0.6), layout="constrained")
    axes = figure.subplots(len(images), columns, squeeze=False)
    scale = max(1, 224 // images.shape[-1])
    for row, image in enumerate(images):
        axes[row, 0].imshow(as_pixels(image), interpolation="nearest")
        for axis, token_map in zip(axes[row, 1:], maps.values(), strict=True):
            labels, _ = label_cells(token_map, grid, row)
            axis.imshow(outline(paint_tokens(image, token_map, grid, row), labels, scale), interpolation="nearest")
    for axis, heading in zip(axes[0], ["input", *maps], strict=True):
        axis.set_title(heading, fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)


def draw_methods(image: Tensor, rows: Sequence[Reduced], grid: tuple[int, int], path: str | Path) -> None:
    """Write a picture with one row a method: the image, its tokens in each map, and the sizes of the last tokens.

    Sizes have one colour scale for all rows, so that methods compare; cells of dropped tokens stay grey.

    Args:
        image: `(1 or 3, H, W)`, uint8 or floats in [0, 1].
        rows: the same number of maps in each.
        grid: `(H, W)` of the input's image tokens.
    """
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    columns = 2 + len(rows[0].maps)
    height, width = image.shape[1:]
    side = 2 * height / width
    figure = Figure(figsize=(2 * columns + 1, (side + 0.5) * len(rows) + 0.2), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    scale = max(1, 448 // width)
    ends = torch.cat([row.sizes.float().cpu() for row in rows])
    least, most = min(1.0, float(ends.min())), max(2.0, float(ends.max()))
    for row, line in zip(rows, axes, strict=True):
        line[0].imshow(as_pixels(image), interpolation="nearest")
        line[0].set_ylabel(row.name, fontsize=10)
        for axis, token_map in zip(line[1:-1], row.maps.values(), strict=True):
            labels, dropped = label_cells(token_map, grid, 0)
            painted = hatch(outline(paint_tokens(image, token_map, grid), labels, scale), dropped[labels])
            # Picking nearest pixels would lose one line and double another.
            axis.imshow(painted, interpolation="antialiased")
        cells = size_cells(list(row.maps.values())[-1], row.sizes, grid)
        line[-1].set_facecolor(str(GREY))
        drawn = line[-1].imshow(cells, norm=LogNorm(least, most), interpolation="nearest", aspect="auto")
        line[-1].set_box_aspect(height / width)
        bar = figure.colorbar(drawn, ax=line[-1], shrink=0.8)
        bar.set_ticks([tick for tick in TICKS if least <= tick <= most], minor=False)
        bar.minorticks_off()
        bar.ax.yaxis.set_major_formatter("{x:.0f}")
        for axis, heading in zip(line, ["input", *row.maps, "size of each\nlast token"], strict=True):
            axis.set_title(heading, fontsize=9)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    figure.savefig(path, dpi=120)


def size_cells(token_map: TokenMap, sizes: Tensor, grid: tuple[int, int]) -> Image:
    """For each cell of the grid the size, one of `sizes (M,)`, of the token that it belongs to; NaN: dropped."""
    labels, dropped = label_cells(token_map, grid, 0)
    of_label = np.full(len(dropped), np.nan, np.float32)
    of_label[: token_map.count] = sizes.float().cpu().numpy()
    cells: Image = of_label[labels]
    return cells


def draw_tradeoff(
    rows: Sequence[Mapping[str, Any]], path: str | Path, title: str = "", key: str = "top1", name: str = "top-1"
) -> None:
    """Write a picture of accuracy against the share of the unpatched MACs, one line a method.

    Args:
        rows: with the keys method, flops_share and `key`, fractions of 1 (rows without them are left out); the method
            "unpatched" becomes the reference line.
        name: what people call the accuracy.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    drawn = [row for row in rows if row.get(key) is not None and row.get("flops_share") is not None]
    for method in dict.fromkeys(row["method"] for row in drawn):
        points = sorted((100 * row["flops_share"], 100 * row[key]) for row in drawn if row["method"] == method)
        if method == "unpatched":
            label = f"unpatched, {points[0][1]:.2f} %"
            axis.axhline(points[0][1], color="black", linestyle="--", linewidth=1, label=label)
        else:
            axis.plot(*zip(*points, strict=True), marker="o", label=method)
    axis.set(xlabel="multiply-adds, % of the unpatched model", ylabel=f"{name}, %", title=title)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=120)


def draw_predictions(
    images: Sequence[Tensor], columns: Mapping[str, Sequence[Any]], classes: Mapping[int, str], path: str | Path
) -> None:
    """Write a picture with one row an image: the image, then what each column says about it, under its heading.

    Args:
        images: `(1 or 3, H, W)`, uint8 or floats in [0, 1].
        columns: heading -> for each image a class map `(H, W)`, or a dict of `boxes` `(n, 4)`, `labels` and, of
            predictions, `scores` (boxes below 0.3 are left out).
        classes: names by class number.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    colour = {number: colormaps["tab20"](place % 20) for place, number in enumerate(classes)}
    figure = Figure(figsize=(2 * (1 + len(columns)), 2 * len(images) + 1), layout="constrained")
    axes = figure.subplots(len(images), 1 + len(columns), squeeze=False)
    for row, image in enumerate(images):
        for axis, found in zip(axes[row], [None, *(column[row] for column in columns.values())], strict=True):
            axis.imshow(as_pixels(image), interpolation="nearest")
            axis.set_axis_off()
            if isinstance(found, Tensor):
                painted = np.array([colour[int(number)] for number in found.flatten()]).reshape(*found.shape, 4)
                axis.imshow(painted, interpolation="nearest", alpha=0.7)
            elif found is not None:
                sure = found["scores"] >= 0.3 if "scores" in found else torch.ones(len(found["labels"])).bool()
                for (left, top, right, bottom), number in zip(
                    found["boxes"][sure].tolist(), found["labels"][sure].tolist(), strict=True
                ):
                    box = Rectangle((left, top), right - left, bottom - top, fill=False, color=colour[number])
                    axis.add_patch(box)
    for axis, heading in zip(axes[0], ["image", *columns], strict=True):
        axis.set_title(heading, fontsize=9)
    handles = [Patch(color=colour[number], label=name) for number, name in classes.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=120)


def as_pixels(image: Tensor) -> Image:
    """`(1 or 3, H, W)`, uint8 or floats in [0, 1], as `(H, W, 3)` floats."""
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise InvalidValueError(f"the image has shape {tuple(image.shape)}; it must be (1, H, W) or (3, H, W)")
    values = image.float() / 255 if image.dtype == torch.uint8 else image.float().clamp(0, 1)
    pixels: Image = values.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()
    return pixels


def enlarge(labels: Labels, size: tuple[int, ...]) -> Labels:
    """Labels of cells `(h, w)` as labels of pixels, `size` (H, W)."""
    big = F.interpolate(torch.from_numpy(labels)[None, None].double(), size, mode="nearest")
    pixels: Labels = big[0, 0].long().numpy()
    return pixels
