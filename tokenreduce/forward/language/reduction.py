"""`LanguageReduction`: everything static about a patch that reduces what enters a language model, or its layers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tokenreduce.reducers.contract import Ending, Reducer

Keep = float | int


def count_left(n: int, keep: Keep | Ending) -> int:
    """Tokens left of `n`: a share rounds down, and one is always left; an ending only lets all leave, or none."""
    if isinstance(keep, Ending):
        return n
    return min(n, keep) if isinstance(keep, int) else max(1, math.floor(n * keep + 1e-9))


@dataclass(frozen=True, eq=False)
class LanguageReduction:
    """One patch: a reducer, the tokens to keep of each image or video, and their positions.

    Args:
        keep: what the user gave: a share in (0, 1], a number of tokens, or one of them for some layers.
        stages: the layers before which tokens leave, ascending, with what each keeps; 0 is before the language model.
            The last one may be the method's ending.
        positions: "keep": what stays has the positions that it had; "renumber": as if the rest had never been there.
        adapter: that of the model's family.
        requested: what the user gave as `positions`, for `save_patch`.
    """

    reducer: Reducer
    keep: Keep | dict[int, Keep]
    stages: tuple[tuple[int, Keep | Ending], ...]
    positions: str
    adapter: Any
    requested: str = "auto"

    def left(self, n: int) -> int:
        """Tokens left of a unit of `n` after all stages."""
        for _, keep in self.stages:
            n = count_left(n, keep)
        return n

    @property
    def is_identity(self) -> bool:
        """Whether nothing is ever removed, whatever comes."""
        return all(isinstance(keep, float) and keep == 1 for _, keep in self.stages)

    @property
    def renumbers(self) -> bool:
        return self.positions == "renumber"

    @property
    def later(self) -> dict[int, Keep | Ending]:
        """The stages within the language model."""
        return {layer: keep for layer, keep in self.stages if layer}

    @property
    def first(self) -> Keep:
        """What enters the language model."""
        keep = dict(self.stages).get(0, 1.0)
        return 1.0 if isinstance(keep, Ending) else keep

    @property
    def ends(self) -> bool:
        """Whether all tokens may leave in the end."""
        return any(isinstance(keep, Ending) for _, keep in self.stages)

    @property
    def asks(self) -> bool:
        """Whether the words of a prompt decide what leaves."""
        return self.ends or "text_attention" in self.reducer.required()

    def reads_attention(self, layer: int) -> bool:
        """Whether the attention of this layer decides what leaves before the next."""
        keep = self.later.get(layer + 1)
        by_word = keep is not None and "text_attention" in self.reducer.required()
        return by_word or isinstance(keep, Ending)

    @property
    def manner(self) -> tuple[str, tuple[int, ...]]:
        """What a cache depends on: positions, and the later layers before which tokens leave."""
        return self.positions, tuple(self.later)

    def to_json(self) -> dict[str, Any]:
        """Method, options, budget and positions as JSON-able values."""
        keep = self.keep
        return {
            "method": self.reducer.name,
            "options": self.reducer.options(),
            "keep": {str(layer): value for layer, value in keep.items()} if isinstance(keep, dict) else keep,
            "positions": self.requested,
        }
