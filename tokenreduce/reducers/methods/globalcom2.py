"""GlobalCom2: of an image in crops, the small image of all of it says which crops and regions keep more tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from tokenreduce.maps.token_map import TokenMap
from tokenreduce.ops.order import stable_order
from tokenreduce.reducers.checks import check_number
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.parts.highest import keep_in_order
from tokenreduce.reducers.registry import register
from tokenreduce.reducers.step import Step
from tokenreduce.reducers.tokens import Tokens

LEAST = 1e-12  # of an attention, whose logarithm is taken


@register
@dataclass(frozen=True)
class GlobalCom2(Reducer):
    """Of an image in crops, keep most in the crops and regions to which the class token attends in the small image.

    Liu et al., "Global Compression Commander: Plug-and-Play Inference Acceleration for High-Resolution Large
    Vision-Language Models", AAAI 2026, arXiv 2501.05179. With scores g of the small image and c_j of crop j, and an
    overall share r: the small image keeps the share r with the highest g. Crop j keeps `r (1 + s_j - mean s)`, with
    `s = softmax(S / temperature)` and S_j the sum of log g over the cells of the small image that it covers, those with
    the highest `c_j / |c_j| + g_j / |g_j|`, where g_j is g resized to the grid of all crops. Tokens that end a row
    stay, and all tokens stay in their order.

    Departures: scores are the class token's attention in the layer whose features are taken, and its logarithm in S,
    where the authors' code reads logits of the last layer; counts are exact: what rounding, or crops
    of unequal size, leave of the total goes to the parts that miss most; ends of rows that are padding leave, and all
    of them where they would be more than half of what is kept.

    Args:
        temperature: the higher, the more alike are the shares of the crops.
    """

    temperature: float = 10.0

    name: ClassVar[str] = "globalcom2"
    kind: ClassVar[str] = "pruning"
    paper: ClassVar[str] = "arXiv 2501.05179"
    year: ClassVar[int] = 2025
    exportable: ClassVar[bool] = False
    checked: ClassVar[str] = (
        "its specification; xuyang-liu16/GlobalCom2@96b2d00, shares and ranks equal by given scores"
    )
    needs: ClassVar[frozenset[str]] = frozenset({"class_attention", "crops"})
    shape: ClassVar[str] = "first"
    places: ClassVar[frozenset[str]] = frozenset({"language"})
    positions: ClassVar[str] = "renumber"

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, 1e-3)

    def plan(self, tokens: Tokens, keep: int, state: Any = None) -> TokenMap:
        images = zip(tokens.class_attention, tokens.crops, strict=True)
        kept = [self.choose(score, crops, keep) for score, crops in images]
        return keep_in_order(torch.stack(kept), tokens.count)

    def choose(self, score: Tensor, crops: Tensor, keep: int) -> Tensor:
        """The places of the tokens of one image that stay, of its `score (N,)` and `crops (N, 3)`."""
        numbers = crops[:, 0]
        ends = (numbers < 0).nonzero()[:, 0]
        ends = ends[: len(ends) if 2 * len(ends) <= keep else 0]
        parts = [(numbers == number).nonzero()[:, 0] for number in numbers.unique().tolist() if number >= 0]
        sizes = [len(part) for part in parts]
        share = (keep - len(ends)) / max(1, sum(sizes))
        wanted = [size * each for size, each in zip(sizes, self.shares(score, crops, parts, share), strict=True)]
        counts = apportion(wanted, sizes, min(keep - len(ends), sum(sizes)))
        ranked = zip(parts, ranks_of(score, crops, parts), counts, strict=True)
        best = [part[stable_order(rank, 0, descending=True)[:count]] for part, rank, count in ranked]
        found = torch.cat([ends, *best])
        return found if len(found) == keep else torch.cat([found, others(found, len(score), keep)])

    def shares(self, score: Tensor, crops: Tensor, parts: Sequence[Tensor], share: float) -> list[float]:
        """What the small image keeps, and each crop."""
        if len(parts) < 2:
            return [share] * len(parts)
        logs = small_image(score.clamp_min(LEAST).log(), crops, parts[0])
        across = len(crops[(crops[:, 0] > 0) & (crops[:, 1] == 0), 0].unique())
        cells = covered(logs, math.ceil((len(parts) - 1) / across), across)[: len(parts) - 1]
        weight = (torch.stack([cell.sum() for cell in cells]) / self.temperature).softmax(0)
        return [share, *(share * (1 + weight - weight.mean())).clamp_max(1).tolist()]

    def work(self, step: Step) -> int:
        return step.class_attention


def small_image(score: Tensor, crops: Tensor, part: Tensor) -> Tensor:
    """`(H, W)`: the scores of the small image, whose tokens are `part`."""
    rows, columns = crops[part, 1], crops[part, 2]
    grid = score.new_zeros(int(rows.max()) + 1, int(columns.max()) + 1)
    return grid.index_put((rows, columns), score[part])


def covered(grid: Tensor, down: int, across: int) -> list[Tensor]:
    """The cells of the small image that each crop covers, row by row; the last ones take what is left."""
    height, width = max(1, grid.shape[0] // down), max(1, grid.shape[1] // across)
    rows = grid.tensor_split([height * i for i in range(1, down)], 0)
    return [cell for row in rows for cell in row.tensor_split([width * i for i in range(1, across)], 1)]


def ranks_of(score: Tensor, crops: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
    """What the tokens of each part are ranked by."""
    found = [score[parts[0]]] if parts else []
    if len(parts) < 2:
        return found
    within = torch.cat(list(parts[1:]))
    size = (int(crops[within, 1].max()) + 1, int(crops[within, 2].max()) + 1)
    small = small_image(score, crops, parts[0])[None, None]
    resized = interpolate(small, size, mode="bilinear", align_corners=False)[0, 0]
    for part in parts[1:]:
        of_all = resized[crops[part, 1], crops[part, 2]]
        found.append(of_length_one(score[part]) + of_length_one(of_all))
    return found


def of_length_one(x: Tensor) -> Tensor:
    return x / x.norm().clamp_min(LEAST)


def apportion(wanted: Sequence[float], sizes: Sequence[int], total: int) -> list[int]:
    """Whole numbers near `wanted`, none above its size, which are `total` together: rounded down, and then the part
    that misses most gets one more, or the one that misses least one less."""
    counts = [min(size, math.floor(want + 1e-9)) for want, size in zip(wanted, sizes, strict=True)]
    while (missing := total - sum(counts)) != 0:
        misses = [want - count for want, count in zip(wanted, counts, strict=True)]
        if missing > 0:
            room = [i for i, count in enumerate(counts) if count < sizes[i]]
            counts[max(room, key=lambda i: misses[i])] += 1
        else:
            some = [i for i, count in enumerate(counts) if count]
            counts[min(some, key=lambda i: misses[i])] -= 1
    return counts


def others(found: Tensor, entered: int, keep: int) -> Tensor:
    """The first tokens that are not among those `found`, so many that `keep` are found."""
    free = torch.ones(entered, dtype=torch.bool, device=found.device).index_fill(0, found, False)
    return free.nonzero()[: keep - len(found), 0]
