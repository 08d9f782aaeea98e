"""`Slicing`: the lower bound for the time of every method."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from tokenreduce.budget.geometry import Geometry
from tokenreduce.maps.grid_walks import GridWalks, first_of_grid


@dataclass(frozen=True)
class Slicing:
    """Takes the place of a `Reduction` and slices tokens off at no cost. Its time is the lower bound for every method.

    Leaves `counts[l]` image tokens after layer l, at a method's `placement`; layers use it like a `Run`.
    """

    geometry: Geometry
    counts: tuple[int, ...]
    placement: str
    _grid_walks: dict[tuple[int, int], GridWalks] = field(default_factory=dict, compare=False, repr=False)

    def enter(self, layer: int, x: Tensor) -> Tensor:
        """`x` as it is."""
        return x

    def reduce(self, layer: int, x: Tensor, placement: str) -> Tensor:
        """`x` cut to the layer's count, at the placement where a method would reduce."""
        return x[:, : self.counts[layer] + self.geometry.protected] if placement == self.placement else x

    def attention_bias(self, x: Tensor, dtype: object = None) -> None:
        """No sizes, no bias."""

    def walks(self, x: Tensor, taps: int) -> None:
        """Scans walk row by row."""

    def grid_walks(self, x: Tensor, whole: GridWalks) -> GridWalks:
        """The walks over the first rows of a grid; the last of them stands for those that are gone."""
        batch, left = x.shape[:2]
        if left == whole.count:
            return whole
        if (batch, left) not in self._grid_walks:  # tables cost nothing either
            self._grid_walks[batch, left] = first_of_grid(whole.grid, batch, left, x.device)
        return self._grid_walks[batch, left]

    def show_attention(self, attend: object) -> None:
        """Nobody looks at the attention."""

    def rows(self, table: Tensor, x: Tensor) -> Tensor:
        """The first rows of a table of image tokens `(..., N, D)`, as many as `x` has."""
        return table[..., : x.shape[1] - self.geometry.protected, :]

    def pairs(self, table: Tensor, x: Tensor) -> Tensor:
        """The first entries of a table of all pairs of tokens `(..., N, N)`, as many as `x` has."""
        return table[..., : x.shape[1], : x.shape[1]]
