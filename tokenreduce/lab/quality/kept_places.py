"""Which tokens of an image are left in the last layer of a language model, as numbers and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tokenreduce.lab.cells import as_pixels, enlarge, outline

LEAST_SIDE = 480  # screen pixels; smaller images are enlarged
FADED = 0.2  # what is left of the pixels of a token that has left
COLUMNS = 6


@torch.inference_mode()
def kept_tokens(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The numbers of the image's tokens that are left in the last layer, ascending, for one prompt with one image; of a
    merged token that of its representative."""
    run: Any = model
    cache = run(**inputs, use_cache=True).past_key_values
    (places,) = (inputs["input_ids"][0] == run.config.image_token_id).nonzero(as_tuple=True)
    if not hasattr(cache, "kept"):  # nothing has left
        return torch.arange(len(places))
    columns, valid = cache.kept.last()
    left = torch.isin(places, columns[0][valid[0]])
    return left.nonzero().flatten()


def draw_kept(
    image: Tensor, kept: Mapping[str, Tensor], grid: tuple[int, int], path: str | Path, title: str = ""
) -> None:
    """Write a picture of one image `(1 or 3, H, W)` and, under each name, the image with the tokens that are left
    outlined, and the others faded to white.

    Args:
        kept: heading -> numbers of the tokens that are left.
        grid: `(H, W)` of the image's tokens.
    """
    from matplotlib.figure import Figure

    shown = {"input": None, **kept}
    columns, side = (COLUMNS, 1.6) if len(shown) > COLUMNS else (len(shown), 3.2)
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(side * columns, (side + 0.2) * rows + 0.4), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    cells = np.arange(grid[0] * grid[1]).reshape(grid)
    for axis, (heading, numbers) in zip(axes, shown.items(), strict=False):
        pixels = as_pixels(image).copy()
        if numbers is not None:
            gone = enlarge((~np.isin(cells, numbers.numpy())).astype(np.int64), pixels.shape[:2]) > 0
            pixels[gone] = 1 - FADED + FADED * pixels[gone]
            ends = np.where(np.isin(cells, numbers.numpy()), cells, -1)  # no lines between those that have left
            pixels = outline(pixels, ends, max(1, LEAST_SIDE // image.shape[-1]))
        axis.imshow(pixels, interpolation="antialiased")
        axis.set_title(heading, fontsize=8)
    for axis in axes:
        axis.set_axis_off()
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=100)
