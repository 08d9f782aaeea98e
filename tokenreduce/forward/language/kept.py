"""`Kept`: which places of the prompts a reduced cache holds. It is data of the cache, and goes where the cache goes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tokenreduce.errors import InvalidValueError
from tokenreduce.forward.language.held import Held


@dataclass(frozen=True, eq=False)
class Kept:
    """What is after the first P entries of a cache; every later entry is one place of the prompts more.

    Args:
        columns: `(B, P)`, the place of each entry.
        valid: `(B, P)`, False for fillers, which only make all prompts equally long.
        seen: places of the prompts that these entries stand for.
        removed: `(B,)`, places that have left.
        fillers: whether there are any: asking `valid` in each step would wait for the device.
        held: what the layers from each later stage on have of the entries, by the layer that begins it.
        asked: the last word of a prompt decided what left.
        under: how the patch counts positions and in which layers tokens leave, which another patch has to do alike.
    """

    columns: Tensor
    valid: Tensor
    seen: int
    removed: Tensor
    fillers: bool
    held: dict[int, Held] = field(default_factory=dict)
    asked: bool = False
    under: Any = None

    @property
    def missing(self) -> int:
        """How many places more the prompts have than the cache entries."""
        return self.seen - self.columns.shape[1]

    def last(self) -> tuple[Tensor, Tensor]:
        """`columns` and `valid` of the last layer."""
        if not self.held:
            return self.columns, self.valid
        held = self.held[max(self.held)].until(self.columns.shape[1])
        return self.columns.gather(1, held.within), self.valid.gather(1, held.within) & held.valid

    def until(self, seen: int) -> Kept:
        """The same of a cache that has grown to `seen` places since."""
        later = torch.arange(self.seen, seen, device=self.columns.device).expand(self.columns.shape[0], -1)
        valid = torch.cat([self.valid, torch.ones_like(later, dtype=torch.bool)], 1)
        columns = torch.cat([self.columns, later], 1)
        held = {layer: held.until(columns.shape[1]) for layer, held in self.held.items()}
        return replace(self, columns=columns, valid=valid, seen=seen, held=held)

    def mask(self, mask: Tensor | None, new: int) -> Tensor | None:
        """The mask `(B, entries)` of the cache's entries, of a `mask (B, places)`; None: nothing is hidden. `new`:
        entries after the first P, where there is no mask to tell."""
        if mask is not None:
            mask = mask.to(device=self.columns.device, dtype=torch.bool)
            return torch.cat([mask.gather(1, self.columns) & self.valid, mask[:, self.seen :]], 1)
        if not self.fillers:
            return None
        return torch.cat([self.valid, self.valid.new_ones(self.valid.shape[0], new)], 1)

    def select(self, index: Tensor) -> Kept:
        """Of the prompts `index`, as beams take over each other's cache."""
        index = index.to(self.columns.device)
        columns, valid, removed = (x[index] for x in (self.columns, self.valid, self.removed))
        held = {layer: held.select(index) for layer, held in self.held.items()}
        return replace(self, columns=columns, valid=valid, removed=removed, held=held)

    def repeat(self, repeats: int) -> Kept:
        """Each prompt so often."""
        columns, valid, removed = (x.repeat_interleave(repeats, 0) for x in (self.columns, self.valid, self.removed))
        held = {layer: held.repeat(repeats) for layer, held in self.held.items()}
        return replace(self, columns=columns, valid=valid, removed=removed, held=held)

    def cut(self, places: int) -> Kept:
        """Without the last `places`; of 0 the same, as by who drafts words, all of which were right.

        Raises: ValueError where something has left from among them, or one of them decided what left.
        """
        if self.asked:
            raise InvalidValueError(
                "words of this prompt cannot be taken out of the cache: the last of them decided which tokens of "
                "images left; generate without drafted words (an assistant, prompt lookup), or use a method that "
                "reads no text"
            )
        if not places:
            return self
        ends = torch.arange(self.seen - places, self.seen, device=self.columns.device)
        last = self.columns[:, self.columns.shape[1] - places :]
        whole = places <= self.columns.shape[1] and bool((last == ends).all())
        if not (whole and all(held.ends_whole(places) for held in self.held.values())):
            raise InvalidValueError(
                f"the last {places} places of this prompt cannot be taken out of the cache: tokens have left from "
                "among them; crop after the last image, or encode the prompt anew"
            )
        end = self.columns.shape[1] - places
        held = {layer: held.cut(places) for layer, held in self.held.items()}
        columns, valid = self.columns[:, :end], self.valid[:, :end]
        return replace(self, columns=columns, valid=valid, seen=self.seen - places, held=held)


def whole(batch: int, places: int, device: torch.device) -> Kept:
    """Of a cache from which nothing has left."""
    columns = torch.arange(places, device=device).expand(batch, -1)
    removed = torch.zeros(batch, dtype=torch.long, device=device)
    return Kept(columns, torch.ones_like(columns, dtype=torch.bool), places, removed, False)
