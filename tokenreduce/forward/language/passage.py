"""`Passage`: how the rows of prompts become fewer at the door of a language model, and come back after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokenreduce.forward.language.held import Held
from tokenreduce.forward.language.kept import Kept
from tokenreduce.ops.rows import take


@dataclass(frozen=True, eq=False)
class Passage:
    """The rows that enter a language model, of n places of each prompt.

    Prompts end together: those that are left with fewer rows have fillers in front. Padding leaves too.

    Args:
        index: `(B, P)`, the place of each row.
        valid: `(B, P)`, False for fillers.
        back: `(B, n)`, the row that each place shows in the outputs: its own, or the last one before it that stayed.
        removed: `(B, n)`, the places that left.
        past: places before these that the cache has seen.
    """

    index: Tensor
    valid: Tensor
    back: Tensor
    removed: Tensor
    past: int

    @classmethod
    def of(cls, removed: Tensor, real: Tensor | None, past: int) -> Passage:
        """Of the places `removed (B, n)`; `real (B, n)`: which places are no padding."""
        stay = ~removed if real is None else real & ~removed
        left = stay.sum(1)
        most = int(left.max())
        index = stay.byte().argsort(dim=1, stable=True)[:, stay.shape[1] - most :]
        back = (stay.cumsum(1) - 1).clamp_min(0) + (most - left)[:, None]
        return cls(index, stay.gather(1, index), back.clamp_max(most - 1), removed, past)

    def rows(self, x: Tensor) -> Tensor:
        """The rows that enter, `(B, P, C)` of `x (B, n, C)`."""
        return take(x, self.index.to(x.device))

    def restore(self, x: Tensor) -> Tensor:
        """A row for each place, `(B, n, C)` of `x (B, P, C)`. Of the last rows alone, as many places from the end."""
        missing = self.index.shape[1] - x.shape[1]
        back = self.back[:, -x.shape[1] :] - missing if missing else self.back
        return take(x, back.to(x.device))

    def positions(self, positions: Tensor | None, renumber: bool, before: Kept | None) -> Tensor:
        """Those of the rows, of `positions (..., B or 1, n)` of the places; None: one after the other."""
        batch, places = self.back.shape
        if positions is None:
            positions = torch.arange(self.past, self.past + places, device=self.back.device)[None]
        positions = positions.to(self.back.device).expand(*positions.shape[:-2], batch, places)
        if renumber:
            gone = self.removed.cumsum(1)
            positions = positions - (gone if before is None else gone + before.removed[:, None])
        return positions.gather(-1, self.index.expand(*positions.shape[:-2], -1, -1))

    def then(self, before: Kept, held: dict[int, Held] | None = None, asked: bool = False, under: Any = None) -> Kept:
        """What a cache holds that held `before`; `held`, `asked` and `under` as in `Kept`."""
        held = {} if held is None else held
        return Kept(
            torch.cat([before.columns, self.index + self.past], 1),
            torch.cat([before.valid, self.valid], 1),
            self.past + self.back.shape[1],
            before.removed + self.removed.sum(1),
            before.fillers or not bool(self.valid.all()),
            held,
            asked,
            under,
        )
