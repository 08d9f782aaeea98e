"""Tokens as arrays to draw: which cells of the grid they cover, their colours and their sizes."""

from __future__ import annotations

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
    """The token that each cell of the grid belongs to, `(H, W)`, and for each token whether it was dropped.

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
    """`painted` with dark diagonal stripes over `cells (h, w)`: a grey garment that is only faded looks unchanged."""
    height, width = painted.shape[:2]
    stripes = np.add.outer(np.arange(height), np.arange(width)) % STRIPE < 2
    out = painted.copy()
    out[stripes & (enlarge(cells.astype(np.int64), (height, width)) > 0)] = DARK
    return out


def size_cells(token_map: TokenMap, sizes: Tensor, grid: tuple[int, int]) -> Image:
    """The size, one of `sizes (M,)`, of the token that each cell of the grid belongs to; NaN where it was dropped."""
    labels, dropped = label_cells(token_map, grid, 0)
    of_label = np.full(len(dropped), np.nan, np.float32)
    of_label[: token_map.count] = sizes.float().cpu().numpy()
    cells: Image = of_label[labels]
    return cells


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
