"""Pictures: which tokens an image still has layer by layer, what size they are, and accuracy against compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenreduce.lab.arms import Arm
from tokenreduce.lab.cells import GREY, as_pixels, hatch, label_cells, outline, paint_tokens, size_cells
from tokenreduce.lab.rows import from_file
from tokenreduce.maps.token_map import TokenMap, identity
from tokenreduce.patching.reporting import Report

CALIBRATED = "calibrated"
STAR: dict[str, Any] = {"marker": "*", "markersize": 13, "color": "#f0e442", "markeredgecolor": "black"}
STAR |= {"linestyle": "none", "zorder": 3}
TICKS = tuple(digit * 10.0**power for power in range(6) for digit in (1, 2, 5))


@dataclass(frozen=True)
class Reduced:
    """One row of a picture: what one method did to an image.

    Args:
        name: written beside the row.
        maps: heading -> map of a batch of one, the last of them that of `sizes`.
        sizes: `(M,)`, how many input tokens each token stands for.
    """

    name: str
    maps: Mapping[str, TokenMap]
    sizes: Tensor


def last_of_quarters(depth: int) -> list[int]:
    """Layer 0 and the last layer of each quarter of `depth` layers."""
    return sorted({0, *(max(0, depth * quarter // 4 - 1) for quarter in (1, 2, 3, 4))})


def maps_after(done: Report, layers: Sequence[int]) -> dict[str, TokenMap]:
    """The map of the last forward up to each layer, by a heading; it is an identity where nothing was removed."""
    removed = done.tokens_left < done.input_tokens
    maps = [done.map_after(layer) if removed else identity(1, done.input_tokens) for layer in layers]
    return {f"after layer {at}\n{done.tokens[at]} tokens": one for at, one in zip(layers, maps, strict=True)}


def reduced_row(arm: Arm, done: Report, layers: Sequence[int]) -> Reduced:
    """The row of one arm after its forward on one image, with the maps up to `layers`."""
    removed = done.tokens_left < done.input_tokens
    sizes = done.sizes_after(layers[-1]) if removed else torch.ones(1, done.input_tokens)
    return Reduced(arm.name.replace(" at ", "\n"), maps_after(done, layers), sizes[0])


def draw_tokens(
    images: Tensor,
    maps: Mapping[str, TokenMap],
    grid: tuple[int, int],
    path: str | Path,
    title: str = "",
    answers: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a picture with one row for each image: the image, then its tokens in each map, under the map's name.

    Args:
        images: `(B, 1 or 3, H, W)`, uint8 or floats in [0, 1], the batch that the maps are of.
        maps: heading -> map, such as `{"after layer 3": report(model).map_after(3)}`.
        answers: heading -> what a dense head says, `(B, h, w)` in [0, 1], drawn in further columns.
    """
    from matplotlib.figure import Figure

    answers = answers or {}
    columns = 1 + len(maps) + len(answers)
    figure = Figure(figsize=(1.5 * columns, 1.5 * len(images) + 0.6), layout="constrained")
    axes = figure.subplots(len(images), columns, squeeze=False)
    scale = max(1, 448 // images.shape[-1])
    for row, image in enumerate(images):
        axes[row, 0].imshow(as_pixels(image), interpolation="nearest")
        for axis, token_map in zip(axes[row, 1 : 1 + len(maps)], maps.values(), strict=True):
            labels, _ = label_cells(token_map, grid, row)
            painted = outline(paint_tokens(image, token_map, grid, row), labels, scale)
            # Picking nearest pixels would lose one line and double another.
            axis.imshow(painted, interpolation="antialiased")
        for axis, answer in zip(axes[row, 1 + len(maps) :], answers.values(), strict=True):
            axis.imshow(answer[row].cpu().numpy(), cmap="magma", vmin=0, vmax=1)
    for axis, heading in zip(axes[0], ["input", *maps, *answers], strict=True):
        axis.set_title(heading, fontsize=9)
    for axis in axes.flat:
        axis.set_axis_off()
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=100)  # photographs make large files


def draw_methods(image: Tensor, rows: Sequence[Reduced], grid: tuple[int, int], path: str | Path) -> None:
    """Write a picture with one row for each method: the image, its tokens in each map, the sizes of the last tokens.

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
            axis.imshow(painted, interpolation="antialiased")  # as above
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


def lines_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of each method, and last under `CALIBRATED` those whose schedule came from a file."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=from_file):
        found.setdefault(CALIBRATED if from_file(row) else row["method"], []).append(row)
    return found


def style_of(name: str) -> dict[str, Any]:
    """How the line of a method is drawn, or the stars of those that were calibrated."""
    return STAR if name == CALIBRATED else {"marker": "o"}


def draw_tradeoff(
    rows: Sequence[Mapping[str, Any]], path: str | Path, title: str = "", key: str = "top1", name: str = "top-1"
) -> None:
    """Write the picture that `tradeoff` makes."""
    tradeoff(rows, title, key, name).savefig(path, dpi=120)


def tradeoff(rows: Sequence[Mapping[str, Any]], title: str = "", key: str = "top1", name: str = "top-1") -> Any:
    """A matplotlib figure of accuracy (y) against the share of the unpatched MACs (x), one line for each method.

    Args:
        rows: with the keys method, flops_share and `key`, fractions of 1 (rows without them are left out); the method
            "unpatched" becomes the reference line.
        name: what people call the accuracy.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    drawn = [row for row in rows if row.get(key) is not None and row.get("flops_share") is not None]
    for method, own in lines_of(drawn).items():
        points = sorted((100 * row["flops_share"], 100 * row[key]) for row in own)
        if method == "unpatched":
            label = f"unpatched, {points[0][1]:.2f} %"
            axis.axhline(points[0][1], color="black", linestyle="--", linewidth=1, label=label)
        else:
            axis.plot(*zip(*points, strict=True), label=method, **style_of(method))
    axis.set(xlabel="multiply-adds, % of the unpatched model", ylabel=f"{name}, %", title=title)
    axis.grid(alpha=0.3)
    axis.legend()
    return figure


def draw_errors(rows: Sequence[Mapping[str, Any]], path: str | Path, keys: Mapping[str, str], title: str = "") -> None:
    """Write the picture that `error_curves` makes."""
    error_curves(rows, keys, title).savefig(path, dpi=120)


def error_curves(rows: Sequence[Mapping[str, Any]], keys: Mapping[str, str], title: str = "") -> Any:
    """A matplotlib figure of errors (y, powers of ten) against the share of the unpatched MACs (x): an axis for each
    of `keys` (key -> what people call it), one line for each method.

    Rows without the key are left out, and so is the unpatched model, which has no error.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(keys), 3.8), layout="constrained")
    for axis, (key, name) in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys.items(), strict=True):
        for method, own in lines_of([row for row in rows if row.get(key)]).items():
            points = sorted((100 * row["flops_share"], row[key]) for row in own)
            axis.plot(*zip(*points, strict=True), label=method, **style_of(method))
        axis.set(yscale="log", xlabel="multiply-adds, %", title=name)
        axis.grid(alpha=0.3)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


def draw_predictions(
    images: Sequence[Tensor], columns: Mapping[str, Sequence[Any]], classes: Mapping[int, str], path: str | Path
) -> None:
    """Write a picture with one row for each image: the image, then what each column says about it, under its heading.

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
