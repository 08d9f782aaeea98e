"""`Rehearsal`: what a method's own work costs, counted by dispatch on random tokens of one image."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from tokenreduce.budget.counting import count_flops
from tokenreduce.budget.geometry import Geometry
from tokenreduce.maps.restoring import restore_tokens
from tokenreduce.reducers.contract import Reducer
from tokenreduce.reducers.entries import fake_entries
from tokenreduce.reducers.tokens import Tokens

Work = dict[tuple[Any, ...], int]


class Rehearsal:
    """Counts MACs of a reducer for images of `entered` tokens; figures are remembered in `known`, the state here.

    `restoring`: every map is undone once in each forward, in this way, which costs something where the map is dense.
    `heads`: the part of the model that a method asks for auxiliary predictions.
    """

    def __init__(
        self, reducer: Reducer, geometry: Geometry, entered: int, known: Work, restoring: str | None, heads: Any = None
    ) -> None:
        self.reducer, self.geometry, self.entered, self.known = reducer, geometry, entered, known
        self.restoring, self.heads = restoring, heads
        self._state: Any = None
        self._begun = False

    def begin(self) -> int:
        """MACs of the state that the method makes of the tokens that enter."""
        return self._counted(("begin", self.entered), self._make_state)

    def plan(self, layer: int, n: int, keep: int) -> int:
        """MACs of planning and applying one reduction in `layer`, and of undoing it."""

        def work() -> None:
            tokens = self._tokens(layer, n)
            token_map = self.reducer.plan(tokens, keep, self._state)
            reduced = token_map.apply(tokens.features)
            if self.restoring is not None:
                around = [(tokens.features, reduced)]
                restore_tokens(self.restoring, reduced, [token_map], around, 0, 0)

        return self._counted(("plan", self.entered, layer, n, keep), work)

    def decide(self, layer: int, n: int) -> int:
        """MACs of an adaptive method's choice of a count in `layer`."""
        return self._counted(
            ("decide", self.entered, layer, n), lambda: self.reducer.decide(self._tokens(layer, n), self._state)
        )

    def _counted(self, key: tuple[Any, ...], work: Callable[[], Any]) -> int:
        if key not in self.known:
            with torch.no_grad():
                if not self._begun:
                    count_flops(self._make_state, ())  # counted apart: an outer count must not see it
                self.known[key] = count_flops(work, ()).total
        return self.known[key]

    def _make_state(self) -> None:
        self._state, self._begun = self.reducer.begin(self._tokens(0, self.entered)), True

    def _tokens(self, layer: int, n: int) -> Tokens:
        shape, image = self.geometry, slice(self.geometry.prefix, self.geometry.prefix + n)
        generator = torch.Generator("cpu").manual_seed(0)
        full = torch.randn(1, shape.heads, n + shape.protected, shape.head_dim, generator=generator, device="cpu")
        features = torch.randn(1, n, shape.width, generator=generator, device="cpu")
        sources = fake_entries(full, shape.class_tokens, image, shape.grid, generator)
        sources["auxiliary_logits"] = lambda: self._auxiliary_logits(layer, features)
        return Tokens(features, None, sources, self._grid(), shape.prefix, shape.suffix, layer, shape.depth)

    def _grid(self) -> tuple[int, ...]:
        """A grid of the tokens that enter: of an image of another size only the count is known here, and any full grid
        of it will do."""
        grid = self.geometry.grid
        if self.entered == self.geometry.count:
            return grid
        times = grid[:-2] if self.entered % math.prod(grid[:-2]) == 0 else (1,) * len(grid[:-2])
        cells = self.entered // math.prod(times)
        rows = next(side for side in range(math.isqrt(cells), 0, -1) if cells % side == 0)
        return *times, rows, cells // rows

    def _auxiliary_logits(self, layer: int, features: torch.Tensor) -> torch.Tensor:
        like, layers = next(self.heads.parameters()), self.heads.auxiliary_layers
        # A budget is rehearsed in the layers that were asked for; that these have no head is said afterwards.
        at = layer if layer in layers else layers[0]
        logits: torch.Tensor = self.heads.auxiliary_logits(at, features.to(like.device, like.dtype))
        return logits.cpu().float()
