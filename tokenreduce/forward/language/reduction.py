"""`LanguageReduction`: everything static about a patch that reduces what enters a language model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tokenreduce.reducers.contract import Reducer


@dataclass(frozen=True, eq=False)
class LanguageReduction:
    """One patch: a reducer, the tokens to keep of each image or video, and their positions.

    Args:
        keep: a share in (0, 1], or a number of tokens, of each unit.
        positions: "keep": what stays has the positions that it had; "renumber": as if the rest had never been there.
        adapter: that of the model's family.
        requested: what the user gave as `positions`, for `save_patch`.
    """

    reducer: Reducer
    keep: float | int
    positions: str
    adapter: Any
    requested: str = "auto"

    def count(self, n: int) -> int:
        """Tokens left of a unit of `n`: fractions round down, and one is always left."""
        if isinstance(self.keep, int):
            return min(n, self.keep)
        return max(1, math.floor(n * self.keep + 1e-9))

    @property
    def is_identity(self) -> bool:
        """Whether nothing is ever removed, whatever comes."""
        return isinstance(self.keep, float) and self.keep == 1

    @property
    def renumbers(self) -> bool:
        return self.positions == "renumber"

    def to_json(self) -> dict[str, Any]:
        """Method, options, budget and positions as JSON-able values."""
        return {
            "method": self.reducer.name,
            "options": self.reducer.options(),
            "keep": self.keep,
            "positions": self.requested,
        }
