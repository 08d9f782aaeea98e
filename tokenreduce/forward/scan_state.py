"""`ScanState`: how the scans of a state-space model walk over the tokens that are left in one forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError, unknown
from tokenreduce.maps.grid_walks import GridWalks, left_of_grid
from tokenreduce.maps.token_map import TokenMap
from tokenreduce.maps.walks import CONVOLUTIONS, GAPS, NOT_MISSED, Walk, walks
from tokenreduce.ops.constants import counting, watched
from tokenreduce.ops.modes import capturing
from tokenreduce.ops.native.dispatch import choose
from tokenreduce.ops.order import stable_order


@dataclass(frozen=True)
class ScanRules:
    """What scans do where tokens are missing: `conv`, one of `CONVOLUTIONS`, and `gap`, one of `GAPS`."""

    conv: str = "stand_in"
    gap: str = "size"


def scan_rules(conv: str, gap: str) -> ScanRules:
    """The rules that a user asked for; "auto" stands for the default of each."""
    for name, value, valid in (("scan_conv", conv, CONVOLUTIONS), ("scan_gap", gap, GAPS)):
        if value != "auto" and value not in valid:
            raise unknown(name, value, ("auto", *valid))
    return ScanRules(ScanRules.conv if conv == "auto" else conv, ScanRules.gap if gap == "auto" else gap)


class ScanState:
    """Which places of the whole sequence are left, and which row stands for each of the others.

    Rows are `[protected | image tokens in raster order]`; in the whole sequence protected tokens stand first or, where
    `middle`, between the two halves of the image tokens.

    Args:
        rules: what scans do where tokens are missing.
        entered: image tokens of the input.
        prefix: protected tokens.
        middle: where they stand in the whole sequence.
    """

    def __init__(self, rules: ScanRules, entered: int, prefix: int, middle: bool) -> None:
        self.rules, self.entered, self.prefix = rules, entered, prefix
        self.middle = middle and prefix > 0
        self.place = entered // 2 if self.middle else 0  # of the first protected token
        self.origin: Tensor | None = None  # (B, M), the input token that represents each image token
        self.stands: Tensor | None = None  # (B, N), the image token that stands for each of the input
        self.frozen: tuple[Tensor, Tensor] | None = None  # the steps missing before each row, by direction
        self._walks: tuple[Walk, Walk] | None = None
        self._grid_walks: GridWalks | None = None

    def walks(self, batch: int, device: torch.device, taps: int, sizes: Tensor | None) -> tuple[Walk, Walk] | None:
        """The two directions over the present rows, whose image tokens have these `sizes (B, M)`; None: all rows as
        they stand."""
        if self.origin is None and not self.middle:
            return None
        if self._walks is None:
            if self.origin is None and sizes is None and device.type == "cpu" and not watched() and not capturing():
                self._walks = walks_of_all(self.rules, self.entered, self.prefix, self.middle, batch, taps)
            else:
                self._walks = self._walk(batch, device, taps, sizes)
        return self._walks

    def grid_walks(self, whole: GridWalks, sizes: Tensor | None) -> GridWalks:
        """The walks over the present rows of a grid, of these `sizes (B, M)`, from those over all of it."""
        if self.origin is None:
            return whole
        if self._grid_walks is None:
            rules, stands = self.rules, self.stands
            self._grid_walks = left_of_grid(whole.grid, self.origin, stands, rules.conv, rules.gap, sizes)  # type: ignore[arg-type]
        return self._grid_walks

    def _walk(self, batch: int, device: torch.device, taps: int, sizes: Tensor | None) -> tuple[Walk, Walk]:
        if sizes is not None and self.origin is not None and self.rules.conv == "stand_in":
            compiled = choose("scan_walks", sizes) if self.rules.gap in NOT_MISSED else None
            if compiled is not None:
                return self._compiled_walk(compiled, taps, sizes)
        rank, owners = self.ranks(batch, device), self.owners(batch, device)
        held = None if sizes is None else torch.cat([sizes.new_ones(batch, self.prefix), sizes], 1)
        both = walks(rank, owners, taps, self.rules.conv, self.rules.gap, not self.middle, held)
        if self.frozen is None:
            return both
        return replace(both[0], frozen=self.frozen[0]), replace(both[1], frozen=self.frozen[1])

    def _compiled_walk(self, compiled: Callable[..., Any], taps: int, sizes: Tensor) -> tuple[Walk, Walk]:
        order, ahead, back, held = compiled(self.origin, self.stands, sizes, self.place, self.prefix, taps)
        ordered, held = order if self.middle else None, held if self.rules.gap == "size" else None
        return (
            Walk(ordered, ahead, gap=self.rules.gap, sizes=held),
            Walk(ordered, back, gap=self.rules.gap, sizes=held),
        )

    def ranks(self, batch: int, device: torch.device) -> Tensor:
        """`(B, prefix + M)`: the place of each row in the whole sequence."""
        origin = counting(self.entered, device).expand(batch, -1) if self.origin is None else self.origin
        after = torch.add(origin, origin >= self.place, alpha=self.prefix) if self.place else origin + self.prefix
        protected = counting(self.prefix, device).expand(origin.shape[0], -1) + self.place
        return torch.cat([protected, after], 1)

    def owners(self, batch: int, device: torch.device) -> Tensor:
        """`(B, prefix + N)`: the row that stands for each place of the whole sequence."""
        stands = counting(self.entered, device).expand(batch, -1) if self.stands is None else self.stands
        protected = counting(self.prefix, device).expand(stands.shape[0], -1)
        rows = stands + self.prefix
        around = (rows[:, : self.place], protected, rows[:, self.place :]) if self.place else (protected, rows)
        return torch.cat(around, 1)

    def follow(self, token_map: TokenMap, steps: list[Tensor] | None = None) -> None:
        """Let the places follow a map whose outputs are in order; `steps`, for "frozen": the time steps `(B, L, E)` of
        each direction in the layer that reduces."""
        rep, count = token_map.representatives(), token_map.count
        if self.rules.gap == "frozen":
            self._freeze(rep, steps)
        # Every output stands for its own place, also where a dense map gives more of that token to another.
        dest = token_map.dest_or_argmax().scatter(1, rep, counting(count, rep.device).expand_as(rep))
        self.origin = rep if self.origin is None else self.origin.gather(1, rep)
        self.stands = dest if self.stands is None else dest.gather(1, self.stands)
        self._walks = self._grid_walks = None

    def _freeze(self, rep: Tensor, steps: list[Tensor] | None) -> None:
        """Add the steps of the tokens that leave now to what is missing before those that stay."""
        if not steps:
            raise InvalidValueError(
                'scan_gap="frozen" needs the time steps of the layer that reduces, which this layer has not shown: a '
                'method with placement "pre" comes before them; give another scan_gap, such as "size"'
            )
        batch = rep.shape[0]
        rank = self.ranks(batch, rep.device)
        stays = torch.cat([counting(self.prefix, rep.device).expand(batch, -1), rep + self.prefix], 1)
        before = self.frozen or (torch.zeros_like(steps[0]), torch.zeros_like(steps[-1]))
        ahead, back = (
            missing_before(rank, stays, step, already, sign)
            for step, already, sign in zip((steps[0], steps[-1]), before, (1, -1), strict=True)
        )
        self.frozen = ahead, back


@lru_cache(maxsize=8)
def walks_of_all(rules: ScanRules, entered: int, prefix: int, middle: bool, batch: int, taps: int) -> tuple[Walk, Walk]:
    """The walks of a batch before anything is removed, on the CPU: views of those of one image."""
    with torch.inference_mode(False):
        ahead, back = walks_of_one(rules, entered, prefix, middle, taps)
        return ahead.expanded(batch), back.expanded(batch)


@lru_cache(maxsize=8)
def walks_of_one(rules: ScanRules, entered: int, prefix: int, middle: bool, taps: int) -> tuple[Walk, Walk]:
    """The walks of one image before anything is removed, on the CPU, where they are the same in each forward."""
    with torch.inference_mode(False):  # else they could not take part in training later
        return ScanState(rules, entered, prefix, middle)._walk(1, torch.device("cpu"), taps, None)


def missing_before(rank: Tensor, stays: Tensor, step: Tensor, already: Tensor, sign: int) -> Tensor:
    """`(B, L', E)`: for each of the rows `stays (B, L')` the steps of the rows that leave between it and the one that
    stays before it in this direction, and what was missing before those `already`; by segment sums, as differences of
    running sums lose digits in fp32."""
    visited = stable_order(rank, 1)
    visited = visited if sign == 1 else visited.flip(1)
    times = torch.zeros_like(rank).scatter_add(1, stays, torch.ones_like(stays))  # a token may represent two outputs
    added = already + step * (times == 0)[..., None]
    kept = times.gather(1, visited)
    segment = kept.cumsum(1) - kept  # how many that stay were visited before: the place of the next one
    wide = visited[..., None].expand(-1, -1, step.shape[2])
    sums = step.new_zeros(step.shape[0], stays.shape[1] + 1, step.shape[2])
    sums = sums.scatter_add(1, segment[..., None].expand_as(wide), added.gather(1, wide))[:, :-1]
    order = stable_order(rank.gather(1, stays), 1)
    order = order if sign == 1 else order.flip(1)
    return torch.zeros_like(sums).scatter(1, order[..., None].expand_as(sums), sums)
