"""How a scan walks over the tokens that are left of a sequence: their order, their neighbours, and the gaps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from tokenreduce.ops.constants import counting
from tokenreduce.ops.order import stable_order
from tokenreduce.ops.rows import take

CONVOLUTIONS = {
    "stand_in": "a tap at the place of a token that is gone reads the token that stands for it",
    "compact": "taps read the tokens that are left, as if none had been between them",
    "zeros": "a tap at the place of a token that is gone reads nothing",
}
GAPS = {
    "size": "each token takes as many steps at once as it holds tokens",
    "hold": "the state waits while tokens are missing",
    "self": "it decays as if each missing token had the step of the one after it",
    "prev": "it decays as if each missing token had the step of the one before it",
    "bias": "it decays as if each missing token had the step of an input of zeros",
    "frozen": "it decays by the steps that the missing tokens had when they were last computed",
}

Directed = TypeVar("Directed", bound="Walk")
NOT_MISSED = ("size", "hold")  # of GAPS, those that do not ask how many tokens are missing where


@dataclass(frozen=True)
class Walk:
    """One direction over the rows `(B, L, ...)` of what is left; all of it None: row by row.

    Attributes:
        order: `(B, L)`, the row that each step of the forward direction visits; the backward one visits them from the
            last to the first.
        taps: `(B, L, K)`, the row that each tap of the convolution reads for each row, -1 for none.
        missing: `(B, L)`, how many tokens are missing right before each row in this direction.
        before: `(B, L)`, the row visited before each row, or that row itself for the first.
        gap: one of `GAPS`.
        frozen: `(B, L, E)`, for "frozen" the sum of the steps of the tokens missing before each row.
        sizes: `(B, L)`, for "size" how many tokens each row holds, the scan's `scale`; None: one each.
    """

    order: Tensor | None = None
    taps: Tensor | None = None
    missing: Tensor | None = None
    before: Tensor | None = None
    gap: str = "hold"
    frozen: Tensor | None = None
    sizes: Tensor | None = None
    tables: ClassVar[tuple[str, ...]] = ("order", "taps", "missing", "before")  # what says which rows are read

    def expanded(self: Directed, batch: int) -> Directed:
        """The walk of one image, of which nothing is gone, for several."""
        tables = {name: getattr(self, name) for name in self.tables}
        wide = {name: table.expand(batch, *table.shape[1:]) for name, table in tables.items() if table is not None}
        return replace(self, **wide)

    def steps(self, raw: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The time steps and how long the state decays before each, `(B, L, E)`, from steps before softplus. Where
        nothing is missed they stay before softplus, and the decays are None; `sizes` are left to the scan's `scale`."""
        if self.missing is None or self.gap == "hold":
            return raw, None
        wide = torch.float64 if raw.dtype == torch.float64 else torch.float32
        step = F.softplus(raw.to(wide))
        missing = self.missing[..., None].to(wide)
        if self.gap == "frozen" and self.frozen is not None:
            longer = self.frozen.to(wide)
        elif self.gap == "prev" and self.before is not None:
            longer = missing * take(step, self.before)
        elif self.gap == "bias" and bias is not None:
            longer = missing * F.softplus(bias.to(wide))
        else:
            longer = missing * step
        return step.to(raw.dtype), (step + longer).to(raw.dtype)


def walks(
    rank: Tensor, owners: Tensor, taps: int, conv: str, gap: str, in_order: bool, sizes: Tensor | None = None
) -> tuple[Walk, Walk]:
    """The two directions over rows that are left of a sequence of N tokens.

    Args:
        rank: `(B, L)`, the place of each row in the whole sequence; an output without a token of its own has that of
            another.
        owners: `(B, N)`, the row that stands for each place of the whole sequence; rows stand for their own.
        taps: tokens that the convolution reads, K.
        conv: one of `CONVOLUTIONS`.
        gap: one of `GAPS`.
        in_order: whether ranks ascend from row to row.
        sizes: `(B, L)`, how many tokens each row holds, which "size" reads; None: one each.
    """
    order = None if in_order else stable_order(rank, 1)
    both = []
    for sign, read in zip((1, -1), tapped(rank, owners, order, taps, conv), strict=True):
        missing, before = (None, None) if gap in NOT_MISSED else gaps(rank, order, sign)
        both.append(Walk(order, read, missing, before, gap, sizes=sizes if gap == "size" else None))
    return both[0], both[1]


def tapped(rank: Tensor, owners: Tensor, order: Tensor | None, taps: int, conv: str) -> tuple[Tensor, Tensor]:
    """`(B, L, K)` of each direction: the row that each tap reads, that of the row itself last."""
    if conv == "compact":
        row = counting(rank.shape[1], rank.device).expand_as(rank)
        # Among the rows that are left, a row's place is its step of the walk, and who stands there is itself.
        rank, owners = (row, row) if order is None else (order.argsort(1), order)
    # The rows at the places around, from the farthest before to the farthest after; -1 is read beyond both ends.
    padded = F.pad(owners, (taps - 1, taps - 1), value=-1)
    around = rank[..., None] + counting(2 * taps - 1, rank.device)
    read = padded.gather(1, around.flatten(1)).view_as(around)
    if conv == "zeros":
        stands_there = rank.gather(1, read.clamp_min(0).flatten(1)).view_as(around) + taps - 1 == around
        read = torch.where(stands_there, read, -1)
    return read[..., :taps].contiguous(), read[..., taps - 1 :].flip(-1)


def gaps(rank: Tensor, order: Tensor | None, sign: int) -> tuple[Tensor, Tensor]:
    """How many tokens are missing before each row `(B, L)`, and the row visited before it, or itself for the first."""
    row = torch.arange(rank.shape[1], device=rank.device).expand_as(rank)
    visited = row if order is None else order
    visited = visited if sign == 1 else visited.flip(1)
    before = torch.cat([visited[:, :1], visited[:, :-1]], 1)
    missing = (rank.gather(1, visited) - rank.gather(1, before)).abs() - 1
    missing = missing.clamp_min(0)  # the first has none before it: its state is zero whatever it decays by
    return torch.zeros_like(rank).scatter(1, visited, missing), torch.zeros_like(rank).scatter(1, visited, before)
