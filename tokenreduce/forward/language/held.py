"""`Held`: which entries of a cache the layers from a later stage on still have. It is data of the cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Held:
    """What is after the first P' entries of the layers from a stage on; every later entry is one of all layers.

    Args:
        within: `(B, P')`, the entry of the first layers that each of them is.
        valid: `(B, P')`, False for fillers.
        all: how many entries of the first layers these stand for.
        fillers: whether there are any.
    """

    within: Tensor
    valid: Tensor
    all: int
    fillers: bool

    def until(self, entries: int) -> Held:
        """The same once the first layers have so many entries."""
        later = torch.arange(self.all, entries, device=self.within.device).expand(self.within.shape[0], -1)
        valid = torch.cat([self.valid, torch.ones_like(later, dtype=torch.bool)], 1)
        return Held(torch.cat([self.within, later], 1), valid, entries, self.fillers)

    def then(self, within: Tensor, valid: Tensor, entries: int) -> Held:
        """Behind these, those `within (B, P)` of the next `entries` of the first layers."""
        within, valid = within.to(self.within.device), valid.to(self.within.device)
        held = torch.cat([self.within, self.all + within], 1)
        fillers = self.fillers or not bool(valid.all())
        return Held(held, torch.cat([self.valid, valid], 1), self.all + entries, fillers)

    def select(self, index: Tensor) -> Held:
        """Of the prompts `index`."""
        return Held(self.within[index], self.valid[index], self.all, self.fillers)

    def repeat(self, repeats: int) -> Held:
        """Each prompt so often."""
        within, valid = (x.repeat_interleave(repeats, 0) for x in (self.within, self.valid))
        return Held(within, valid, self.all, self.fillers)

    def ends_whole(self, entries: int) -> bool:
        """Whether the last entries of all layers are the same."""
        ends = torch.arange(self.all - entries, self.all, device=self.within.device)
        last = self.within[:, self.within.shape[1] - entries :]
        return entries <= self.within.shape[1] and bool((last == ends).all())

    def cut(self, entries: int) -> Held:
        """Without the last ones."""
        end = self.within.shape[1] - entries
        return Held(self.within[:, :end], self.valid[:, :end], self.all - entries, self.fillers)


def all_held(batch: int, entries: int, device: torch.device) -> Held:
    """Of layers that have all entries."""
    within = torch.arange(entries, device=device).expand(batch, -1)
    return Held(within, torch.ones_like(within, dtype=torch.bool), entries, False)


def translated(mask: Tensor | None, rows: Tensor, columns: Tensor, valid: Tensor, past: int) -> Tensor | None:
    """The mask of pairs of the rows and entries of a later stage, of that of the first layers.

    Args:
        mask: `(B or 1, H or 1, q, entries)`, True or 0 where a row sees an entry; None: every row sees all entries
            until its own.
        rows: `(B, q')`, which of the q rows there are.
        columns, valid: `(B, entries')`, which of the entries, and False for fillers.
        past: entries before the first of the q rows.
    """
    columns, valid = columns.to(rows.device), valid.to(rows.device)  # layers may be on several devices
    if mask is None:
        seen = columns[:, None, :] <= (rows + past)[:, :, None]
        return (seen & valid[:, None, :])[:, None]
    batch, mask = rows.shape[0], mask.to(rows.device)
    mask = mask.expand(batch, *mask.shape[1:])
    mask = mask.gather(2, rows[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
    mask = mask.gather(3, columns[:, None, None, :].expand(*mask.shape[:3], -1))
    hidden = ~valid[:, None, None, :]
    return mask & ~hidden if mask.dtype == torch.bool else mask.masked_fill(hidden, torch.finfo(mask.dtype).min)
