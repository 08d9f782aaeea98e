"""`Kept`: which places of the prompts a reduced cache holds. It is data of the cache, and goes where the cache goes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError


@dataclass(frozen=True, eq=False)
class Kept:
    """What is behind the first P entries of a cache; every later entry is one place of the prompts more.

    Args:
        columns: `(B, P)`, the place of each entry.
        valid: `(B, P)`, False for fillers, which only make all prompts equally long.
        seen: places of the prompts that these entries stand for.
        removed: `(B,)`, places that have left.
        fillers: whether there are any: asking `valid` in each step would wait for the device.
    """

    columns: Tensor
    valid: Tensor
    seen: int
    removed: Tensor
    fillers: bool

    @property
    def missing(self) -> int:
        """How many places more the prompts have than the cache entries."""
        return self.seen - self.columns.shape[1]

    def until(self, seen: int) -> Kept:
        """The same of a cache that has grown to `seen` places since."""
        later = torch.arange(self.seen, seen, device=self.columns.device).expand(self.columns.shape[0], -1)
        valid = torch.cat([self.valid, torch.ones_like(later, dtype=torch.bool)], 1)
        return Kept(torch.cat([self.columns, later], 1), valid, seen, self.removed, self.fillers)

    def mask(self, mask: Tensor | None, new: int) -> Tensor | None:
        """The mask `(B, entries)` of the cache's entries, of a `mask (B, places)`; None: nothing is hidden. `new`:
        entries behind the first P, where there is no mask to tell."""
        if mask is not None:
            mask = mask.to(device=self.columns.device, dtype=torch.bool)
            return torch.cat([mask.gather(1, self.columns) & self.valid, mask[:, self.seen :]], 1)
        if not self.fillers:
            return None
        return torch.cat([self.valid, self.valid.new_ones(self.valid.shape[0], new)], 1)

    def select(self, index: Tensor) -> Kept:
        """Of the prompts `index`, as beams take over each other's cache."""
        index = index.to(self.columns.device)
        return Kept(self.columns[index], self.valid[index], self.seen, self.removed[index], self.fillers)

    def repeat(self, repeats: int) -> Kept:
        """Each prompt so often."""
        columns, valid, removed = (x.repeat_interleave(repeats, 0) for x in (self.columns, self.valid, self.removed))
        return Kept(columns, valid, self.seen, removed, self.fillers)

    def cut(self, places: int) -> Kept:
        """Without the last `places`.

        Raises: ValueError where something has left from among them.
        """
        ends = torch.arange(self.seen - places, self.seen, device=self.columns.device)
        last = self.columns[:, self.columns.shape[1] - places :]
        if places > self.columns.shape[1] or not bool((last == ends).all()):
            raise InvalidValueError(
                f"the last {places} places of this prompt cannot be taken out of the cache: tokens have left from "
                "among them; crop behind the last image, or encode the prompt anew"
            )
        end = self.columns.shape[1] - places
        return Kept(self.columns[:, :end], self.valid[:, :end], self.seen - places, self.removed, self.fillers)


def whole(batch: int, places: int, device: torch.device) -> Kept:
    """Of a cache from which nothing has left."""
    columns = torch.arange(places, device=device).expand(batch, -1)
    removed = torch.zeros(batch, dtype=torch.long, device=device)
    return Kept(columns, torch.ones_like(columns, dtype=torch.bool), places, removed, False)
