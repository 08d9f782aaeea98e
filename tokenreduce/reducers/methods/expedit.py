"""Expedit: cluster the grid of tokens into a coarser grid and restore it softly."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenreduce.errors import InvalidTypeError, InvalidValueError
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.constants import counting
from tokenreduce.ops.order import stable_order
from tokenreduce.ops.tracing import computed_once
from tokenreduce.reducers.checks import check_count, check_number, check_option
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens

# What a token gives to each of its candidates at least: a cluster that no token is near to becomes their mean.
LEAST_SHARE = 1e-12
TIE = 1e-3  # relative steps of distances, within which they tie: two tokens are equally far from their mean


@register
@dataclass(frozen=True)
class Expedit(Reducer):
    """Cluster the tokens once, softly and locally, into a coarser grid, and keep alone those that fit it least.

    Liang et al., "Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning", NeurIPS 2022,
    arXiv 2210.01035. Centres `(B, M, C)` start as the adaptive average pool of the `(H, W)` grid to `(h, w)`; in each
    iteration a token spreads over the centres whose cell is at most window // 2 rows and columns from its own,
    `Q_ip = softmax_p(-T |z_i - s_p|^2)`, and centres become means, `s_p = sum_i Q_ip z_i / sum_i Q_ip`. Restoring:
    `z_i = sum_p w_ip s_p` with `w_i` the softmax of `-T |z_i - s_p|^2` over the nearest centres, features and centres
    as they were when clustered.

    The paper asks for an (h, w) and has no other outputs. Here half of the outputs (`alone`) are tokens that are kept
    as they are: those farthest from their nearest centre, which leave their clusters and are restored exactly.
    Errors are smaller so where it was measured (docs/methods.md); `alone=0` is the paper's form. Of the
    other outputs (h, w) takes as many as it can, its sides off the grid's aspect ratio by one row or column at most;
    what it leaves over is kept alone, too. The output is a grid (`TokenMap.grid`) only where no token is alone.

    A budget cuts at half of the depth where it can, as the authors do where tokens have mixed, and earlier where that
    would leave less than a third of the tokens. One cut costs more than many small ones (docs/quality.md).

    Departures: sizes are kept, a token's shares summing to 1, so that attention counts clusters by what they hold (the
    paper does not; patch with `prop_attn=False` to follow it). Rows of the restore weights sum to 1: the released code
    divides by their L2 norm instead, which lets restored tokens grow up to `neighbours ** 0.5` times. T follows the
    features by default, since a fixed one only fits one backbone. Softmaxes subtract their maximum, where the released
    weights underflow.

    Args:
        inverse_temperature: T, at least 0; None: for each image `sharpness` / (median over its tokens of the squared
            distance to the nearest pooled centre). Released values are 0.005 to 1.
        sharpness: of the automatic T, above 0; at 1 a token spreads over all its candidates.
        window: side of the neighbourhood of cells, odd; released configurations have 5 and 7.
        iterations: at least 1.
        neighbours: how many centres a token is restored from.
        alone: the share of the outputs that are single tokens; one cluster is left at least.
        rebuild: the block (0-based) after which all tokens are rebuilt: the blocks that follow run on all of them;
            None: at the end only, where the model's output needs them.
    """

    inverse_temperature: float | None = None
    window: int = 9
    iterations: int = 5
    neighbours: int = 20
    rebuild: int | None = None
    alone: float = 0.5
    sharpness: float = 16.0

    name: ClassVar[str] = "expedit"
    kind: ClassVar[str] = "clustering"
    paper: ClassVar[str] = "arXiv 2210.01035"
    year: ClassVar[int] = 2022
    exportable: ClassVar[bool] = True
    checked: ClassVar[str] = (
        "its specification; Expedit-LargeScale-Vision-Transformer/Expedit-Segmenter@63f4066, "
        "centres equal but for rounding"
    )
    pooling: ClassVar[str] = "soft"
    modes: ClassVar[tuple[str, ...]] = ("copy", "soft", "delta")  # a token may represent several centres
    needs: ClassVar[frozenset[str]] = frozenset({"grid"})
    once: ClassVar[bool] = True
    placement: ClassVar[str] = "post"
    shape: ClassVar[str] = "late"
    former: ClassVar[Mapping[str, Any]] = {"alone": 0.0, "sharpness": 8.0}

    def __post_init__(self) -> None:
        given = self.inverse_temperature
        if given is not None and (isinstance(given, bool) or not isinstance(given, (int, float))):
            raise InvalidTypeError(f"option inverse_temperature is {given!r}; it must be a number or None")
        if given is not None and not (given >= 0 and math.isfinite(given)):
            raise InvalidValueError(f"option inverse_temperature is {given}; it must be finite and at least 0")
        for name in ("window", "iterations", "neighbours"):
            check_count(name, getattr(self, name))
        if self.rebuild is not None:
            check_option("rebuild", self.rebuild, int)
        check_number("alone", self.alone, 0, 1)
        check_number("sharpness", self.sharpness, 1e-6)
        if self.window % 2 == 0:
            raise InvalidValueError(f"option window is {self.window}; it must be odd: 1, 3, 5 ...")

    def rebuilt_after(self) -> tuple[int, ...]:
        return () if self.rebuild is None else (self.rebuild,)

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        grid = tokens.grid
        if grid is None or len(grid) != 2 or grid[0] * grid[1] != tokens.count:
            raise InvalidValueError(
                f"expedit needs the tokens to be a full grid (H, W), but there are {tokens.count} in a grid {grid}; "
                "it can reduce once only: give one layer, or use another method (patch dropout in training takes the "
                "grid away, too)"
            )
        coarse = self.coarse(*grid, keep)
        # Distances do not change with a common offset, but what rounding takes of them does.
        z = tokens.features.float()
        z = z - z.mean(1, keepdim=True)
        near = candidates(grid, coarse, self.window // 2, z.device)
        centres = pooled(z, tokens.sizes, grid, coarse)
        distance = squared_distances(centres, z)
        scale = self._scale(distance, near, z)
        share = distance
        for _ in range(self.iterations):
            share = assigned(distance, near, scale)
            centres = means(share, z, tokens.sizes)
            distance = squared_distances(centres, z)
        steps, alone = in_steps(distance), keep - coarse[0] * coarse[1]
        rep = steps.masked_fill(~near, torch.inf).argmin(2)
        if alone:
            return self._keep_alone(farthest(steps, alone), share, rep, z, tokens.sizes, near, scale)
        return TokenMap(keep, share=share, rep=rep, undo=restore_weights(distance, scale, self.neighbours), grid=coarse)

    def coarse(self, height: int, width: int, keep: int) -> tuple[int, int]:
        """The grid of the clusters among `keep` outputs."""
        return coarse_grid(height, width, max(1, keep - math.floor(self.alone * keep)))

    def work(self, step: Step) -> int:
        centres = math.prod(self.coarse(step.grid[0], step.grid[1], step.keep))
        products = 1 + 2 * self.iterations  # distances, and in each iteration means and distances
        work = products * step.n * centres * step.width
        if centres < step.keep:
            work += step.n * (centres + step.keep) * step.width
        return work + step.dense_map

    def _keep_alone(
        self, alone: Tensor, share: Tensor, rep: Tensor, z: Tensor, sizes: Tensor | None, near: Tensor, scale: Tensor
    ) -> TokenMap:
        """The map in which the tokens `alone (B, K)` leave the clusters of `share` and are outputs after them."""
        own = (alone[..., None] == counting(z.shape[1], z.device)).float()
        leaves = own.sum(1, keepdim=True) > 0
        share = torch.where(leaves, LEAST_SHARE * near.float(), share)
        kept = z.gather(1, alone[..., None].expand(-1, -1, z.shape[2]))
        distance = squared_distances(torch.cat([means(share, z, sizes), kept], 1), z)
        exact = torch.cat([torch.zeros_like(share), own], 1).transpose(1, 2)
        undo = torch.where(leaves.transpose(1, 2), exact, restore_weights(distance, scale, self.neighbours))
        count = share.shape[1] + alone.shape[1]
        return TokenMap(count, share=torch.cat([share, own], 1), rep=torch.cat([rep, alone], 1), undo=undo)

    def _scale(self, distance: Tensor, near: Tensor, z: Tensor) -> Tensor:
        """T of each image, `(B, 1, 1)`, of the distances to the first centres `(B, M, N)`."""
        if self.inverse_temperature is not None:
            return torch.full_like(distance[:, :1, :1], self.inverse_temperature)
        nearest = distance.masked_fill(~near, torch.inf).amin(1).sort(dim=1).values
        median = nearest[:, (nearest.shape[1] - 1) // 2]
        # Where most tokens equal their centre the median is zero, and rounding must not decide anything.
        rounding = 1e-3 * z.square().sum(-1).mean(1)
        return (self.sharpness / torch.maximum(median, rounding).clamp_min(1e-12))[:, None, None]


@computed_once
def coarse_grid(height: int, width: int, count: int) -> tuple[int, int]:
    """The largest `(h, w)` of at most `count` cells within one row or column of the aspect ratio of the grid."""
    slack, fits = max(height, width), []
    for h in range(1, height + 1):
        w = min(width, count // h, (h * width + slack) // height)
        off = abs(h * width - w * height)
        if w and off <= slack:
            fits.append((h * w, -off, h, w))
    return max(fits)[2:]


def candidates(grid: tuple[int, ...], coarse: tuple[int, int], radius: int, device: torch.device) -> Tensor:
    """`(M, N)`: whether a centre's cell lies at most `radius` rows and columns from the one that a token lies in."""
    near = [
        (counting(side, device) * cells // side - counting(cells, device)[:, None]).abs() <= radius
        for side, cells in zip(grid, coarse, strict=True)
    ]
    return (near[0][:, None, :, None] & near[1][None, :, None, :]).flatten(2).flatten(0, 1)


def pooled(z: Tensor, sizes: Tensor | None, grid: tuple[int, ...], coarse: tuple[int, int]) -> Tensor:
    """The first centres `(B, M, C)`: adaptive average pooling of `z (B, N, C)`, weighted by sizes."""

    def pool(x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(x.transpose(1, 2).unflatten(2, grid), coarse).flatten(2).transpose(1, 2)

    return pool(z) if sizes is None else pool(z * sizes[..., None]) / pool(sizes[..., None])


def squared_distances(centres: Tensor, z: Tensor) -> Tensor:
    """`(B, M, N)` between `centres (B, M, C)` and `z (B, N, C)`."""
    product = centres @ z.transpose(1, 2)
    return (centres.square().sum(-1)[..., None] + z.square().sum(-1)[:, None] - 2 * product).clamp_min(0)


def assigned(distance: Tensor, near: Tensor, scale: Tensor) -> Tensor:
    """The share `(B, M, N)` of each token in its candidates; columns sum to 1."""
    distance = distance.masked_fill(~near, torch.inf)
    share = ((distance.amin(1, keepdim=True) - distance) * scale).masked_fill(~near, -torch.inf).softmax(1)
    return torch.where(near, share.clamp_min(LEAST_SHARE), share)


def means(share: Tensor, z: Tensor, sizes: Tensor | None) -> Tensor:
    """The centres `(B, M, C)` of these shares."""
    mass = share if sizes is None else share * sizes[:, None]
    return (mass @ z) / mass.sum(-1, keepdim=True)


def farthest(distance: Tensor, count: int) -> Tensor:
    """`(B, count)`: the tokens whose least `distance (B, M, N)` is largest, in ascending order; of equals the first."""
    order = stable_order(distance.amin(1), 1, descending=True)
    return order[:, :count].sort(dim=1).values


def in_steps(distance: Tensor) -> Tensor:
    """What orders `distance (B, M, N)` but for ties: logarithms in whole steps, what rounding leaves of 0 as one.

    Of the shares of an image's mean, so that its scale does not matter.
    """
    share = distance / distance.mean((1, 2), keepdim=True).clamp_min(1e-30)
    return (share.clamp_min(1e-6).log() / TIE).round()


def restore_weights(distance: Tensor, scale: Tensor, neighbours: int) -> Tensor:
    """`(B, N, M)`: softmax of `-T distance (B, M, N)` over the nearest centres of each token."""
    distance = distance.transpose(1, 2)
    logits = (distance.amin(2, keepdim=True) - distance) * scale
    nearest = stable_order(distance, 2)[..., :neighbours]
    chosen = torch.full_like(logits, -torch.inf).scatter(2, nearest, logits.gather(2, nearest))
    return chosen.softmax(2)
